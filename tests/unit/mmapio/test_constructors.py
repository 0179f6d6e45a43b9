"""The ways to come by a handle: open_or_create, an open file, create_rw; what each takes and refuses."""

from __future__ import annotations

import io
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mmapio import (
    PAGE_SIZE,
    FlushPolicy,
    InvalidMode,
    MappingFault,
    MemoryMappedFile,
    MmapMode,
)
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapio.gate import PRELUDE, gate  # noqa: F401
from tests.unit.mmapio.interposer import PRELUDE as PRELUDE_OF_SYNCS
from tests.unit.mmapio.processes import run_python
from tests.unit.mmapio.volume import VOLUME_BYTES, small_volume  # noqa: F401

CONTENT = b"precious"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with something in it."""
    made = tmp_path / "file"
    made.write_bytes(CONTENT)
    return made


# The three that may find a file that is there, and must leave it as it is when the arguments are wrong.
MAKERS: dict[str, Callable[..., MemoryMappedFile]] = {
    "create_rw": lambda path, **options: MemoryMappedFile.create_rw(path, 4096, **options),
    "open_or_create": lambda path, **options: MemoryMappedFile.open_or_create(path, 4096, **options),
    "open_rw": lambda path, **options: MemoryMappedFile.open_rw(path, **options),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
@pytest.mark.parametrize(
    "wrong",
    [
        {"flush_policy": "always"},
        {"flush_policy": None},
        {"flush_policy": FlushPolicy},
        {"touch_hint": "eager"},
        {"touch_hint": None},
        {"reserve": "1"},
        {"reserve": 1.5},
        {"reserve": None},
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_before_the_file_is_touched(
    path: Path, make: Callable[..., MemoryMappedFile], wrong: dict[str, object]
) -> None:
    """An option that is looked at last, after the file was emptied, costs the content."""
    with unchanged(path.parent):
        with pytest.raises((TypeError, ValueError)):
            make(path, **wrong)
        with pytest.raises((TypeError, ValueError, FileNotFoundError)):
            make(path.with_name("new"), **wrong)


def test_open_or_create_makes_what_is_not_there(tmp_path: Path) -> None:
    """With its blocks, and zero."""
    path = tmp_path / "file"
    with MemoryMappedFile.open_or_create(path, 100_000, flush_policy=FlushPolicy.ALWAYS) as made:
        assert (len(made), made.mode, made.flush_policy) == (
            100_000,
            MmapMode.READ_WRITE,
            FlushPolicy.ALWAYS,
        )
        assert made.read_bytes(0, 100_000) == bytes(100_000)
    assert path.stat().st_blocks * 512 >= 100_000


def test_open_or_create_takes_what_is_there(path: Path) -> None:
    """Neither cut nor extended: the size is for a file that has none."""
    for size in (1, len(CONTENT), 100_000):
        with unchanged(path.parent), MemoryMappedFile.open_or_create(path, size) as opened:
            assert bytes(opened.as_slice()) == CONTENT


def test_open_or_create_fills_an_empty_file(path: Path) -> None:
    """Another process may have created it a moment ago, and not have come to its size yet."""
    path.write_bytes(b"")
    with MemoryMappedFile.open_or_create(path, 100_000) as opened:
        assert len(opened) == 100_000
    assert path.stat().st_blocks * 512 >= 100_000


def test_open_or_create_follows_a_link_to_nowhere(tmp_path: Path) -> None:
    """O_EXCL alone calls it a file that is there, and opening that then finds none."""
    (tmp_path / "link").symlink_to(tmp_path / "target")
    try:
        MemoryMappedFile.open_or_create(tmp_path / "link", 4096).close()
    except FileNotFoundError:
        assert not (tmp_path / "target").exists()
    else:
        assert (tmp_path / "target").stat().st_size == 4096


def together(count: int, work: Callable[[int], object]) -> list[int]:
    """Do `work(0)`, `work(1)`, ... in so many processes that begin at the same moment; their exit codes."""
    reading, writing = os.pipe()
    children = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(writing)
                os.read(reading, 1)
                work(number)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    os.close(reading)
    os.close(writing)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def test_processes_that_open_or_create_at_once_lose_nothing(tmp_path: Path) -> None:
    """Who comes second must not cut, or zero, what the first has written by then."""
    count, rounds = 4, 25

    def work(number: int) -> None:
        # Different sizes, so that a file which is cut to one's own size is seen.
        with MemoryMappedFile.open_or_create(tmp_path / str(turn), PAGE_SIZE * (1 + number)) as mapped:
            mapped.atomic_u64(0).fetch_add(1)
            mapped.atomic_u64(8 * (1 + number)).store(number + 100)

    for turn in range(rounds):
        assert together(count, work) == [0] * count
        with MemoryMappedFile.open_ro(tmp_path / str(turn)) as mapped:
            words = memoryview(mapped.as_slice(0, 8 * (1 + count))).cast("Q")
            assert list(words) == [count, *(100 + number for number in range(count))]
        assert (tmp_path / str(turn)).stat().st_size % PAGE_SIZE == 0


@pytest.mark.parametrize("exists", [False, True], ids=["new", "empty"])
def test_a_creation_that_fails_takes_nothing_from_another(
    tmp_path: Path,
    gate: Path,  # noqa: F811
    exists: bool,
) -> None:
    """A full disk met by one process once cut, or removed, the file that another was writing by then."""
    code = (
        PRELUDE
        + """
