"""Full disks, failing syncs: an exception from the call that was hit, nothing half done, no lies later."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from mmapio import FlushPolicy
from mmaplog import Log, Poisoned
from tests.unit.mmapio.interposer import PRELUDE
from tests.unit.mmapio.processes import run_python
from tests.unit.mmapio.volume import fill, small_volume  # noqa: F401

MANUAL = FlushPolicy.MANUAL
NEVER = FlushPolicy.NEVER


@pytest.mark.parametrize("size", [100, 5000, 200_000], ids=["small", "medium", "larger than a segment"])
def test_a_full_disk_is_an_error_and_the_log_goes_on(small_volume: Path, size: int) -> None:  # noqa: F811
    """Whatever is out of space, the append raises before it writes; with room again the same handle works."""
    path = small_volume / "log"
    record = b"x" * size
    with Log.open(path, flush_policy=MANUAL, segment_bytes=64 << 10) as log:
        for round_ in range(3):
            ballast = fill(small_volume, leaving=round_ * 300_000)
            count = len(log)
            with pytest.raises(OSError, match="No space left") as raised:
                while True:
                    assert log.append(record) == count
                    count += 1
            assert raised.value.errno == errno.ENOSPC
            assert len(log) == log.committed == count
            with pytest.raises(OSError, match="No space left"):
                log.append(record)
            assert all(entry.payload == record for entry in log.replay())
            ballast.unlink()
            assert log.append(record) == count
            log.flush()
            assert log.durable == count + 1
        assert not list(path.glob("*.tmp"))
        count = len(log)
    with Log.open(path, flush_policy=MANUAL) as log:
        assert len(log) == count
    (path / "CONTROL").unlink()
    with Log.open(path, flush_policy=MANUAL) as log:
        assert len(list(log.replay())) == count


def test_a_disk_with_room_for_one_more_record_takes_it(small_volume: Path) -> None:  # noqa: F811
    """Space is taken in steps; where a whole step does not fit, what is needed may."""
    path = small_volume / "log"
    with Log.open(path, flush_policy=MANUAL) as log:
        log.append(b"x" * 60_000)
        fill(small_volume, leaving=16 << 10)
        log.append(b"y" * 8000)
        log.flush()
        assert [entry.payload[0] for entry in log.replay()] == [ord("x"), ord("y")]


def test_every_allocation_may_fail(tmp_path: Path, interposer: Path) -> None:
    """Step by step of a growing log, rolls included: the record is refused whole, and taken the next time."""
    code = (
        PRELUDE
        + """
from mmapio import FlushPolicy
from mmaplog import Log
log = Log.open(arguments[0], flush_policy=FlushPolicy.NEVER, segment_bytes=1 << 20)
model, refused = [], 0
for number in range(400):
    record = b"%d " % number * 2000
    fail(FALLOCATE, 1, errno.ENOSPC, 100)
    try:
        log.append(record)
    except OSError as error:
        assert error.errno == errno.ENOSPC
        refused += 1
        assert len(log) == len(model)
        fail(FALLOCATE, 0, 0)
        log.append(record)
    model.append(record)
assert [bytes(entry.payload) for entry in log.replay()] == model
log.close()
answer([refused, len(Log.open(arguments[0], "r"))])
"""
    )
    refused, length = run_python(code, tmp_path / "log", preload=interposer)
    assert refused >= 6
    assert length == 400


def test_a_log_on_a_full_disk_can_be_read_and_closed(small_volume: Path) -> None:  # noqa: F811
    """Neither needs space. A new log does, and leaves nothing that is in the way of a second try."""
    path = small_volume / "log"
    with Log.open(path, flush_policy=MANUAL) as log:
        log.append(b"x")
        ballast = fill(small_volume)
        log.append(b"y")
    with Log.open(path, "r") as reader:
        assert len(list(reader.replay())) == 2
    with Log.open(path, "w", flush_policy=MANUAL) as log:
        assert len(log) == 2
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            Log.open(small_volume / "new", flush_policy=MANUAL)
    ballast.unlink()
    with Log.open(small_volume / "new", flush_policy=MANUAL) as log:
        assert log.append(b"x") == 0


POISON = (
    PRELUDE
    + """
