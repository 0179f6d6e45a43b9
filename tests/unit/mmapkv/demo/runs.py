"""Runs of the demo: of what files, what its table says, and with a store that was tampered with."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from mmapio import MmapIoError
from mmapkv import demo
from mmapkv.cli import main
from mmapkv.store import KVStore

FILES = {
    b"again/0/0/plain": b"named like a key of the second load",
    b"deep/er/still/file": b"deep",
    b"empty": b"",
    b"line\nend": b"a name of two lines",
    b"not text \xff": b"a name that is not UTF-8",
    b"large": bytes(range(256)) * 4096,
    b"plain": b"plain",
    b"zeros": bytes(5000),
}

DONE = "OK: every acknowledged write is there, byte for byte, and nothing else is."

# Which time it is that the demo opens its store.
READ_BACK, AFTER_THE_KILL = 2, 3

# The first key that the child puts.
ACKNOWLEDGED = b"/again/0/0/" + min(FILES)


def rows(table: str) -> dict[str, str]:
    """The values of a printed table by their names; of a name that occurs twice, the first."""
    found: dict[str, str] = {}
    for line in table.splitlines():
        match = re.fullmatch(r"([a-z][^:]*?|  of content)  +(\S+)(?:  \S+)?", line)
        if match:
            found.setdefault(match[1].strip(), match[2])
    return found


def run_demo(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the demo."""
    code = main(["demo", *map(str, arguments)])
    output = capsys.readouterr()
    return code, output.out, output.err


class Tampered:
    """A store whose reads go wrong for some keys."""

    def __init__(self, kv: KVStore, key: bytes, read: Callable[[bytes], bytes]) -> None:
        self.kv = kv
        self.key = key
        self.read = read

    def __getitem__(self, key: bytes) -> bytes:
        return self.read(self.kv[key]) if key == self.key else self.kv[key]

    def __contains__(self, key: object) -> bool:
        return key in self.kv

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.kv)

    def __len__(self) -> int:
        return len(self.kv)

    def __enter__(self) -> Tampered:
        return self

    def __exit__(self, *raised: object) -> None:
        self.kv.close()


def tamper(monkeypatch: pytest.MonkeyPatch, time: int, change: Callable[[KVStore], object]) -> None:
    """Let `change` have the store when the demo opens it for the `time`-th time.

    It alters what is stored, or returns what the demo shall see in place of the store.
    """
    count = 0

    class Opener:
        @staticmethod
        def open(path: str, mode: Literal["c", "w"]) -> object:
            nonlocal count
            count += 1
            kv = KVStore.open(path, mode)
            return (change(kv) or kv) if count == time else kv

    monkeypatch.setattr(demo, "KVStore", Opener)


def flip(value: bytes) -> bytes:
    """`value` with one bit of its last byte changed."""
    return value[:-1] + bytes([value[-1] ^ 1])


def refuse_to_read(value: bytes) -> bytes:
    raise MmapIoError(errno.EBADMSG, "the checksum is wrong")