import os
from mmapio import MemoryMappedFile
path, exists = arguments
if exists:
    open(path, "w").close()
def other():
    with MemoryMappedFile.open_or_create(path, 8192) as mapped:
        mapped.update_region(4096, b"precious")
        mapped.flush()
ends = meanwhile(FALLOCATE, lambda: MemoryMappedFile.open_or_create(path, 1 << 20), other, errno.ENOSPC)
found = open(path, "rb").read() if os.path.exists(path) else b""
answer([*ends, len(found), found[4096:4104].decode()])
"""
    )
    answers = run_python(code, tmp_path / "file", exists, preload=gate)
    assert answers == ["ResizeFailed", "", 8192, "precious"]


def test_two_that_create_where_nothing_can_be_allocated_lose_nothing(
    tmp_path: Path,
    gate: Path,  # noqa: F811
) -> None:
    """Zeros that are written in place of an allocation once fell on what another had written by then."""
    code = (
        PRELUDE
        + """
from mmapio import MemoryMappedFile
path = arguments[0]
open(path, "w").close()
def other():
    with MemoryMappedFile.open_or_create(path, 8192) as mapped:
        mapped.update_region(4096, b"precious")
first = lambda: MemoryMappedFile.open_or_create(path, 1 << 20).close()
answer([*meanwhile(FALLOCATE, first, other, errno.EOPNOTSUPP), open(path, "rb").read()[4096:4104].decode()])
"""
    )
    assert run_python(code, tmp_path / "file", preload=gate) == ["", "", "precious"]


def test_a_file_object_is_mapped_and_stays_the_callers(path: Path) -> None:
    """Closing somebody else's file, or moving its position, breaks the code it was borrowed from."""
    with path.open("r+b") as file:
        file.seek(3)
        with MemoryMappedFile.from_file(file) as mapped:
            assert (mapped.mode, mapped.path) == (MmapMode.READ_WRITE, str(path))
            assert mapped.fileno() != file.fileno()
            mapped.update_region(0, b"P")
        assert file.tell() == 3
        file.seek(0)
        assert file.read() == b"Precious"


def test_a_mapping_outlives_the_file_object(path: Path) -> None:
    """It holds a descriptor of its own."""
    with path.open("r+b") as file:
        mapped = MemoryMappedFile.from_file(file)
    path.unlink()
    mapped.resize(100_000)
    mapped.update_region(99_998, b"ok")
    assert mapped.read_bytes(99_998, 2) == b"ok"
    mapped.close()


@pytest.mark.parametrize("mode", list(MmapMode))
def test_a_descriptor_is_mapped_in_each_mode(path: Path, mode: MmapMode) -> None:
    """A number has no name; messages need one all the same."""
    number = os.open(path, os.O_RDWR)
    try:
        with MemoryMappedFile.from_file(number, mode) as mapped:
            assert mapped.mode is mode
            assert bytes(mapped.as_slice()) == CONTENT
            assert str(number) in str(mapped.path)
        with MemoryMappedFile.from_file(number, mode, path=path) as mapped:
            assert mapped.path == str(path)
        with MemoryMappedFile.from_file(number, flush_policy=FlushPolicy.ALWAYS, reserve=1 << 20) as mapped:
            assert (mapped.flush_policy, mapped.reserved) == (FlushPolicy.ALWAYS, 1 << 20)
    finally:
        os.close(number)


def test_a_file_without_a_name_is_mapped(tmp_path: Path) -> None:
    """Temporary files are what such a mapping is used for most; their name is a number, or none at all."""
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        file.write(CONTENT)
        file.flush()
        with MemoryMappedFile.from_file(file) as mapped:
            assert bytes(mapped.as_slice()) == CONTENT
            assert isinstance(mapped.path, str)


def test_a_file_opened_for_reading_only_is_mapped_for_reading_only(path: Path) -> None:
    """The system would refuse the mapping without saying why; and a private copy needs no more."""
    with path.open("rb") as file:
        with pytest.raises(InvalidMode, match=r"r\+b") as raised:
            MemoryMappedFile.from_file(file)
        assert raised.value.filename == str(path)
        assert bytes(MemoryMappedFile.from_file(file, MmapMode.READ_ONLY).as_slice()) == CONTENT
        private = MemoryMappedFile.from_file(file, MmapMode.COPY_ON_WRITE)
        private.update_region(0, b"x")
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("mode", list(MmapMode))
def test_a_file_opened_for_writing_only_cannot_be_mapped(path: Path, mode: MmapMode) -> None:
    """Every mapping reads; the error must say that, and not blame the address space."""
    with path.open("ab") as file, pytest.raises(InvalidMode, match="opened for writing only") as raised:
        MemoryMappedFile.from_file(file, mode)
    assert raised.value.filename == str(path)


