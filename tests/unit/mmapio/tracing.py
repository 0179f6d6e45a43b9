"""Which system calls a piece of code makes, told by strace: a witness that shares nothing with the code."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.unit.mmapio.processes import run_python


class Call(NamedTuple):
    """A call that returned: its name, its arguments as strace prints them, and what it returned."""

    name: str
    arguments: tuple[str, ...]
    result: str


def traced(code: str, *arguments: object, events: str, trace: Path, lacking: str) -> tuple[Any, list[Call]]:
    """What `code` answers in a fresh interpreter, and the calls named in `events` that it made, in order.

    Paths of descriptors are left out. Without strace the test is skipped, and says that it is `lacking`.
    """
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip(f"no strace: NOT TESTED {lacking}")
    command = (strace, "-f", "-qq", "-o", str(trace), "-e", f"trace={events}")
    answer = run_python(code, *arguments, prefix=command)
    lines = (re.match(r"\d+ +(\w+)\((.*)\) += (.+)", line) for line in trace.read_text().splitlines())
    return answer, [Call(line[1], tuple(line[2].split(", ")), line[3]) for line in lines if line]


def calls_between(trace: Path) -> list[str]:
    """What a program that prints "begin" and "end" asked of the system in between, but to print."""
    calls = trace.read_text().splitlines()
    places = [at for at, line in enumerate(calls) if line.startswith('write(1, "')]
    # The line and its end are two calls.
    begin = next(at for at in places if '"begin' in calls[at])
    end = next(at for at in places if '"end' in calls[at])
    return [line for line in calls[begin:end] if not line.startswith("write(1, ")]
