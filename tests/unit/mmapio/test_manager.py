"""Whole-file operations by path."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmapio
from mmapio import (
    PAGE_SIZE,
    Closed,
    InvalidMode,
    InvalidSize,
    MemoryMappedFile,
    MmapMode,
    OutOfBounds,
    align_up,
    copy_mmap,
    create_mmap,
    delete_mmap,
    load_mmap,
    page_size,
    update_region,
    write_mmap,
)
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapio.interposer import PRELUDE
from tests.unit.mmapio.processes import outcome, run_python, unprivileged
from tests.unit.mmapio.tracing import traced
from tests.unit.mmapio.volume import VOLUME_BYTES, small_volume  # noqa: F401

CONTENT = os.urandom(3 * PAGE_SIZE + 17)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file to be copied."""
    made = tmp_path / "source"
    made.write_bytes(CONTENT)
    return made


def test_creating_writing_flushing_loading_deleting(tmp_path: Path) -> None:
    """The crate's way through, from one end to the other."""
    path = tmp_path / "file"
    with create_mmap(path, 100) as mapped:
        assert (mapped.mode, len(mapped)) == (MmapMode.READ_WRITE, 100)
        update_region(mapped, 10, b"abc")
        mmapio.flush(mapped)
        with pytest.raises(OutOfBounds):
            update_region(mapped, 98, b"abc")
    write_mmap(path, 13, b"def")
    for mode in MmapMode:
        with load_mmap(path, mode) as mapped:
            assert mapped.mode is mode
            assert mapped[10:16] == b"abcdef"
    with load_mmap(path) as mapped:
        assert mapped.mode is MmapMode.READ_ONLY
        with pytest.raises(InvalidMode):
            update_region(mapped, 0, b"x")
        mmapio.flush(mapped)
        delete_mmap(path)
        assert not path.exists()
        assert mapped[10:16] == b"abcdef"
    with pytest.raises(Closed):
        mmapio.flush(mapped)


def test_writing_by_path_is_durable(source: Path, interposer: Path) -> None:
    """There is no handle left that could be flushed later."""
    code = (
        PRELUDE
        + """
from mmapio import write_mmap
figures = [synced_by(lambda: write_mmap(arguments[0], 5, b"x"))]
fail(FDATASYNC, 1, errno.EIO)
answer([*figures, outcome(lambda: write_mmap(arguments[0], 5, b"x"))])
"""
    )
    assert run_python(code, source, preload=interposer) == [1, "FlushFailed"]


@pytest.mark.parametrize(("offset", "data"), [(len(CONTENT), b"x"), (len(CONTENT) - 1, b"xy"), (-1, b"x")])
def test_writing_by_path_writes_all_or_nothing(source: Path, offset: int, data: bytes) -> None:
    """It neither extends the file nor writes what fits."""
    with unchanged(source.parent), pytest.raises(OutOfBounds, match=f"{len(CONTENT)} bytes"):
        write_mmap(source, offset, data)


def test_what_is_not_there_cannot_be_loaded_written_or_deleted(tmp_path: Path) -> None:
    """Writing creates nothing; the error is the builtin one, and names the file."""
    missing = tmp_path / "missing"
    uses: list[Callable[[], object]] = [
        lambda: load_mmap(missing),
        lambda: load_mmap(missing, MmapMode.READ_WRITE),
        lambda: write_mmap(missing, 0, b"x"),
        lambda: delete_mmap(missing),
    ]
    for use in uses:
        with pytest.raises(FileNotFoundError) as raised:
            use()
        assert raised.value.filename == str(missing)
    with pytest.raises(IsADirectoryError):
        delete_mmap(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [0, -1, 2**63])
def test_a_size_that_no_file_has_creates_none(tmp_path: Path, size: int) -> None:
    """Nor empties the one that is there."""
    with unchanged(tmp_path), pytest.raises(InvalidSize):
        create_mmap(tmp_path / "new", size)


def test_the_size_of_a_page() -> None:
    """As the system has it."""
    assert page_size() == PAGE_SIZE == resource.getpagesize()


