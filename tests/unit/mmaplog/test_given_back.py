"""Room that was made ahead is given back by who closes last."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from mmaplog import FlushPolicy, Log
from tests.unit.mmapio.processes import killed_after

RECORD = b"x" * 1000
STORED = 1016


def fill(log: Log, count: int = 5000) -> None:
    """Enough for windows made ready by the thread."""
    for _ in range(count):
        log.append(RECORD)


def tail_of(path: Path) -> Path:
    """The last segment."""
    return max(path.glob("*.seg"))


@pytest.mark.parametrize("policy", [FlushPolicy.MANUAL, FlushPolicy.NEVER])
@pytest.mark.parametrize("shared", [False, True])
def test_a_closed_log_is_no_larger_than_its_records(
    tmp_path: Path, policy: FlushPolicy, shared: bool
) -> None:
    """A program with many small logs would have megabytes of nothing in each."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=policy, shared=shared) as log:
        fill(log)
    found = tail_of(path).stat()
    assert found.st_size <= 4096 + 5000 * STORED + 2 * mmap.PAGESIZE
    assert found.st_blocks * 512 <= found.st_size + 2 * mmap.PAGESIZE
    with Log.open(path) as log:
        fill(log)
        assert len(log) == 10000
        assert log.verify().damages == ()


def test_only_the_last_writer_gives_back(tmp_path: Path) -> None:
    """Others may be about to append where the room is."""
    path = tmp_path / "log"
    first = Log.open(path, shared=True)
    second = Log.open(path, shared=True)
    fill(second, 100)
    size = tail_of(path).stat().st_size
    first.close()
    assert tail_of(path).stat().st_size == size
    fill(second, 100)
    second.close()
    assert tail_of(path).stat().st_size < size + 100 * STORED
    with Log.open(path, "r") as log:
        assert len(log) == 200


def test_who_reads_meanwhile_goes_on(tmp_path: Path) -> None:
    """What is cut off lies behind all records, and a reader has it mapped."""
    path = tmp_path / "log"
    log = Log.open(path)
    fill(log)
    with Log.open(path, "r") as reader:
        entries = reader.replay()
        follower = reader.follow(5000, timeout=0)
        assert next(entries).seq == 0
        log.close()
        assert [entry.seq for entry in entries] == list(range(1, 5000))
        assert list(follower) == []
        assert reader.verify().damages == ()
        with Log.open(path) as log:
            log.append(b"more")
        assert [entry.payload for entry in reader.follow(5000, timeout=0)] == [b"more"]


def test_what_a_killed_writer_made_ready_is_given_back_by_the_next(tmp_path: Path) -> None:
    """Whoever closes last, whoever made it."""
    path = tmp_path / "log"
    killed_after(lambda: fill(Log.open(path, flush_policy=FlushPolicy.MANUAL)))
    Log.open(path).close()
    assert tail_of(path).stat().st_size <= 4096 + 5000 * STORED + 2 * mmap.PAGESIZE


def test_a_roll_gives_back_what_it_leaves_unused(tmp_path: Path) -> None:
    """What is atomic does not fit into the rest of a segment, for which there are blocks already."""
    path = tmp_path / "log"
    batch = [bytes(100_000)] * 7
    with Log.open(path, segment_bytes=4 << 20, flush_policy=FlushPolicy.MANUAL) as log:
        with Log.open(path, "r") as reader:
            for _ in range(12):
                log.append_many(batch, atomic=True)
            full = sorted(path.glob("*.seg"))[:-1]
            assert len(full) == 2
            for each in full:
                # Blocks, and not the length: others may have it mapped.
                assert each.stat().st_blocks * 512 <= 4096 + 35 * 100_016 + 2 * mmap.PAGESIZE
            assert [bytes(each.payload) for each in reader] == batch * 12
        log.flush()
        assert log.verify().damages == ()
    with Log.open(path, "r") as log:
        assert [bytes(each.payload) for each in log] == batch * 12
