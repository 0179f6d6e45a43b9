"""The file that the next segment is made of, which the preparer has ready before it is needed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mmapio import FlushPolicy, _os
from mmaplog import Log

RECORD = b"x" * 60_000
SEGMENT_BYTES = 2 << 20
SPARE_BYTES = 64 << 10


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log.open(tmp_path / "log", segment_bytes=SEGMENT_BYTES, flush_policy=FlushPolicy.MANUAL)


def spares(log: Log) -> list[int]:
    """The sizes of what this process has open of the log's directory that has no name."""
    found = []
    for number in Path("/proc/self/fd").iterdir():
        try:
            target = str(number.readlink())
            if target.startswith(f"{log.path}/") and target.endswith("(deleted)"):
                found.append(number.stat().st_size)
        except FileNotFoundError:
            pass  # the listing's own
    return found


def write_until(log: Log, done: Callable[[], bool]) -> bool:
    """Append until it is done, for ten segments at the most; whether it is."""
    for _ in range(10 * SEGMENT_BYTES // len(RECORD)):
        log.append(RECORD)
        if done():
            return True
    return False


def with_spare(log: Log) -> Log:
    """The same, once there is one. Skips where the file system has no files without a name."""
    try:
        os.close(os.open(log.path, os.O_TMPFILE | os.O_RDWR))
    except OSError as error:
        assert error.errno in (errno.EOPNOTSUPP, errno.EISDIR)
        pytest.skip("the file system has no files without a name: NOT TESTED")
    assert write_until(log, lambda: spares(log) == [SPARE_BYTES])
    return log


def named(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The list of what is given a first name from now on."""
    seen: list[str] = []
    real = _os.name_file

    def name_file(opened: _os.Descriptor, directory: _os.Descriptor, name: str) -> None:
        real(opened, directory, name)
        seen.append(name)

    monkeypatch.setattr(_os, "name_file", name_file)
    return seen


def test_a_fast_writer_rolls_to_it(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = named(monkeypatch)
    with with_spare(log):
        assert write_until(log, lambda: len(seen) == 3)
        segments = sorted(Path(log.path).glob("*.seg"))
        assert {name.removesuffix(".tmp") for name in seen} <= {segment.name for segment in segments}
        assert {bytes(entry.payload) for entry in log.replay()} == {RECORD}
        assert len(spares(log)) <= 1


def test_nothing_is_left_of_it(log: Log) -> None:
    path = Path(log.path)
    with with_spare(log):
        pass
    assert spares(log) == []
    assert not list(path.glob("*.tmp"))


def test_who_begins_to_sync_does_not_use_it(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """His segments are made of blocks that were written before."""
    with with_spare(log):
        seen = named(monkeypatch)
        for _ in range(10):
            log.append(b"few", durable=True)
        wanted = len(list(Path(log.path).glob("*.seg"))) + 2

        def flushed_and_done() -> bool:
            log.flush()
            return len(list(Path(log.path).glob("*.seg"))) == wanted

        assert write_until(log, flushed_and_done)
        assert seen == []
        assert spares(log) == []


@pytest.mark.parametrize("failure", [errno.ENOENT, errno.EXDEV, errno.EPERM, errno.ENOSPC])
def test_where_it_can_have_no_name_the_file_is_made_anew(
    log: Log, monkeypatch: pytest.MonkeyPatch, failure: int
) -> None:
    """As without /proc."""

    def name_file(opened: _os.Descriptor, directory: _os.Descriptor, name: str) -> None:
        raise OSError(failure, os.strerror(failure), name)

    with with_spare(log):
        monkeypatch.setattr(_os, "name_file", name_file)
        before = len(list(Path(log.path).glob("*.seg")))
        assert write_until(log, lambda: len(list(Path(log.path).glob("*.seg"))) == before + 3)
        assert {bytes(entry.payload) for entry in log.replay()} == {RECORD}
        assert len(spares(log)) <= 1


def test_a_forked_child_does_not_keep_it(log: Log) -> None:
    """Its blocks would stay taken for as long as the child lives."""
    with with_spare(log):
        pid = os.fork()
        if pid == 0:
            os._exit(len(spares(log)))
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert len(spares(log)) == 1
        assert log.append(b"more") == log.committed - 1


def test_a_record_that_is_larger_rolls_past_it(log: Log) -> None:
    with with_spare(log):
        count = log.committed
        log.append(b"y" * (3 << 20))
        log.append(RECORD)
        assert [len(entry.payload) for entry in log.replay(count)] == [3 << 20, len(RECORD)]