@pytest.mark.parametrize("wrong", ["read-only", None, 0, MmapMode], ids=str)
def test_a_mode_that_is_none_is_refused(path: Path, wrong: object) -> None:
    """KeyError is what a dictionary says to its owner, not to a caller."""
    with path.open("r+b") as file, pytest.raises((TypeError, ValueError)):
        MemoryMappedFile.from_file(file, wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", ["name", b"name", None, 1.5, [1], object()], ids=lambda wrong: type(wrong).__name__
)
def test_what_is_no_open_file_is_refused(wrong: object) -> None:
    """A path in place of a file is the likely mistake; the error must name what is wanted."""
    with pytest.raises(TypeError):
        MemoryMappedFile.from_file(wrong)  # type: ignore[arg-type]


def test_files_that_are_not_in_the_system_are_refused(path: Path) -> None:
    """In memory, closed, or a number that nobody opened."""
    with pytest.raises(io.UnsupportedOperation):
        MemoryMappedFile.from_file(io.BytesIO(CONTENT))
    with path.open("rb") as file:
        pass
    with pytest.raises(ValueError, match="closed"):
        MemoryMappedFile.from_file(file)
    for number in (-1, 1 << 20):
        with pytest.raises(OSError, match="Bad file descriptor") as raised:
            MemoryMappedFile.from_file(number)
        assert raised.value.filename is not None


def test_descriptors_of_what_is_no_regular_file_are_refused(tmp_path: Path) -> None:
    """A pipe cannot be mapped, nor a directory, nor a socket; and none of them is closed by trying."""
    reading, writing = os.pipe()
    directory = os.open(tmp_path, os.O_RDONLY)
    with socket.socket() as connection:
        for number in (reading, writing, connection.fileno()):
            for mode in MmapMode:
                with pytest.raises(OSError, match="not a regular file"):
                    MemoryMappedFile.from_file(number, mode)
        with pytest.raises(IsADirectoryError):
            MemoryMappedFile.from_file(directory, MmapMode.READ_ONLY)
    for number in (reading, writing, directory):
        os.close(number)


def test_a_sparse_file_has_no_blocks_and_an_ordinary_one_has_all(tmp_path: Path) -> None:
    """Without blocks a full disk is met by a store; with them, here."""
    size = 1 << 20
    with (
        MemoryMappedFile.create_rw(tmp_path / "sparse", size, sparse=True) as sparse,
        MemoryMappedFile.create_rw(tmp_path / "full", size) as full,
    ):
        assert len(sparse) == len(full) == size
        assert os.fstat(sparse.fileno()).st_blocks == 0
        assert os.fstat(full.fileno()).st_blocks * 512 >= size
        sparse.update_region(size // 2, b"x")
        sparse.flush()
        assert 0 < os.fstat(sparse.fileno()).st_blocks * 512 < size // 2
        assert sparse.read_bytes(size // 2 - 1, 3) == b"\0x\0"


def test_a_store_to_a_sparse_file_on_a_full_disk_is_a_fault(small_volume: Path) -> None:  # noqa: F811
    """SIGBUS at the store; our own are guarded, so that it is an exception."""
    with MemoryMappedFile.create_rw(small_volume / "file", 8 * VOLUME_BYTES, sparse=True) as mapped:
        with pytest.raises(MappingFault):
            mapped.update_region(0, bytes(2 * VOLUME_BYTES))
        with pytest.raises(MappingFault):
            mapped.update_region(0, b"x")
        assert mapped.refresh() == 8 * VOLUME_BYTES
        mapped.punch_hole(0, 8 * VOLUME_BYTES)
        mapped.update_region(0, b"works again")
        assert mapped.read_bytes(0, 12) == b"works again\0"


@pytest.mark.parametrize("move", ["nothing", "chdir", "rename", "remove", "seal"])
def test_the_first_flush_survives_what_happened_to_the_directory(
    tmp_path: Path, interposer: Path, move: str
) -> None:
    """Looked up again by its path it may be another, or gone: that is no failed disk, and poisons nothing."""
    code = (
        PRELUDE_OF_SYNCS
        + """
import os
from mmapio import MemoryMappedFile
from tests.unit.mmapio.processes import give_up_privileges
directory, move = arguments
os.mkdir(directory)
os.chdir(os.path.dirname(directory))
if move == "seal":
    give_up_privileges()
    os.chmod(directory, 0o300)
mapped = MemoryMappedFile.create_rw(os.path.join(os.path.basename(directory), "file"), 4096)
mapped.update_region(0, b"x")
if move == "chdir":
    os.chdir("/")
if move == "rename":
    os.rename(directory, directory + "2")
if move == "remove":
    os.unlink(mapped.path)
    os.rmdir(directory)
ends = [outcome(mapped.flush)]
mapped.update_region(0, b"y")
answer([*ends, outcome(mapped.flush), sum(syncs()) >= 2])
"""
    )
    assert run_python(code, tmp_path / "new", move, preload=interposer) == ["", "", True]
