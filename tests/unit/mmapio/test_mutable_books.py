"""A writable view on the books of its file: what it counts as while it is out, and when a policy syncs it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmapio import MemoryMappedFile, ResizeFailed
from tests.unit.mmapio.interposer import PRELUDE
from tests.unit.mmapio.processes import run_python


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file of these tests lies."""
    return tmp_path / "file"


@pytest.fixture
def mapped(path: Path) -> Iterator[MemoryMappedFile]:
    """A file of a page that begins with ``abcdef``."""
    with MemoryMappedFile.create_rw(path, 4096) as made:
        made.update_region(0, b"abcdef")
        made.flush()
        yield made


def test_a_view_counts_while_it_is_out(mapped: MemoryMappedFile) -> None:
    """Nobody can know which of its bytes are being stored: all are owed until it is back, and flushed."""
    first, second = mapped.as_slice_mut(0, 100), mapped.as_slice_mut(50, 100)
    assert mapped.pending_bytes == 200
    assert mapped.needs_flush()
    first.release()
    assert mapped.pending_bytes == 200
    mapped.flush()
    assert mapped.pending_bytes == 100
    assert mapped.needs_flush()
    del second
    assert mapped.pending_bytes == 100
    mapped.flush()
    assert (mapped.pending_bytes, mapped.needs_flush()) == (0, False)
    with mapped.as_slice_mut(7, 0):
        assert (mapped.pending_bytes, mapped.needs_flush()) == (0, False)
    assert (mapped.pending_bytes, mapped.needs_flush()) == (0, False)


def test_a_buffer_outlives_the_view_and_stays_on_the_books(mapped: MemoryMappedFile, path: Path) -> None:
    """An array that was made in the block and escaped it goes on storing to the file."""
    with mapped.as_slice_mut(0, 6) as view:
        outer, inner = memoryview(view), memoryview(view)
    outer[0] = ord("x")
    assert path.read_bytes()[:2] == b"xb"
    mapped.flush()
    assert mapped.pending_bytes == 6
    with pytest.raises(ResizeFailed, match="live view reaches to byte 6"):
        mapped.resize(5)
    outer.release()
    assert mapped.pending_bytes == 6
    inner.release()
    mapped.flush()
    assert mapped.pending_bytes == 0
    mapped.resize(5)


def test_always_syncs_when_a_view_is_given_back(path: Path, interposer: Path) -> None:
    """Not at each store, which nobody sees, nor before the last buffer has gone."""
    code = (
        PRELUDE
        + """
from mmapio import FlushPolicy, MemoryMappedFile
mapped = MemoryMappedFile.create_rw(arguments[0], 4096, flush_policy=FlushPolicy.ALWAYS)
mapped.flush()
view = mapped.as_slice_mut(0, 6)
def store():
    view[0] = 1
    view[1:3] = b"xy"
figures = [synced_by(store), synced_by(view.release), synced_by(view.release)]
view = mapped.as_slice_mut(0, 6)
buffer = memoryview(view)
figures += [synced_by(view.release), synced_by(buffer.release)]
view = mapped.as_slice_mut(0, 6)
def drop():
    global view
    del view
figures += [synced_by(drop), synced_by(lambda: mapped.as_slice_mut(0, 0).release())]
answer([figures, mapped.pending_bytes])
"""
    )
    assert run_python(code, path, preload=interposer) == [[0, 1, 0, 0, 1, 1, 0], 0]


def test_a_sync_that_fails_on_giving_back_is_heard_of(path: Path, interposer: Path) -> None:
    """From ``release`` at once; where nothing can be raised, from the handle's next call."""
    code = (
        PRELUDE
        + """
from mmapio import FlushPolicy, MemoryMappedFile
ends = []
for end in ("release", "with", "drop", "buffer"):
    mapped = MemoryMappedFile.create_rw(arguments[0], 4096, flush_policy=FlushPolicy.ALWAYS)
    view = mapped.as_slice_mut(0, 6)
    buffer = memoryview(view) if end == "buffer" else None
    other = mapped.as_slice_mut(8, 1)
    fail(FDATASYNC, 1, errno.EIO)
    def give_back():
        global view, buffer
        if end == "with":
            with view:
                pass
        elif end == "drop":
            del view
        else:
            view.release()
            if end == "buffer":
                buffer.release()
    ends.append([outcome(give_back), outcome(mapped.flush), outcome(lambda: other.__setitem__(0, 1))])
    mapped.close()
answer(ends)
"""
    )
    heard, silent = ["FlushFailed"] * 3, ["", "FlushFailed", "FlushFailed"]
    assert run_python(code, path, preload=interposer) == [heard, heard, silent, silent]


def test_a_view_that_the_collector_takes_is_on_the_books(mapped: MemoryMappedFile) -> None:
    """The collector empties what it takes before it frees it; a view must know until then what it owes."""
    gc.disable()
    try:
        view = mapped.as_slice_mut(0, 6)
        cycle: list[object] = [view]
        cycle.append(cycle)
        view[0] = ord("x")
        del view, cycle
        assert mapped.pending_bytes == 6
        gc.collect()
    finally:
        gc.enable()
    assert mapped.pending_bytes == 6
    mapped.flush()
    assert (mapped.pending_bytes, mapped.needs_flush()) == (0, False)
    mapped.resize(1)