@pytest.mark.parametrize("alignment", [1, 2, 3, 8, 4096, 2**21, 2**70])
@pytest.mark.parametrize("value", [0, 1, 7, 8, 9, 4095, 4096, 4097, 2**63 - 1, 2**64])
def test_aligning_up(value: int, alignment: int) -> None:
    """The least multiple that is not below; what is aligned stays, and nothing wraps."""
    found = align_up(value, alignment)
    assert found % alignment == 0
    assert 0 <= found - value < alignment


@pytest.mark.parametrize(("value", "alignment"), [(1.5, 4), (4, 1.5), ("4", 4), (4, None)])
def test_aligning_what_is_no_integer(value: Any, alignment: Any) -> None:
    """An offset of 4.0 fails at the next call, far from the mistake."""
    with pytest.raises(TypeError):
        align_up(value, alignment)


@pytest.mark.parametrize("alignment", [0, -1, -4096])
def test_an_alignment_that_is_none(alignment: int) -> None:
    """Dividing by it says nothing."""
    with pytest.raises(ValueError, match=f"at least 1, not {alignment}"):
        align_up(1, alignment)


WAYS = ("reflink", "copy_file_range", "read and write")


def test_a_copy_is_the_same_and_says_how_it_was_made(source: Path) -> None:
    """Whether blocks are shared decides what a copy costs: the caller may want to know."""
    target = source.with_name("target")
    assert copy_mmap(source, target) in WAYS
    assert target.read_bytes() == source.read_bytes() == CONTENT
    assert sorted(path.name for path in source.parent.iterdir()) == ["source", "target"]
    write_mmap(target, 0, b"apart")
    assert source.read_bytes() == CONTENT


def test_a_copy_holds_what_is_mapped_and_not_flushed(source: Path) -> None:
    """Stores through a mapping are in the page cache, where every copy begins."""
    with MemoryMappedFile.open_rw(source) as mapped:
        mapped.update_region(0, b"late")
        copy_mmap(source, source.with_name("target"))
    assert source.with_name("target").read_bytes() == b"late" + CONTENT[4:]


def test_a_copy_is_durable_before_it_has_the_name(source: Path, tmp_path: Path) -> None:
    """The other way round a power cut leaves an empty file under the name of a good one."""
    code = """
from mmapio import copy_mmap
answer(copy_mmap(arguments[0], arguments[1]))
"""
    events = "openat,ioctl,copy_file_range,fsync,fdatasync,rename,renameat,renameat2"
    trace = tmp_path / "trace"
    target = tmp_path / "target"
    how, calls = traced(
        code, source, target, events=events, trace=trace, lacking="the order of a copy's syncs"
    )
    begin = next(
        at for at, call in enumerate(calls) if call.name == "openat" and str(source) in call.arguments[1]
    )
    tail = [call for call in calls[begin:] if call.name not in ("openat", "ioctl", "copy_file_range")]
    assert [call.name[:8] for call in tail] == ["fdatasyn", "renameat", "fdatasyn"]
    assert tail[0].arguments != tail[2].arguments
    assert str(target.name) in tail[1].arguments[3]
    assert how in WAYS
    assert ("copy_file_range" in [call.name for call in calls]) == (how != "reflink")


def test_whoever_maps_the_old_file_keeps_it(source: Path) -> None:
    """Writing over it in place would change the bytes below a reader, or take the pages away: SIGBUS."""
    target = source.with_name("target")
    target.write_bytes(b"old" * PAGE_SIZE)
    with MemoryMappedFile.open_ro(target) as before, MemoryMappedFile.open_rw(target) as writer:
        view = before.as_slice()
        copy_mmap(source, target)
        assert bytes(view) == b"old" * PAGE_SIZE
        writer.update_region(0, b"OLD")
        assert before[0:6] == b"OLDold"
        assert target.read_bytes() == CONTENT
        with MemoryMappedFile.open_ro(target) as after:
            assert bytes(after.as_slice()) == CONTENT


