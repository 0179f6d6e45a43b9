"""Millions of random operations on one mapped file: `python -m tests.fuzz_mapping --help`, in the root."""

import sys
from pathlib import Path

# `python -m` puts the checkout first on the path, and there sources without their native modules would
# hide an installed package. Last is where the tests have it, see conftest.
_ROOT = str(Path(__file__).resolve().parents[2])
if sys.path and sys.path[0] in ("", _ROOT):
    sys.path.append(sys.path.pop(0))
