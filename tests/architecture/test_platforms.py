"""The platform headers also compile as macOS would read them: against stubs of what its headers declare."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.tree import PROJECT

STUBS = PROJECT.root / "tests/support/darwin"
HEADERS = sorted(path.name for path in (PROJECT.root / "mmapio").glob("*.h"))


def complaints(header: Path, compiler: str) -> str:
    """What the compiler says to a header when it is told that this is macOS."""
    options = ["-std=gnu11", "-Wall", "-Wno-unused-function", "-Wno-unused-variable", "-fsyntax-only"]
    machine = ["-nostdinc", f"-I{STUBS}", f"-I{PROJECT.root / 'mmapio'}", "-U__linux__", "-D__APPLE__"]
    command = [compiler, *options, *machine, "-x", "c", str(header)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


@pytest.fixture
def compiler() -> str:
    """A C compiler."""
    found = shutil.which("gcc") or shutil.which("clang")
    if found is None:
        pytest.skip("no C compiler: NOT TESTED that the headers compile for macOS")
    return found


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_compiles_for_macos(name: str, compiler: str) -> None:
    """A call that only Linux has, outside its branch, is found by the first user of the other system."""
    assert complaints(PROJECT.root / "mmapio" / name, compiler) == ""


@pytest.mark.parametrize("call", ["fallocate(0, 0, 0, 0)", "syscall(1)", "fdatasync(0)"])
def test_a_call_that_only_linux_has_is_caught(tmp_path: Path, call: str, compiler: str) -> None:
    planted = tmp_path / "planted.h"
    planted.write_text(f'#include "_platform.h"\nstatic inline int f(void) {{ return {call}; }}\n')
    assert "implicit declaration" in complaints(planted, compiler)