FAILURES = {
    "the sync": "fail(FDATASYNC, 1, errno.EIO)",
    "the rename": "fail(RENAMEAT, 1, errno.EIO)",
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
def test_a_copy_that_fails_leaves_everything_as_it_was(source: Path, interposer: Path, failure: str) -> None:
    """The old file whole, and no half of a new one beside it."""
    target = source.with_name("target")
    target.write_bytes(b"old")
    code = (
        PRELUDE + f"from mmapio import copy_mmap\n{failure}\nanswer(outcome(lambda: copy_mmap(*arguments)))"
    )
    with unchanged(source.parent):
        assert run_python(code, source, target, preload=interposer) == "OSError"


def test_a_copy_to_a_full_disk_leaves_everything_as_it_was(small_volume: Path, source: Path) -> None:  # noqa: F811
    """As above, by the system itself."""
    target = small_volume / "target"
    target.write_bytes(b"old")
    with source.open("ab") as file:
        file.write(os.urandom(VOLUME_BYTES))
    with unchanged(small_volume), pytest.raises(OSError, match="No space left"):
        copy_mmap(source, target)
    source.write_bytes(CONTENT)
    assert copy_mmap(source, target) in WAYS
    assert target.read_bytes() == CONTENT


def test_an_empty_file_is_copied(tmp_path: Path) -> None:
    """There is nothing to map, and still something to copy."""
    (tmp_path / "source").touch()
    copy_mmap(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").stat().st_size == 0


def test_a_sparse_file_stays_sparse(tmp_path: Path) -> None:
    """Mapped files are sparse more often than not: 1 TiB with one page in it must not fill a disk."""
    source, target, size = tmp_path / "source", tmp_path / "target", 64 << 20
    with MemoryMappedFile.create_rw(source, size, sparse=True) as mapped:
        mapped.update_region(size // 2, b"data")
    copy_mmap(source, target)
    assert target.stat().st_size == size
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 <= size // 8


def test_a_copy_onto_itself_is_refused_or_harmless(source: Path) -> None:
    """By another name, too: reading what was just truncated is how copies lose files."""
    (source.parent / "link").symlink_to(source)
    (source.parent / "hard").hardlink_to(source)
    for target in (source, source.parent / "." / "source", source.parent / "link", source.parent / "hard"):
        with contextlib.suppress(OSError):
            copy_mmap(source, target)
        assert source.read_bytes() == CONTENT
        assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_what_is_no_file_is_neither_copied_nor_replaced(source: Path, kind: str) -> None:
    """Renaming over a FIFO, or a device, removes it: as root, ``/dev/null`` becomes a file."""
    strange = source.with_name("strange")
    strange.mkdir() if kind == "directory" else os.mkfifo(strange)
    with unchanged(source.parent):
        for pair in ((source, strange), (strange, source.with_name("new"))):
            with pytest.raises(OSError) as raised:
                copy_mmap(*pair)
            assert raised.value.filename == str(strange)


def test_copying_from_or_to_nowhere(source: Path) -> None:
    """The error names what is missing."""
    with unchanged(source.parent):
        for pair, missing in (
            ((source.with_name("missing"), source.with_name("new")), source.with_name("missing")),
            ((source, source.with_name("missing") / "new"), source.with_name("missing")),
            ((source, source / "new"), source),
        ):
            with pytest.raises(OSError) as raised:
                copy_mmap(*pair)
            assert isinstance(raised.value, FileNotFoundError | NotADirectoryError)
            assert str(raised.value.filename).startswith(str(missing))


def test_copying_without_permission(source: Path) -> None:
    """Of the source, or of the directory: nothing is left behind."""
    (source.parent / "sealed").mkdir(mode=0o500)
    source.chmod(0o200)

    def work() -> list[str]:
        found = [outcome(lambda: copy_mmap(source, source.with_name("new")))[0]]
        source.chmod(0o600)
        return [*found, outcome(lambda: copy_mmap(source, source.parent / "sealed" / "new"))[0]]

    assert unprivileged(work) == ["PermissionError", "PermissionError"]
    assert sorted(path.name for path in source.parent.iterdir()) == ["sealed", "source"]


def test_a_copy_has_the_permissions_of_the_source(source: Path) -> None:
    """As the crate's has, and ``cp``: a file that others may read is not to vanish from their sight."""
    source.chmod(0o640)
    target = source.with_name("target")
    copy_mmap(source, target)
    assert target.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("length", [1, 233, 255])
def test_a_copy_can_have_any_name_that_a_file_can(source: Path, length: int) -> None:
    """A temporary name that is longer than the final one does not fit where that does."""
    target = source.with_name("n" * length)
    copy_mmap(source, target)
    assert target.read_bytes() == CONTENT
