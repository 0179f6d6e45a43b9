"""The test suite over native modules built with AddressSanitizer and UndefinedBehaviorSanitizer.

    python -m tests.sanitize --dir DIR [pytest arguments]

Copies the checkout to DIR, builds it there with the sanitizers, and runs the tests in it. First a planted
overflow of each kind must be found, or nothing below would mean anything. Findings of child processes count
too: every process writes its own report. Prints how many there were, and exits 1 if there was any or a test
failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.tree import PROJECT

FLAGS = "-fsanitize=address,undefined -fno-omit-frame-pointer -g -O1"
TESTS = ["tests/unit", "tests/property", "tests/format"]
BUILD = "from setuptools import setup; setup()"

CONTROL = r"""
#include <stdlib.h>
int heap(int n) { char *p = malloc(n); volatile char c = p[n]; free(p); return c; }
int overflow(int n) { return n + 0x7fffffff; }
int harmless(int n) { return n; }
"""


def run(command: list[str | Path], directory: Path, **variables: str) -> int:
    """Run a command in `directory` and return how it ended."""
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=directory, env=environment, check=False).returncode


def prepare(directory: Path) -> Path:
    """Copy the checkout, make an environment for it, build it. Returns the interpreter."""
    tree = directory / "tree"
    for path in PROJECT.files:
        target = tree / path.relative_to(PROJECT.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    python = directory / "venv/bin/python"
    steps: list[list[str | Path]] = [
        [sys.executable, "-m", "venv", directory / "venv"],
        [python, "-m", "pip", "install", "-q", "-U", "pip"],
        [python, "-m", "pip", "install", "-q", "--group", "test", "Cython>=3.3,<4", "setuptools>=80"],
        [python, "-m", "pip", "install", "-q", "xxhash>=3.4", "sortedcontainers>=2.4"],
        [python, "-c", BUILD, "-q", "build_ext", "--inplace", "-j2"],
        # What is built stays; this adds what the benchmarks ask for, the version.
        [python, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "-e", "."],
    ]
    for step in steps:
        if run(step, tree, CFLAGS=FLAGS, LDFLAGS="-fsanitize=address,undefined") != 0:
            sys.exit(f"cannot prepare: {' '.join(map(str, step))}")
    return python


def surroundings(directory: Path) -> dict[str, str]:
    """The variables below which an interpreter that is not instrumented can load modules that are."""
    libraries = [
        subprocess.run(
            ["gcc", f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("asan", "ubsan")
    ]
    # Python keeps much to the end; leaks are not what is looked for. SIGBUS is ours.
    report = f"log_path={directory / 'finding'}"
    asan = f"detect_leaks=0:handle_sigbus=0:abort_on_error=1:quarantine_size_mb=32:{report}"
    ubsan = f"print_stacktrace=1:halt_on_error=1:{report}"
    return {
        "LD_PRELOAD": ":".join(libraries),
        "ASAN_OPTIONS": asan,
        "UBSAN_OPTIONS": ubsan,
        "PYTHONPATH": str(directory / "tree"),
        # Its own allocator hides what overflows within its blocks.
        "PYTHONMALLOC": "malloc",
    }


def findings(directory: Path) -> list[Path]:
    """The reports that processes have written."""
    return sorted(directory.glob("finding.*"))


def control_is_caught(python: Path, directory: Path) -> bool:
    """Whether a planted defect of each kind is found, and nothing where none is. Its reports are removed."""
    source, library = directory / "control.c", directory / "control.so"
    source.write_text(CONTROL)
    subprocess.run(["gcc", "-shared", "-fPIC", *FLAGS.split(), "-o", library, source], check=True)
    caught = []
    for name in ("heap", "overflow", "harmless"):
        code = f"import ctypes; ctypes.CDLL({str(library)!r}).{name}(8)"
        # With both libraries loaded, one may report to the standard error, not a file; it ends the process.
        ended = run([python, "-c", code], directory, **surroundings(directory))
        caught.append(ended != 0 or bool(findings(directory)))
        for path in findings(directory):
            path.unlink()
    return caught == [True, True, False]


def main() -> int:
    """Prepare, check the control, run the tests, count."""
    parser = argparse.ArgumentParser(prog="python -m tests.sanitize", description=__doc__.partition("\n")[0])
    parser.add_argument("--dir", type=Path, required=True, help="an empty directory to work in, some 500 MB")
    arguments, rest = parser.parse_known_args()
    directory = arguments.dir.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    python = prepare(directory)
    if not control_is_caught(python, directory):
        print("the planted defects were not found: the sanitizers do not work here")
        return 1
    # Reports to the standard error would be lost with a process that pytest captures it from.
    command = [python, "-m", "pytest", "-q", "--capture=sys", "-p", "no:cacheprovider", *(rest or TESTS)]
    code = run(command, directory / "tree", **surroundings(directory))
    for path in findings(directory):
        print(path.read_text(errors="replace"))
    print(f"sanitizers: {len(findings(directory))} findings, control caught, tests ended with {code}")
    return 1 if code or findings(directory) else 0


if __name__ == "__main__":
    sys.exit(main())
