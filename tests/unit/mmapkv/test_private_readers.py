"""Readers who may write nothing beside the log: on media for reading only, or without permission."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mmapkv import KVStore, attach
from mmapkv.errors import SnapshotTooOld
from tests.unit.mmapio.processes import unprivileged
from tests.unit.mmapkv.stores import agreeing, lose, opened

KEYS = [b"key %d" % number for number in range(200)]
OLD = dict.fromkeys(KEYS, b"o" * 900)
NEW = dict.fromkeys(KEYS[50:], b"n" * 900)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of several segments that was closed cleanly."""
    with opened(tmp_path / "kv") as kv:
        kv.update(OLD)
    assert len(list((tmp_path / "kv").glob("*.seg"))) > 2
    return tmp_path / "kv"


def only_read(path: Path) -> None:
    for file in path.iterdir():
        file.chmod(0o400)
    path.chmod(0o500)


def writable(path: Path) -> None:
    path.chmod(0o700)
    for file in path.iterdir():
        file.chmod(0o600)


class Meanwhile:
    """What another process does while the reader, in a process without privileges, waits for it."""

    def __init__(self, path: Path, work: Callable[[], object]) -> None:
        self._ask, asked = os.pipe()
        answered, self._answer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.read(self._ask, 1)
            said = b"y"
            try:
                writable(path)
                # What it has open stays so until the reader is done.
                self._kept = work()
                only_read(path)
            except BaseException as error:
                said = repr(error).encode()
            os.write(self._answer, said)
            os.read(self._ask, 1)
            os._exit(0)
        self._ask, self._answer = asked, answered

    def __call__(self) -> None:
        os.write(self._ask, b".")
        said = os.read(self._answer, 1000)
        assert said == b"y", said

    def end(self) -> None:
        os.write(self._ask, b"..")
        os.waitpid(self._pid, 0)


@contextmanager
def meanwhile(path: Path, work: Callable[[], object]) -> Iterator[Meanwhile]:
    made = Meanwhile(path, work)
    try:
        yield made
    finally:
        made.end()


def compact(path: Path) -> KVStore:
    kv = opened(path, "w")
    for key in KEYS[:50]:
        del kv[key]
    kv.update(NEW)
    kv.compact()
    return kv


def compact_and_close(path: Path) -> None:
    compact(path).close()


def with_a_picture(path: Path) -> None:
    """CONTROL is not of this file, as after a reboot: who may not write makes his own."""
    lose(path, "CONTROL")


def with_an_index_of_its_own(path: Path) -> None:
    """CONTROL is there and believed, the index is missing."""
    lose(path, "INDEX")


def with_neither(path: Path) -> None:
    lose(path, "CONTROL", "INDEX")


SITUATIONS = [with_a_picture, with_an_index_of_its_own, with_neither]


@pytest.mark.parametrize("work", [compact, compact_and_close])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_what_compaction_moved_is_found(path: Path, situation: Any, work: Any) -> None:
    """It raised CorruptionError: the segments that its own index led to were gone."""
    situation(path)
    only_read(path)
    with meanwhile(path, lambda: work(path)) as begin:

        def read() -> dict[bytes, bytes]:
            with opened(path, "r") as kv:
                assert kv[KEYS[0]] == OLD[KEYS[0]]
                begin()
                # Whatever has it look at the directory: what it had mapped it would go on to read.
                kv._parts()[0].segments.relist()
                for key in KEYS[50:]:
                    assert kv[key] in (OLD[key], NEW[key])
                assert list(kv.scan()) == sorted(kv.items())
                assert list(kv.changes())
                return agreeing(kv)

        assert unprivileged(read) == NEW


