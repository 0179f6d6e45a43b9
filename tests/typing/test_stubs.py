"""The stubs of the native modules against the modules themselves, as they are built here."""

from __future__ import annotations

import os
import site
import subprocess
import sys
from pathlib import Path

import mmapkv
from tests.support.tree import PACKAGES

ALLOWLIST = Path(__file__).with_name("stubtest_allowlist.txt")


def stubtest(*packages: str, cwd: Path, stubs: Path) -> subprocess.CompletedProcess[str]:
    """Compare the stubs below the directory `stubs` with what can be imported from `cwd`."""
    options = ["--concise", "--ignore-disjoint-bases", "--allowlist", str(ALLOWLIST)]
    environment = dict(os.environ)
    # mypy looks into the directories of installed packages by itself, and refuses to be told of them.
    if str(stubs) not in site.getsitepackages():
        environment["MYPYPATH"] = str(stubs)
    return subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", *options, *packages],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_stubs_say_what_the_modules_are(tmp_path: Path) -> None:
    # A name that a stub lacks, or a parameter called otherwise, is an error in the editor of every user.
    answer = stubtest(*PACKAGES, cwd=tmp_path, stubs=Path(mmapkv.__file__).parents[1])
    assert (answer.stdout, answer.stderr, answer.returncode) == ("", "", 0)


def test_a_stub_that_lies_is_caught(tmp_path: Path) -> None:
    # The control: were the comparison to run on nothing, it would find nothing.
    (tmp_path / "planted.py").write_text("def purr(loud=False): pass\n\ndef bite(): pass\n")
    (tmp_path / "planted.pyi").write_text("def purr(quiet: bool = False) -> None: ...\n")
    answer = stubtest("planted", cwd=tmp_path, stubs=tmp_path)
    assert "planted.bite is not present in stub" in answer.stdout
    assert 'planted.purr is inconsistent, stub parameter "quiet"' in answer.stdout
    assert answer.returncode == 1
