"""A copy of the index in its place, of whatever time, is not believed: only the file that was written to."""

from __future__ import annotations

import errno
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from mmapkv import KVStore, StoreError, attach
from mmapkv.index import Reseed
from mmaplog import Log
from tests.unit.mmapio.processes import in_child
from tests.unit.mmapkv.stores import MANUAL, agreeing, contents, opened

KEYS = [b"key %d" % number for number in range(20_000)]
# What of an index precedes the last of the directory and the first index segments: docs/format-kv.md.
FIRST_PART = 204800 + 8192


def in_place(copy: Path, index: Path) -> None:
    """As ``cp copy index`` does it."""
    index.write_bytes(copy.read_bytes())


def renamed(copy: Path, index: Path) -> None:
    """As ``mv copy index`` does it."""
    copy.replace(index)


def made_anew(copy: Path, index: Path) -> None:
    """As ``rm index; cp copy index`` does it: a file system likes to give the same inode."""
    index.unlink()
    shutil.copy(copy, index)


WAYS = pytest.mark.parametrize("put_back", [in_place, renamed, made_anew])


@WAYS
@pytest.mark.parametrize("mode", ["r", "w"])
def test_one_that_was_made_while_the_store_grew(
    tmp_path: Path, put_back: Callable[[Path, Path], None], mode: str
) -> None:
    """Its directory was older than its index segments: keys were missing, and compaction dropped them."""
    path, copy = tmp_path / "kv", tmp_path / "copy"
    with opened(path) as kv:
        kv.put_many(dict.fromkeys(KEYS[:15000], b"1"))
        first = (path / "INDEX").read_bytes()[:FIRST_PART]
        for key in KEYS[15_000:]:
            kv[key] = b"1"
        copy.write_bytes(first + (path / "INDEX").read_bytes()[FIRST_PART:])
    put_back(copy, path / "INDEX")
    with opened(path, mode) as kv:
        assert len(kv) == sum(key in kv for key in KEYS) == len(KEYS)


@WAYS
@pytest.mark.parametrize("known", [True, False], ids=["CONTROL kept", "CONTROL gone"])
def test_a_clean_one_from_before_a_compaction(
    tmp_path: Path, put_back: Callable[[Path, Path], None], known: bool
) -> None:
    """It was closed at the same number, but leads to segments that are gone."""
    path, copy = tmp_path / "kv", tmp_path / "copy"
    with opened(path) as kv:
        for turn in (b"1", b"2"):
            kv.put_many(dict.fromkeys(KEYS[:2000], turn * 100))
    shutil.copy(path / "INDEX", copy)
    with opened(path, "w") as kv:
        assert kv.compact().records_removed
        wanted = agreeing(kv)
    put_back(copy, path / "INDEX")
    if not known:
        # As after a reboot.
        (path / "CONTROL").unlink()
    elif put_back is not in_place:
        assert contents(path) == wanted
    assert contents(path, "w") == wanted
    assert contents(path) == wanted


def test_an_older_one_while_another_process_compacts(tmp_path: Path) -> None:
    """Nobody looked then whether the segments still count that it leads to: what was deleted came back."""
    path, copy = tmp_path / "kv", tmp_path / "copy"
    with KVStore.open(path, shared=True, compaction=False, segment_bytes=64 << 10) as one:
        one.put_many(dict.fromkeys(KEYS[:3000], b"1" * 50))
        one.put_many(dict.fromkeys(KEYS[1000:2000], b"2" * 50))
        with KVStore.open(path, "r") as reader:
            assert (
                reader.get_many(KEYS[:3000]) == [b"1" * 50] * 1000 + [b"2" * 50] * 1000 + [b"1" * 50] * 1000
            )
            shutil.copy(path / "INDEX", copy)
            one.delete_many(KEYS[:1000])
            assert one.compact().records_removed
            copy.replace(path / "INDEX")
            assert one._log.try_care()
            try:
                with KVStore.open(path, shared=True, compaction=False) as two:
                    two[b"new"] = b"3"
                    for kv in (one, two, reader):
                        assert len(agreeing(kv)) == 2001
                        assert kv.get_many([KEYS[0], KEYS[1000], b"new"]) == [None, b"2" * 50, b"3"]
            finally:
                one._log.leave_care()


def test_who_is_killed_while_he_takes_one_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had been made the index before it had what was acknowledged since it was copied."""
    path, copy = tmp_path / "kv", tmp_path / "copy"

    def open_and_die() -> None:
        def die(*_: object) -> None:
            os._exit(9)

        monkeypatch.setattr(attach, "_keep_up", die)
        KVStore.open(path, shared=True, compaction=False)

    with KVStore.open(path, shared=True, compaction=False) as one:
        one[b"k"] = b"1"
        with KVStore.open(path, "r") as reader:
            assert reader[b"k"] == b"1"
            shutil.copy(path / "INDEX", copy)
            one[b"k"] = b"2"
            copy.replace(path / "INDEX")
            pid = os.fork()
            if pid == 0:
                open_and_die()
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
            assert reader[b"k"] == b"2"
            assert in_child(lambda: contents(path)) == {b"k": b"2"}
            one[b"k"] = b"3"
            assert reader[b"k"] == b"3"


@pytest.mark.parametrize("then", ["removed", "a copy", "the one before"])
def test_a_reader_who_can_not_come_to_the_one_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """He kept to the one that he had, which nobody keeps up, for as long as the writer was there."""
    path, copy = tmp_path / "kv", tmp_path / "copy"
    index = path / "INDEX"
    monkeypatch.setattr(attach, "WAIT_SECONDS_MAX", 0.05)
    with opened(path) as kv:
        kv[b"k"] = b"1"
    with KVStore.open(path, "r") as reader:
        assert reader[b"k"] == b"1"
        index.rename(tmp_path / "before")
        with opened(path, "w") as kv:
            kv[b"k"] = b"2"
            shutil.copy(index, copy)
            index.unlink()
            if then == "a copy":
                copy.replace(index)
            elif then == "the one before":
                (tmp_path / "before").replace(index)
            for ask in (lambda: reader[b"k"], lambda: len(reader), lambda: reader.get_many([b"k"])):
                with pytest.raises(StoreError, match="once who has it open for writing was closed") as raised:
                    ask()
                assert raised.value.errno == errno.ETIMEDOUT
        assert reader[b"k"] == b"2"


def test_keys_that_no_seed_puts_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entering what is new into what looked like an index ended in an error that has no meaning outside."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv[b"k"] = b"1"
    with attach.open_log(Log, path, "w", MANUAL, False, 64 << 10, (attach.NAME,)) as log:
        # `new` is 2, and was absent before.
        log.append(struct.pack("<HBBI", 3, 1, 1, 1) + b"new".ljust(8, b"\0") + b"2")

    def overfull(*_: object) -> None:
        raise Reseed("no bits of hash part the keys of one bucket")

    monkeypatch.setattr(attach, "catch_up", overfull)
    with opened(path, "w") as kv:
        assert agreeing(kv) == {b"k": b"1", b"new": b"2"}
