"""After close, and in a forked child, a handle is of no use and does no harm."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest

from mmapio import Closed, InvalidSize, MemoryMappedFile, MmapAdvice, OutOfBounds
from tests.unit.mmapio.processes import in_child, outcome

USES: dict[str, Callable[[MemoryMappedFile], object]] = {
    "as_slice": lambda mapped: mapped.as_slice(),
    "as_slice with a range": lambda mapped: mapped.as_slice(0, 1),
    "read_bytes": lambda mapped: mapped.read_bytes(0, 1),
    "read_into": lambda mapped: mapped.read_into(0, bytearray(1)),
    "chunks": lambda mapped: mapped.chunks(1),
    "chunks_owned": lambda mapped: mapped.chunks_owned(1),
    "pages": lambda mapped: mapped.pages(),
    "pages_owned": lambda mapped: mapped.pages_owned(),
    "reader": lambda mapped: mapped.reader(),
    "index": lambda mapped: mapped[0],
    "index with a range": lambda mapped: mapped[0:1],
    "resident": lambda mapped: mapped.resident(),
    "advise": lambda mapped: mapped.advise(0, 1, MmapAdvice.NORMAL),
    "prefetch_range": lambda mapped: mapped.prefetch_range(0, 1),
    "lock": lambda mapped: mapped.lock(0, 1),
    "unlock": lambda mapped: mapped.unlock(0, 1),
    "lock_all": lambda mapped: mapped.lock_all(),
    "unlock_all": lambda mapped: mapped.unlock_all(),
    "touch_pages": lambda mapped: mapped.touch_pages(),
    "touch_pages_range": lambda mapped: mapped.touch_pages_range(0, 1),
    "huge_pages": lambda mapped: mapped.huge_pages,
    "watch": lambda mapped: mapped.watch(print),
    "is_empty": lambda mapped: mapped.is_empty(),
    "address": lambda mapped: mapped.address,
    "unmap": lambda mapped: mapped.unmap(),
    "atomic_u32": lambda mapped: mapped.atomic_u32(0),
    "atomic_u64": lambda mapped: mapped.atomic_u64(0),
    "atomic_u32_slice": lambda mapped: mapped.atomic_u32_slice(0, 1),
    "atomic_u64_slice": lambda mapped: mapped.atomic_u64_slice(0, 1),
    "flush_range": lambda mapped: mapped.flush_range(0, 1),
    "as_slice_mut": lambda mapped: mapped.as_slice_mut(),
    "chunks_mut": lambda mapped: mapped.chunks_mut(1),
    "punch_hole": lambda mapped: mapped.punch_hole(0, 1),
    "assign to an index": lambda mapped: mapped.__setitem__(0, 1),
    "assign to a range": lambda mapped: mapped.__setitem__(slice(0, 1), b"x"),
    "update_region": lambda mapped: mapped.update_region(0, b"x"),
    "update_region with nothing": lambda mapped: mapped.update_region(0, b""),
    "resize": lambda mapped: mapped.resize(8192),
    "refresh": lambda mapped: mapped.refresh(),
    "flush": lambda mapped: mapped.flush(),
    "fileno": lambda mapped: mapped.fileno(),
    "reserved": lambda mapped: mapped.reserved,
    "len": len,
    "with": lambda mapped: mapped.__enter__(),
}
CHANGES = [
    "update_region",
    "update_region with nothing",
    "resize",
    "flush",
    "flush_range",
    "as_slice_mut",
    "chunks_mut",
    "punch_hole",
    "assign to an index",
    "assign to a range",
]


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_a_closed_handle_refuses(tmp_path: Path, use: Callable[[MemoryMappedFile], object]) -> None:
    """The memory is gone; the exception is all that stands between a mistake and SIGSEGV."""
    mapped = MemoryMappedFile.create_rw(tmp_path / "file", 4096)
    assert not mapped.closed
    mapped.close()
    mapped.close()
    assert mapped.closed
    with pytest.raises(Closed, match="open it again") as raised:
        use(mapped)
    assert isinstance(raised.value, ValueError)
    assert raised.value.filename == mapped.path


def test_every_public_method_is_among_those_tested() -> None:
    """A new method must be added to the table above, or say here why it needs no open file."""
    makers = {"create_rw", "open_rw", "open_ro", "open_cow", "open_or_create", "from_file", "from_descriptor"}
    told = {"path", "mode", "closed", "region", "flush_policy", "pending_bytes", "needs_flush"}
    harmless = makers | told | {"builder", "close", "as_slice_bytes"}
    names = [name for name in dir(MemoryMappedFile) if not name.startswith("_")]
    # The asynchronous twins are tested with the others of their kind.
    public = {name for name in names if not name.endswith("_async")}
    assert public - harmless == {name for name in USES if " " not in name} - {"len", "with", "index"}


def test_a_closed_handle_still_says_what_it_was(tmp_path: Path) -> None:
    """For messages and logs."""
    mapped = MemoryMappedFile.create_rw(tmp_path / "file", 4096)
    assert "4096 bytes" in repr(mapped)
    mapped.close()
    assert "closed" in repr(mapped)
    assert mapped.path == str(tmp_path / "file")


def test_leaving_the_block_closes_even_after_an_exception(tmp_path: Path) -> None:
    """And the exception goes on its way."""
    with (
        pytest.raises(ZeroDivisionError),
        MemoryMappedFile.create_rw(tmp_path / "file", 4096) as mapped,
    ):
        raise ZeroDivisionError
    assert mapped.closed


def test_a_buffer_that_closes_the_handle_while_it_is_written(tmp_path: Path) -> None:
    """Getting hold of a buffer may run Python code; the memory must be looked at again after it."""
    mapped = MemoryMappedFile.create_rw(tmp_path / "file", 4096)

    class Index:
        def __index__(self) -> int:
            mapped.close()
            return 0

    with pytest.raises((Closed, OutOfBounds)):
        mapped.update_region(Index(), b"x")
    mapped = MemoryMappedFile.create_rw(tmp_path / "file", 4096)
    with pytest.raises((Closed, OutOfBounds)):
        mapped.as_slice(Index(), 1)
    for use in (
        lambda mapped: mapped.read_bytes(0, Index()),
        lambda mapped: mapped.read_into(Index(), bytearray(1)),
        lambda mapped: mapped[Index()],
        lambda mapped: mapped[Index() :],
        lambda mapped: mapped.__setitem__(Index(), 1),
        lambda mapped: mapped.__setitem__(slice(Index(), 1), b"x"),
        lambda mapped: mapped.__setitem__(0, Index()),
        lambda mapped: mapped.as_slice_mut(Index(), 1),
        lambda mapped: mapped.atomic_u64(Index()),
        lambda mapped: mapped.atomic_u64_slice(0, Index()),
        lambda mapped: mapped.flush_range(0, Index()),
        lambda mapped: mapped.chunks(Index()),
        lambda mapped: mapped.lock(0, Index()),
        lambda mapped: mapped.resize(Index()),
    ):
        mapped = MemoryMappedFile.create_rw(tmp_path / "file", 4096)
        with pytest.raises((Closed, InvalidSize)):
            use(mapped)
        assert mapped.closed


@pytest.mark.parametrize("name", CHANGES)
def test_a_forked_child_cannot_change_what_it_inherited(tmp_path: Path, name: str) -> None:
    """Two processes that both think they are the writer write the same bytes twice."""
    with MemoryMappedFile.create_rw(tmp_path / "file", 4096) as mapped:
        kind, text = in_child(lambda: outcome(lambda: USES[name](mapped)))
        assert kind == "Closed"
        assert "child" in text
        USES[name](mapped)


def test_a_forked_child_may_read_and_open_again(tmp_path: Path) -> None:
    """Reading harms nobody, and a handle of its own is no longer the parent's."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, 4096) as mapped:
        mapped.update_region(0, b"parent")
        view = mapped.as_slice(0, 6)

        def child() -> tuple[bytes, bytes]:
            with MemoryMappedFile.open_rw(path) as own:
                own.update_region(6, b"child")
            return bytes(view), bytes(mapped.as_slice(0, 11))

        assert in_child(child) == (b"parent", b"parentchild")
        assert mapped.read_bytes(0, 11) == b"parentchild"


def test_what_a_child_closes_or_collects_stays_open_in_the_parent(tmp_path: Path) -> None:
    """The child's end must take nothing of the parent's with it."""
    mapped = MemoryMappedFile.create_rw(tmp_path / "file", 4096)
    holder = [mapped]

    def child() -> int:
        mapped.close()
        holder.clear()
        return gc.collect() >= 0

    assert in_child(child)
    mapped.update_region(0, b"x")
    mapped.resize(8192)
    mapped.flush()
    mapped.close()


def test_a_grandchild_is_a_child(tmp_path: Path) -> None:
    """The rule holds for every generation."""
    with MemoryMappedFile.create_rw(tmp_path / "file", 4096) as mapped:
        found = in_child(lambda: in_child(lambda: outcome(lambda: mapped.update_region(0, b"x"))))
        assert found[0] == "Closed"


def test_a_reader_inherited_by_a_child_goes_on(tmp_path: Path) -> None:
    """It never could do any harm."""
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    with MemoryMappedFile.open_ro(path) as mapped:
        assert in_child(lambda: (bytes(mapped.as_slice()), mapped.refresh())) == (b"abc", 3)
