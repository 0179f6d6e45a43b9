"""A writer whose own files are cut under it says so, acknowledges nothing more, and lets the process live."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mmapio import FlushPolicy, MappingFault
from mmapkv import KVStore
from mmaplog import Log
from tests.unit.mmapio.processes import in_child

COUNT = 2000
FILES = ["*.seg", "INDEX*", "CONTROL"]

#: What a writer does after the cut; each must raise, at the latest at the second try.
USES: dict[str, Callable[[KVStore], object]] = {
    "put": lambda kv: [kv.put(b"%d" % number, b"new") for number in range(COUNT)],
    "put durable": lambda kv: kv.put(b"1", b"new", durable=True),
    "a new key": lambda kv: [kv.put(b"new %d" % number, b"new") for number in range(COUNT)],
    "delete": lambda kv: [kv.pop(b"%d" % number) for number in range(COUNT)],
    "items": lambda kv: list(kv.items()),
    "clear": lambda kv: kv.clear(),
}


def filled(path: Path) -> KVStore:
    """A store that is open for writing, of some segments, with something that is not flushed."""
    kv = KVStore.open(path, segment_bytes=1 << 17, flush_policy=FlushPolicy.MANUAL)
    for number in range(COUNT):
        kv[b"%d" % number] = b"value %d" % number * 20
    return kv


def cut(path: Path, pattern: str) -> None:
    """Empty the files of that name."""
    for file in path.glob(pattern):
        os.truncate(file, 0)


def outcome(use: Callable[[], object]) -> str:
    """The name of the exception, or nothing."""
    try:
        use()
    except Exception as error:
        return type(error).__name__
    return ""


@pytest.mark.parametrize("pattern", FILES)
@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_a_writer_raises_and_the_process_lives(
    tmp_path: Path, pattern: str, use: Callable[[KVStore], object]
) -> None:
    """Its stores are raw: without a page below them they ended the process, whoever else it served."""

    def work() -> list[str]:
        kv = filled(tmp_path / "store")
        cut(tmp_path / "store", pattern)
        return [outcome(lambda: use(kv)), outcome(lambda: use(kv)), outcome(lambda: kv.put(b"1", b"after"))]

    first, second, third = in_child(work)
    assert first in ("", "MappingFault")
    # What needs none of the pages that are gone may go on: items() of a store without CONTROL, say.
    assert "MappingFault" in (first, second, third)
    assert third == "MappingFault"


@pytest.mark.parametrize("pattern", FILES)
def test_a_get_of_a_writer_is_right_or_raises(tmp_path: Path, pattern: str) -> None:
    """Zero pages below the index are empty buckets: every key would be absent."""

    def work() -> set[str]:
        kv = filled(tmp_path / "store")
        cut(tmp_path / "store", pattern)
        found = set()
        for number in range(COUNT):
            try:
                value = kv.get(b"%d" % number)
            except MappingFault:
                found.add("MappingFault")
            else:
                found.add("right" if value == b"value %d" % number * 20 else f"{number}: {value!r}")
        return found

    found = in_child(work)
    assert found <= {"right", "MappingFault"}
    assert "MappingFault" in found or pattern == "CONTROL"


@pytest.mark.parametrize("pattern", ["*.seg", "CONTROL"])
def test_nothing_is_acknowledged_as_durable_after_a_cut(tmp_path: Path, pattern: str) -> None:
    """The sync itself succeeds: there is nothing left that it could fail to write."""

    def work() -> list[str]:
        log = Log.open(tmp_path / "log", flush_policy=FlushPolicy.MANUAL)
        for number in range(COUNT):
            log.append(b"record %d" % number)
        cut(tmp_path / "log", pattern)
        appended = outcome(lambda: [log.append(b"x" * 5000) for _ in range(10)])
        durably = outcome(lambda: log.append(b"x", durable=True))
        return [appended, durably, outcome(log.flush), outcome(log.close)]

    appended, *rest = in_child(work)
    assert appended in ("", "MappingFault")
    assert rest == ["MappingFault", "MappingFault", "MappingFault"]


def test_a_cut_behind_what_was_flushed_is_told_by_the_flush(tmp_path: Path) -> None:
    """Nobody touched a page that is gone since; the length of the file tells."""

    def work() -> str:
        log = Log.open(tmp_path / "log", flush_policy=FlushPolicy.MANUAL)
        log.append(b"x" * 50_000)
        cut(tmp_path / "log", "*.seg")
        return outcome(log.flush)

    assert in_child(work) == "MappingFault"


def test_a_store_that_is_whole_goes_on_beside_one_that_is_cut(tmp_path: Path) -> None:
    """A fault concerns the files that were cut, and no other of the process."""

    def work() -> tuple[str, bytes]:
        cut_one, whole = filled(tmp_path / "cut"), filled(tmp_path / "whole")
        cut(tmp_path / "cut", "*.seg")
        told = outcome(lambda: [cut_one.put(b"%d" % number, b"new") for number in range(COUNT)])
        whole[b"after"] = b"as ever"
        whole.flush()
        return told, whole[b"after"]

    assert in_child(work) == ("MappingFault", b"as ever")


def log_of(path: Path) -> tuple[Log, Path]:
    """A log that nearly fills what was allocated for it, and its segment."""
    log = Log.open(path, flush_policy=FlushPolicy.MANUAL)
    log.append_many([b"%03d" % number + b"x" * 97 for number in range(500)])
    (segment,) = path.glob("*.seg")
    return log, segment


STEPS: dict[str, Callable[[Log], object]] = {
    "growing": lambda log: log.append(b"y" * 10_000),
    "growing by many": lambda log: log.append_many([b"y" * 10_000], durable=True),
    "looking at the first record": lambda log: log[0],
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_growth_does_not_make_a_cut_unseen(tmp_path: Path, step: Callable[[Log], object]) -> None:
    """It filled with zeros what was gone, no page was missing any more, and all of it was called durable."""

    def work() -> list[str]:
        log, segment = log_of(tmp_path / "log")
        os.truncate(segment, 8192)
        outcome(lambda: step(log))
        return [outcome(log.flush), outcome(lambda: log.wait_durable(400))]

    assert in_child(work) == ["MappingFault"] * 2


def test_growth_of_an_index_does_not_make_a_cut_unseen(tmp_path: Path) -> None:
    """Keys by the thousand were absent without a word."""

    def grown(path: Path, stop: int) -> tuple[KVStore, int]:
        """A store that was filled until its index grew, or up to a key, and the key."""
        kv = KVStore.open(path, flush_policy=FlushPolicy.MANUAL)
        # The close before left no more of the file than was in use.
        kv[b"first"] = b"v"
        number, size = 0, (path / "INDEX").stat().st_size
        while number < stop and (path / "INDEX").stat().st_size == size:
            kv[b"%d" % number] = b"v"
            number += 1
        return kv, number

    def work() -> str:
        twin, number = grown(tmp_path / "twin", 100_000)
        twin.close()
        shutil.copytree(tmp_path / "empty", tmp_path / "store")
        kv, _ = grown(tmp_path / "store", number - 1)
        index = tmp_path / "store" / "INDEX"
        os.truncate(index, index.stat().st_size - 65536)
        return outcome(lambda: kv.put(b"%d" % (number - 1), b"v"))

    # Copies have the same seed, so that their indexes grow at the same key.
    KVStore.open(tmp_path / "empty").close()
    shutil.copytree(tmp_path / "empty", tmp_path / "twin")
    assert in_child(work) == "MappingFault"


def test_an_append_after_a_flush_that_was_refused(tmp_path: Path) -> None:
    """The flush had marked the file, and the append looked for a room that never came."""

    def work() -> list[str]:
        log = Log.open(tmp_path / "log", flush_policy=FlushPolicy.MANUAL)
        log.append(b"x" * 1000)
        for segment in (tmp_path / "log").glob("*.seg"):
            os.truncate(segment, 8192)
        return [outcome(log.flush), outcome(lambda: log.append(b"small"))] * 2

    assert in_child(work) == ["MappingFault"] * 4