from mmapio import FlushPolicy
from mmaplog import Log
path, nth, records = arguments
log = Log.open(path, flush_policy=FlushPolicy.MANUAL, segment_bytes=64 << 10)
log.append(b"durable", durable=True)
for _ in range(records):
    log.append(b"x" * 30_000)
fail(FDATASYNC, nth, errno.EIO)
durable = log.durable
found = {"first": outcome(log.flush)}
before = syncs()
uses = [log.flush, lambda: log.append(b"y"), lambda: log.append(b"y", durable=True), log.flush]
found["then"] = [outcome(work) for work in [*uses, lambda: log.append(b"")]]
found["syncs after"] = sum(syncs()) - sum(before)
found["durable"] = [durable, log.durable]
found["committed"] = len(log)
reader = Log.open(path, "r")
found["reader"] = [len(list(reader.replay())), reader.durable]
found["close"] = [outcome(log.close), log.closed]
found["reopened"] = outcome(lambda: Log.open(path, "w", flush_policy=FlushPolicy.MANUAL))
answer(found)
"""
)


@pytest.mark.parametrize(("nth", "records"), [(1, 1), (1, 4), (2, 4), (3, 4), (4, 8)])
def test_a_failed_sync_poisons_the_log(tmp_path: Path, interposer: Path, nth: int, records: int) -> None:
    """The kernel forgets the pages that it could not write, so that a second sync succeeds and lies.

    Whichever of the syncs of one flush it is: a segment that was left, the tail, the directory.
    """
    found = run_python(POISON, tmp_path / "log", nth, records, preload=interposer)
    assert found["first"] == "FlushFailed"
    assert found["then"] == ["Poisoned"] * 5
    assert found["syncs after"] == 0
    assert found["durable"] == [1, 1]
    assert found["committed"] == records + 1
    assert found["reader"] == [records + 1, 1]
    assert found["close"] == ["", True]


def test_poison_ends_with_the_last_handle(tmp_path: Path, interposer: Path) -> None:
    """Appending behind records that may be lost would make a hole in the log.

    While a reader is there the next writer is refused; once it is alone it writes what was not durable anew.
    """
    path = tmp_path / "log"
    found = run_python(POISON, path, 1, 4, preload=interposer)
    assert found["reopened"] == "Poisoned"
    expected = [b"durable"] + [b"x" * 30_000] * 4
    with Log.open(path, "r") as reader:
        assert [bytes(entry.payload) for entry in reader.replay()] == expected
        with pytest.raises(Poisoned, match="close every other handle") as raised:
            Log.open(path, "w", flush_policy=MANUAL)
        assert raised.value.errno == errno.EIO
    with Log.open(path, "w", flush_policy=MANUAL) as log:
        assert log.recovered
        assert log.durable == 5
        assert log.append(b"next", durable=True) == 5
        assert [bytes(entry.payload) for entry in log.replay()] == [*expected, b"next"]
    (path / "CONTROL").unlink()
    with Log.open(path, "w", flush_policy=MANUAL) as log:
        assert [bytes(entry.payload) for entry in log.replay()] == [*expected, b"next"]


def test_a_failed_sync_of_a_durable_append_is_not_acknowledged(tmp_path: Path, interposer: Path) -> None:
    """The record is committed, and the caller is told that it is not durable."""
    code = (
        PRELUDE
        + """
