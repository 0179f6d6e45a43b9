"""Creating and opening mapped files, and refusing what cannot be mapped."""

from __future__ import annotations

import os
import resource
import stat
from pathlib import Path

import pytest

from mmapio import InvalidMode, MemoryMappedFile, MmapIoError, MmapMode, ResizeFailed
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapio.processes import in_child, outcome, unprivileged

OPENERS = [MemoryMappedFile.open_rw, MemoryMappedFile.open_ro]


def test_a_created_file_is_zero_allocated_and_private(tmp_path: Path) -> None:
    """A sparse file would meet a full disk with SIGBUS on a later store; others' eyes are not to see it."""
    path = tmp_path / "file"
    previous = os.umask(0o022)
    try:
        with MemoryMappedFile.create_rw(path, 1 << 20) as mapped:
            assert len(mapped) == 1 << 20
            assert mapped.mode is MmapMode.READ_WRITE
            assert mapped.path == os.fspath(path)
            assert bytes(mapped.as_slice()) == bytes(1 << 20)
    finally:
        os.umask(previous)
    about = path.stat()
    assert about.st_blocks * 512 >= 1 << 20
    assert stat.S_IMODE(about.st_mode) == 0o600


def test_creating_replaces_what_was_there(tmp_path: Path) -> None:
    """Old bytes shining through a new file would be taken for data."""
    path = tmp_path / "file"
    path.write_bytes(b"old" * 10_000)
    with MemoryMappedFile.create_rw(path, 4096) as mapped:
        assert bytes(mapped.as_slice()) == bytes(4096)
    assert path.stat().st_size == 4096


def test_what_one_handle_writes_the_others_and_the_file_show(tmp_path: Path) -> None:
    """A private mapping would keep the bytes to itself."""
    path = tmp_path / "file"
    with (
        MemoryMappedFile.create_rw(path, 4096) as writer,
        MemoryMappedFile.open_ro(path) as reader,
        MemoryMappedFile.open_rw(path) as other,
    ):
        writer.update_region(100, b"one")
        assert bytes(reader.as_slice(100, 3)) == b"one"
        other.update_region(101, b"x")
        assert writer.read_bytes(100, 3) == b"oxe"
        assert path.read_bytes()[100:103] == b"oxe"
        assert in_child(lambda: bytes(reader.as_slice(100, 3))) == b"oxe"


def test_a_read_only_handle_refuses_every_change(tmp_path: Path) -> None:
    """A store to a read-only mapping is SIGSEGV, not an exception."""
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    with MemoryMappedFile.open_ro(path) as mapped, unchanged(tmp_path):
        assert mapped.mode is MmapMode.READ_ONLY
        for change in (
            lambda: mapped.update_region(0, b"x"),
            lambda: mapped.resize(4096),
            lambda: mapped.resize(1),
            lambda: mapped.as_slice_mut(0, 1),
            lambda: mapped.as_slice_mut(0, 0),
            lambda: mapped.chunks_mut(1),
            lambda: mapped.__setitem__(0, 1),
            lambda: mapped.__setitem__(slice(0, 0), b""),
            lambda: mapped.punch_hole(0, 1),
            lambda: mapped.touch_pages(write=True),
        ):
            with pytest.raises(InvalidMode, match="open_rw"):
                change()
        mapped.flush()  # there is nothing to flush, and no reason to refuse


def test_an_empty_file_can_be_opened_and_grown(tmp_path: Path) -> None:
    """The system refuses to map nothing; a file that another program just made is still no error."""
    path = tmp_path / "file"
    path.touch()
    with MemoryMappedFile.open_rw(path) as mapped:
        assert len(mapped) == 0
        assert bytes(mapped.as_slice()) == b""
        mapped.resize(10)
        mapped.update_region(7, b"end")
    assert path.read_bytes() == bytes(7) + b"end"


@pytest.mark.parametrize("size", [0, -1, 0x7FFFFFFFFFFFF001, 2**63, 2**64, 2**70])
def test_an_impossible_size_is_refused_before_the_file_is_touched(tmp_path: Path, size: int) -> None:
    """Truncating first and checking second would lose the old content to a wrong argument."""
    path = tmp_path / "file"
    path.write_bytes(b"precious")
    with unchanged(tmp_path):
        with pytest.raises(ValueError, match=str(size)):
            MemoryMappedFile.create_rw(path, size)
        with pytest.raises(ValueError, match=str(size)):
            MemoryMappedFile.create_rw(tmp_path / "new", size)


@pytest.mark.parametrize("reserve", [0, -1, 2**64])
def test_an_impossible_reserve_is_refused_before_the_file_is_touched(tmp_path: Path, reserve: int) -> None:
    """As for the size: it is the last argument to be used, and must not be the last to be checked."""
    path = tmp_path / "file"
    path.write_bytes(b"precious")
    with unchanged(tmp_path):
        for target in (path, tmp_path / "new"):
            with pytest.raises(ValueError, match="must be between"):
                MemoryMappedFile.create_rw(target, 4096, reserve=reserve)
        for opener in OPENERS:
            with pytest.raises(ValueError, match="must be between"):
                opener(path, reserve=reserve)


