"""Flushes, writes and closes that several threads make at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.mmapio.interposer import PRELUDE
from tests.unit.mmapio.processes import run_python

FLUSHES = ["mapped.flush", "lambda: mapped.flush_range(0, 10)"]

#: The call to be held, and what makes it.
FIRST = [("FDATASYNC", FLUSHES[0]), ("MSYNC", FLUSHES[1])]


def test_what_is_written_while_a_flush_runs_stays_on_the_books(tmp_path: Path, interposer: Path) -> None:
    """The kernel may have passed the page already: the sync promises nothing for it."""
    code = (
        PRELUDE
        + """
from mmapio import MemoryMappedFile
mapped = MemoryMappedFile.create_rw(arguments[0], 1 << 20)
mapped.flush()
books = []
for call, flush in ((FDATASYNC, mapped.flush), (MSYNC, lambda: mapped.flush_range(0, 100))):
    mapped.update_region(0, bytes(10))
    with Held(call, flush):
        mapped.update_region(10, bytes(50))
    books += [mapped.pending_bytes, mapped.needs_flush()]
    mapped.flush()
    books += [mapped.pending_bytes, mapped.needs_flush()]
answer(books)
"""
    )
    assert run_python(code, tmp_path / "file", preload=interposer) == [50, True, 0, False, 50, True, 0, False]


@pytest.mark.parametrize("second", FLUSHES)
def test_two_flushes_take_the_same_bytes_off_once(tmp_path: Path, interposer: Path, second: str) -> None:
    """Taken off by both, they take what was written since along, and a bound is passed unnoticed.

    A flush may wait for another to end: then the second is only tried for a moment, and made afterwards.
    """
    code = (
        PRELUDE
        + f"""
from mmapio import FlushPolicy, MemoryMappedFile
mapped = MemoryMappedFile.create_rw(arguments[0], 1 << 20, flush_policy=FlushPolicy.every_bytes(60))
mapped.flush()
mapped.update_region(0, bytes(10))
with Held(FDATASYNC, mapped.flush):
    second = threading.Thread(target={second})
    second.start()
    until_it_waits(second)
    waits = second.is_alive()
    if not waits:
        mapped.update_region(10, bytes(50))
second.join()
if waits:
    mapped.update_region(10, bytes(50))
books = [mapped.pending_bytes, mapped.needs_flush()]
mapped.update_region(60, bytes(10))
answer([books, mapped.pending_bytes, mapped.needs_flush()])
"""
    )
    assert run_python(code, tmp_path / "file", preload=interposer) == [[50, True], 0, False]


@pytest.mark.parametrize("second", FLUSHES)
@pytest.mark.parametrize(("call", "first"), FIRST)
def test_a_failure_that_one_thread_hears_of_is_no_success_of_another(
    tmp_path: Path, interposer: Path, call: str, first: str, second: str
) -> None:
    """The kernel reports a lost page once for an open file: whoever asks next is told that all is well."""
    code = (
        PRELUDE
        + f"""
from mmapio import MemoryMappedFile
mapped = MemoryMappedFile.create_rw(arguments[0], 4096)
mapped.flush()
mapped.update_region(0, bytes(10))
outcomes = []
fail({call}, 1, errno.EIO)
with Held({call}, {first}) as first:
    other = threading.Thread(target=lambda: outcomes.append(outcome({second})))
    other.start()
    # It may wait for the first to end; if it does not, it ends before.
    until_it_waits(other)
other.join()
answer([first.outcome, *outcomes])
"""
    )
    assert run_python(code, tmp_path / "file", preload=interposer) == ["FlushFailed", "FlushFailed"]


MEANWHILE: dict[str, str] = {
    "close": "mapped.close()",
    "unmap": "mapped.unmap()",
    "grow": "mapped.resize(1 << 20)",
    "shrink": "mapped.resize(1)",
    "drop": "del mapped",
    "flush": "mapped.flush()",
    "write": "mapped.update_region(0, b'x')",
}


@pytest.mark.parametrize("meanwhile", MEANWHILE.values(), ids=MEANWHILE.keys())
@pytest.mark.parametrize(("call", "first"), FIRST)
def test_what_another_thread_does_while_a_flush_runs(
    tmp_path: Path, interposer: Path, call: str, first: str, meanwhile: str
) -> None:
    """The handle and its mapping may be gone when the sync comes back, and the books too.

    What waits for the flush is let on with it.
    """
    code = (
        PRELUDE
        + f"""
from mmapio import FlushPolicy, MemoryMappedFile
def do():
    global mapped
    {meanwhile}
outcomes = []
for policy in (FlushPolicy.MANUAL, FlushPolicy.ALWAYS, FlushPolicy.NEVER):
    mapped = MemoryMappedFile.create_rw(arguments[0], 4096, reserve=1, flush_policy=policy)
    mapped.flush()
    mapped.update_region(0, bytes(10))
    with Held({call}, {first}) as first:
        other = threading.Thread(target=lambda: outcomes.append(outcome(do)))
        other.start()
        until_it_waits(other)
    other.join()
    alive = "mapped" in globals() and not mapped.closed
    outcomes += [first.outcome, outcome(mapped.flush) if alive else ""]
answer(outcomes)
"""
    )
    assert run_python(code, tmp_path / "file", preload=interposer) == [""] * 9


@pytest.mark.parametrize("work", ["mapped.resize(8192)", "mapped.punch_hole(0, 4096)"])
@pytest.mark.parametrize("policy", ["MANUAL", "ALWAYS", "every_writes(1)"])
def test_a_handle_that_is_closed_while_it_writes(
    tmp_path: Path, interposer: Path, work: str, policy: str
) -> None:
    """The write ends on closed books: where a sync belongs to it, it was not made, and that is no success."""
    code = (
        PRELUDE
        + f"""
from mmapio import FlushPolicy, MemoryMappedFile
mapped = MemoryMappedFile.create_rw(arguments[0], 4096, flush_policy=FlushPolicy.{policy})
mapped.flush()
with Held(FALLOCATE, lambda: {work}) as first:
    between = outcome(mapped.close)
answer([first.outcome, between, mapped.closed])
"""
    )
    found, *rest = run_python(code, tmp_path / "file", preload=interposer)
    assert rest == ["", True]
    syncs = policy == "ALWAYS" or (policy == "every_writes(1)" and "hole" in work)
    assert found == "Closed" if syncs else found in ("", "Closed")


@pytest.mark.parametrize("policy", ["MANUAL", "ALWAYS", "every_millis(1)"])
def test_two_threads_close_at_once(tmp_path: Path, interposer: Path, policy: str) -> None:
    """Both find something to flush; the second to come back finds the handle closed."""
    code = (
        PRELUDE
        + f"""
from mmapio import FlushPolicy, MemoryMappedFile
mapped = MemoryMappedFile.create_rw(arguments[0], 4096, flush_policy=FlushPolicy.{policy})
mapped.flush()
view = mapped.as_slice_mut(0, 10)
outcomes = []
with Held(FDATASYNC, mapped.close) as first:
    others = [threading.Thread(target=lambda: outcomes.append(outcome(mapped.close))) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        until_it_waits(other)
for other in others:
    other.join()
view.release()
answer([first.outcome, *outcomes, mapped.closed])
"""
    )
    assert run_python(code, tmp_path / "file", preload=interposer) == ["", "", "", "", True]