@pytest.mark.parametrize("work", [compact, compact_and_close])
def test_a_writer_who_comes_has_an_index_for_all(path: Path, work: Any) -> None:
    """Look-ups went on by the one that the reader had made for want of it, and showed old values."""
    with_an_index_of_its_own(path)
    only_read(path)
    with meanwhile(path, lambda: work(path)) as begin:

        def read() -> tuple[bytes, list[bytes | None], int]:
            with opened(path, "r") as kv:
                assert kv[KEYS[50]] == OLD[KEYS[50]]
                begin()
                return kv[KEYS[50]], kv.get_many(KEYS[49:51]), len(kv)

        assert unprivileged(read) == (NEW[KEYS[50]], [None, NEW[KEYS[50]]], len(NEW))


@pytest.mark.parametrize("work", [compact, compact_and_close])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_walk_shows_all_or_raises(path: Path, situation: Any, work: Any) -> None:
    """The first that it does after a compaction passed over what that had removed, and did not say so."""
    situation(path)
    only_read(path)
    with meanwhile(path, lambda: work(path)) as begin:

        def read() -> tuple[dict[bytes, bytes], dict[bytes, bytes] | None]:
            with opened(path, "r") as kv:
                before = kv.snapshot()
                begun = iter(kv.items())
                found = [next(begun)]
                begin()
                after = dict(kv.items())
                try:
                    found += begun
                    assert dict(before) == dict(found) == {key: before[key] for key in KEYS} == OLD
                except SnapshotTooOld:
                    return after, None
                return after, dict(found)

        after, found = unprivileged(read)
        # Nothing was removed of what it had said it looks at: a picture is right while nobody writes.
        assert after == NEW or (after == OLD and situation is with_neither and work is compact_and_close)
        # It had said what it looks at, before the compaction began.
        assert found == OLD


def test_a_clean_index_is_believed_as_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy on read-only media was read through from end to end at each opening."""
    copy = path.with_name("copy")
    shutil.copytree(path, copy)
    only_read(copy)

    def refuse(log: object) -> None:
        raise AssertionError("the index was built again")

    monkeypatch.setattr(attach, "build_private", refuse)

    def read() -> dict[bytes, bytes]:
        with opened(copy, "r") as kv:
            assert kv._parts()[0].control.private
            return agreeing(kv)

    assert unprivileged(read) == OLD


@pytest.mark.parametrize("situation", ["not closed", "another end", "damaged", "unreadable"])
def test_an_index_that_does_not_fit_is_built_anew(path: Path, situation: str) -> None:
    """In memory, for nothing may be written."""
    copy = path.with_name("copy")
    kept = shutil.copytree(path, copy) / "INDEX"
    if situation == "not closed":
        with opened(path, "w") as kv:
            kv[KEYS[0]] = OLD[KEYS[0]]
            kept.write_bytes((path / "INDEX").read_bytes())
    elif situation == "another end":
        index = kept.read_bytes()
        with opened(copy, "w") as kv:
            kv[KEYS[0]] = OLD[KEYS[0]]
        kept.write_bytes(index)
        lose(copy, "CONTROL")
    elif situation == "damaged":
        index = bytearray(kept.read_bytes())
        # In a bucket line.
        at = next(at for at in range(204800 + 4096 + 64, len(index)) if index[at])
        index[at] ^= 1
        kept.write_bytes(index)
    only_read(copy)
    if situation == "unreadable":
        kept.chmod(0)
    assert unprivileged(lambda: _contents(copy)) == OLD


def _contents(path: Path) -> dict[bytes, bytes]:
    with opened(path, "r") as kv:
        return agreeing(kv)


def test_a_clean_index_that_somebody_stores_to_is_followed(path: Path) -> None:
    """The log's end is the reader's own; what it shows must not be half of one moment, half of another."""
    copy = path.with_name("copy")
    shutil.copytree(path, copy)
    only_read(copy)

    def change() -> KVStore:
        kv = opened(copy, "w")
        del kv[KEYS[0]]
        return kv

    with meanwhile(copy, change) as begin:

        def read() -> dict[bytes, bytes]:
            with opened(copy, "r") as kv:
                assert len(kv) == len(OLD)
                begin()
                return agreeing(kv)

        assert unprivileged(read) == {key: OLD[key] for key in KEYS[1:]}