@pytest.mark.parametrize("wrong", [1.5, "4096", None, b"1"])
def test_a_size_that_is_no_integer_is_refused_before_the_file_is_touched(
    tmp_path: Path, wrong: object
) -> None:
    """A float cut to an integer creates a file of the wrong size without a word."""
    path = tmp_path / "file"
    path.write_bytes(b"precious")
    with unchanged(tmp_path):
        with pytest.raises(TypeError):
            MemoryMappedFile.create_rw(path, wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            MemoryMappedFile.create_rw(path, 4096, reserve=wrong)  # type: ignore[arg-type]


def test_a_size_beyond_the_disk_fails_and_leaves_no_file(tmp_path: Path) -> None:
    """A file of the asked size without blocks behind it would be SIGBUS waiting to happen."""
    path = tmp_path / "file"
    with pytest.raises(ResizeFailed, match="cannot allocate") as raised:
        MemoryMappedFile.create_rw(path, 1 << 60)
    assert raised.value.errno is not None
    assert raised.value.filename == os.fspath(path)
    assert not path.exists()


@pytest.mark.parametrize("opener", OPENERS)
def test_a_missing_file_is_the_builtin_error(tmp_path: Path, opener: object) -> None:
    """Callers catch FileNotFoundError, with the name in it."""
    with pytest.raises(FileNotFoundError) as raised:
        opener(tmp_path / "missing")  # type: ignore[operator]
    assert raised.value.filename == os.fspath(tmp_path / "missing")
    assert not list(tmp_path.iterdir())


def test_a_missing_directory_is_the_builtin_error(tmp_path: Path) -> None:
    """Directories are the caller's business."""
    with pytest.raises(FileNotFoundError):
        MemoryMappedFile.create_rw(tmp_path / "missing" / "file", 4096)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "opener",
    [*OPENERS, lambda path: MemoryMappedFile.create_rw(path, 4096)],
    ids=["open_rw", "open_ro", "create_rw"],
)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, opener: object) -> None:
    """Opening a FIFO waits for the other end for ever unless one takes care; a device is no file at all."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    with unchanged(tmp_path):
        with pytest.raises(IsADirectoryError):
            opener(tmp_path / "directory")  # type: ignore[operator]
        with pytest.raises(NotADirectoryError):
            opener(tmp_path / "file" / "below")  # type: ignore[operator]
        for strange in (tmp_path / "fifo", Path(os.devnull)):
            with pytest.raises(OSError, match="not a regular file") as raised:
                opener(strange)  # type: ignore[operator]
            assert raised.value.filename == os.fspath(strange)


def test_permissions_count(tmp_path: Path) -> None:
    """Without them the error is the system's own; a file that may be read can still be mapped for reading."""
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    path.chmod(0o400)
    (tmp_path / "sealed").mkdir()
    (tmp_path / "sealed").chmod(0o500)

    def attempts() -> list[tuple[str, str]]:
        with MemoryMappedFile.open_ro(path) as mapped:
            assert bytes(mapped.as_slice()) == b"abc"
        return [
            outcome(lambda: MemoryMappedFile.open_rw(path)),
            outcome(lambda: MemoryMappedFile.create_rw(path, 4096)),
            outcome(lambda: MemoryMappedFile.create_rw(tmp_path / "sealed" / "new", 4096)),
        ]

    with unchanged(tmp_path):
        for kind, text in unprivileged(attempts):
            assert kind == "PermissionError"
            assert str(tmp_path) in text


def test_a_limited_address_space_gets_a_smaller_reservation(tmp_path: Path) -> None:
    """Reserving 64 GiB fails under `ulimit -v`; the file must open all the same, and outgrow what it got."""
    path = tmp_path / "file"
    megabytes = 1 << 20

    def under_limit() -> tuple[int, bytes, bytes]:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 64 * megabytes, resource.RLIM_INFINITY))
        mapped = MemoryMappedFile.create_rw(path, 4096, reserve=1 << 36)
        reserved = mapped.reserved
        mapped.update_region(0, b"first")
        early = mapped.as_slice(0, 5)
        small = MemoryMappedFile.open_rw(path, reserve=4096)
        small.resize(megabytes)
        small.update_region(megabytes - 4, b"last")
        mapped.refresh()
        return reserved, bytes(early), bytes(mapped.as_slice(megabytes - 4))

    reserved, first, last = in_child(under_limit)
    assert 4096 <= reserved <= 64 * megabytes
    assert (first, last) == (b"first", b"last")


def test_no_address_space_at_all_is_an_error_that_says_so(tmp_path: Path) -> None:
    """ENOMEM alone sends people looking for memory."""
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(1 << 40)

    def under_limit() -> tuple[str, str]:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
        return outcome(lambda: MemoryMappedFile.open_ro(path))

    kind, text = in_child(under_limit)
    assert kind == "OSError"
    assert "ulimit -v" in text
    assert str(path) in text


def test_the_class_cannot_be_called() -> None:
    """A handle without a file behind it would crash on first use."""
    with pytest.raises(TypeError, match="create_rw"):
        MemoryMappedFile()
    with pytest.raises((MmapIoError, TypeError)):
        MemoryMappedFile.__new__(MemoryMappedFile).as_slice()
