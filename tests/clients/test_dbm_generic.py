"""CPython's own tests of the modules of dbm, run on `mmapkv.dbm`."""

from __future__ import annotations

import dbm as standard
import os
import tempfile
import unittest
from pathlib import Path

import pytest

from mmapkv import dbm

test_dbm = pytest.importorskip(
    "test.test_dbm", reason="this Python lacks its test package: NOT TESTED against CPython's tests of dbm"
)


class TestGeneric(test_dbm.AnyDBMTestCase, unittest.TestCase):  # type: ignore[misc,name-defined]
    """They open by `dbm.open`, which has to recognise the database, and work in the current directory."""

    module = dbm

    def setUp(self) -> None:
        """Have the standard dbm know our module, as it would one of its own."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.addCleanup(os.chdir, Path.cwd())
        os.chdir(directory.name)
        for name, value in (("whichdb", dbm.whichdb), ("_modules", {"mmapkv.dbm": dbm})):
            self.addCleanup(setattr, standard, name, getattr(standard, name))
            setattr(standard, name, value)
        super().setUp()
