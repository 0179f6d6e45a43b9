"""What a type checker makes of programs that use the packages, rightly and wrongly."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.tree import PROJECT
from tests.typing import sample

SAMPLE = Path(sample.__file__)

#: A statement, and the codes of the errors that mypy must find in it.
WRONG = {
    'kv[1] = b"2"': "index",
    'kv[b"1"] = 2': "assignment",
    "kv[1] = 2": "index assignment",
    "kv[None]": "index",
    "del kv[1]": "arg-type",
    'kv.put(b"k", 1)': "arg-type",
    'kv.put(b"k", None)': "arg-type",
    'kv.put(b"k", b"v", True)': "call-arg",
    'kv.put(b"k", value=b"v")': "call-arg",
    "kv.get(1)": "call-overload",
    'kv.get(b"k").upper()': "union-attr",
    'text: str = kv[b"k"]': "assignment",
    'kv[b"k"] + "text"': "operator",
    "kv.pop(1)": "call-overload",
    "kv.update({1: b'v'})": "arg-type",
    "kv.update(['ab'])": "list-item",
    "texts: MutableMapping[str, str] = kv": "assignment",
    'KVStore.open("s", "rw")': "call-overload",
    'KVStore.open("s", flush_policy="always")': "call-overload",
    "KVStore.open(1)": "call-overload",
    'log.append("text")': "arg-type",
    'log.append(b"data", True)': "call-arg",
    "log.committed = 1": "misc",
    'Log.open("l", "a")': "arg-type",
    "Log()": "call-arg",
    "entry.seq = 1": "misc",
    'mapped.update_region(0, "text")': "arg-type",
    'mapped.update_region("0", b"data")': "arg-type",
    'view[0] = ord("x")': "index",
    'view["0"]': "call-overload",
    "key: Hashable = view": "assignment",
    "MappedSlice()": "call-arg",
    "FlushPolicy.every_millis(1.5)": "arg-type",
}

_HEAD = """
from collections.abc import Hashable, MutableMapping
from mmapio import FlushPolicy, MappedSlice, MemoryMappedFile
from mmapkv import KVStore
from mmaplog import Entry, Log

def misuse(kv: KVStore, log: Log, entry: Entry, mapped: MemoryMappedFile, view: MappedSlice) -> None:
"""

_ERROR = re.compile(r"(?P<file>[^:]+):(?P<line>\d+): error: (?P<message>.*)  \[(?P<code>[a-z-]+)\]")

#: Errors as mypy reports them: message and code, by file name and line.
Errors = dict[tuple[str, int], list[tuple[str, str]]]


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Errors]:
    """What mypy, as strict as it gets, has to say of the sample and of every wrong statement."""
    directory = tmp_path_factory.mktemp("typing")
    misuse = directory / "misuse.py"
    misuse.write_text(_HEAD + "".join(f"    {statement}\n" for statement in WRONG))
    # Not in this process: it keeps a million objects, which every collection of every later test would visit.
    command = [
        *(sys.executable, "-m", "mypy"),
        "--strict",
        "--config-file=",
        "--follow-imports=silent",
        f"--cache-dir={directory / 'cache'}",
        "--hide-error-context",
        "--no-error-summary",
        "--no-pretty",
        str(SAMPLE),
        misuse.name,
    ]
    environment = {**os.environ, "MYPYPATH": str(PROJECT.root)}
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    found: Errors = {}
    for line in done.stdout.splitlines():
        match = _ERROR.fullmatch(line)
        assert match or ": note: " in line, line
        if match:
            place = Path(match["file"]).name, int(match["line"])
            found.setdefault(place, []).append((match["message"], match["code"]))
    yield found


def test_right_uses_pass(errors: Errors) -> None:
    # A stub that refuses what works sends its users to `type: ignore`.
    assert {place: found for place, found in errors.items() if place[0] == SAMPLE.name} == {}


@pytest.mark.parametrize("statement", WRONG)
def test_a_wrong_use_is_caught(errors: Errors, statement: str) -> None:
    # A stub that says Any somewhere lets everything pass that comes after it.
    line = _HEAD.count("\n") + 1 + list(WRONG).index(statement)
    assert [code for _, code in errors.get(("misuse.py", line), [])] == WRONG[statement].split()


@pytest.mark.parametrize("use", [sample.use_store, sample.use_log, sample.use_file, sample.use_mapping])
def test_what_passes_also_works(tmp_path: Path, use: Callable[[Path], None]) -> None:
    # Types that promise what the code does not do are worse than none.
    use(tmp_path / "it")