from mmapio import FlushPolicy
from mmaplog import Log
log = Log.open(arguments[0], flush_policy=eval(arguments[1]))
log.append(b"one")
fail(FDATASYNC, 1, errno.ENOSPC)
first = outcome(lambda: log.append(b"two", durable=arguments[2]))
answer([first, outcome(lambda: log.append(b"three")), len(log)])
"""
    )
    for number, (policy, durable) in enumerate(
        [("ALWAYS", False), ("MANUAL", True), ("every_writes(2)", False)]
    ):
        found = run_python(code, tmp_path / f"{number}", f"FlushPolicy.{policy}", durable, preload=interposer)
        assert found == ["FlushFailed", "Poisoned", 2]


def test_a_failed_background_flush_surfaces_on_the_next_call(tmp_path: Path, interposer: Path) -> None:
    """There is nobody to raise it to at the time."""
    code = (
        PRELUDE
        + """
import time
from mmapio import FlushPolicy
from mmaplog import Log
log = Log.open(arguments[0], flush_policy=FlushPolicy.every_millis(5))
fail(FDATASYNC, 1, errno.EIO)
log.append(b"x")
for _ in range(30_000):
    kind = outcome(lambda: log.append(b"y"))
    if kind:
        break
    time.sleep(0.01)
answer([kind, outcome(log.flush), outcome(log.close)])
"""
    )
    assert run_python(code, tmp_path / "log", preload=interposer) == ["Poisoned", "Poisoned", ""]


def test_a_failed_flush_on_close_is_raised_and_the_log_is_closed(tmp_path: Path, interposer: Path) -> None:
    """Swallowed, the loss would never be known; left open, the lock would stay."""
    code = (
        PRELUDE
        + """
from mmapio import FlushPolicy
from mmaplog import Log
log = Log.open(arguments[0], flush_policy=FlushPolicy.MANUAL)
log.append(b"x")
fail(FDATASYNC, arguments[1], errno.EIO)
found = [outcome(log.close), log.closed, outcome(log.close)]
reader = Log.open(arguments[0], "r")
answer([*found, len(reader)])
"""
    )
    for nth in (1, 2):
        found = run_python(code, tmp_path / f"{nth}", nth, preload=interposer)
        assert found == ["FlushFailed", True, "", 1]


@pytest.mark.parametrize("call", ["FDATASYNC", "FALLOCATE", "PWRITE", "RENAMEAT"])
def test_creation_that_fails_anywhere_can_be_done_again(tmp_path: Path, interposer: Path, call: str) -> None:
    """Whichever system call it is that fails: the error comes out, and no left-over is in the way."""
    code = (
        PRELUDE
        + """
from mmapio import FlushPolicy
from mmaplog import Log
found = []
for nth in range(1, 30):
    path = f"{arguments[0]}/{nth}"
    before = library.interposer_count(call := eval(arguments[1]))
    fail(call, nth, errno.EIO)
    failed = outcome(lambda: Log.open(path, flush_policy=FlushPolicy.NEVER).close())
    made = library.interposer_count(call) - before
    library.interposer_fail(call, ctypes.c_long(0), ctypes.c_long(0), 0)
    log = Log.open(path, flush_policy=FlushPolicy.NEVER)
    found.append([failed != "", made >= nth, len(log), log.append(b"x")])
    log.close()
    if made < nth:
        break
answer(found)
"""
    )
    found = run_python(code, tmp_path, call, preload=interposer)
    assert len(found) >= 2
    for failed, reached, length, seq in found:
        assert failed == reached
        assert (length, seq) == (0, 0)


def test_a_quota_is_as_a_full_disk(tmp_path: Path, interposer: Path) -> None:
    """Where the disk was full, less was asked for; where a quota was reached, the record was refused."""
    code = (
        PRELUDE
        + """
from mmapio import FlushPolicy
from mmaplog import Log
log = Log.open(arguments[0], flush_policy=FlushPolicy.NEVER, segment_bytes=1 << 20)
for number in range(200):
    fail(FALLOCATE, 1, errno.EDQUOT, 1)
    log.append(b"%d " % number * 2000)
fail(FALLOCATE, 0, 0)
answer([len(log), log.stats()["segments"] > 1])
"""
    )
    assert run_python(code, tmp_path / "log", preload=interposer) == [200, True]
