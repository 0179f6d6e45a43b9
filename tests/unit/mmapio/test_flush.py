"""Flushing is durable or an error, and after an error it is never a success again."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmapio import PAGE_SIZE, MemoryMappedFile, MmapMode
from tests.unit.mmapio.interposer import PRELUDE
from tests.unit.mmapio.processes import in_child, outcome, run_python, unprivileged
from tests.unit.mmapio.tracing import Call, traced

SYNCS = "fdatasync,fsync,msync,sync_file_range"


def test_a_flush_is_one_sync_of_the_file(tmp_path: Path, interposer: Path) -> None:
    """A flush that only hints (MS_ASYNC), or skips because a counter says so, loses data at a power cut."""
    code = (
        PRELUDE
        + """
from mmapio import MemoryMappedFile
mapped = MemoryMappedFile.create_rw(arguments[0], 1 << 20)
other = MemoryMappedFile.open_rw(arguments[0])
# The first time the directory too: bytes that no name leads to are lost all the same.
figures = [synced_by(mapped.flush), synced_by(mapped.flush)]
mapped.update_region(0, b"x")
figures += [synced_by(mapped.flush), synced_by(other.flush), synced_by(mapped.close), syncs()[2]]
answer(figures)
"""
    )
    assert run_python(code, tmp_path / "file", preload=interposer) == [2, 1, 1, 1, 0, 0]


def test_the_kernel_sees_the_sync(tmp_path: Path) -> None:
    """The same from outside, by a witness that shares nothing with the library above."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("no strace: NOT TESTED that the kernel sees a flush")
    trace = tmp_path / "trace"
    code = """
import os
from mmapio import MemoryMappedFile
mapped = MemoryMappedFile.create_rw(arguments[0], 1 << 20)
mapped.update_region(0, b"x")
os.write(mapped.fileno(), b"")
mapped.flush()
answer(mapped.fileno())
"""
    events = "trace=fdatasync,fsync,msync,sync_file_range,write"
    number = run_python(code, tmp_path / "file", prefix=(strace, "-f", "-qq", "-o", str(trace), "-e", events))
    calls = re.findall(rf"(\w+)\({number}(?:\)|, \"\", 0\)) += (\d+)", trace.read_text())
    assert calls == [("write", "0"), ("fdatasync", "0")]


def test_a_failed_sync_poisons_the_handle(tmp_path: Path, interposer: Path) -> None:
    """The kernel marks the lost pages clean, so that the next sync succeeds: believing it would be a lie."""
    code = (
        PRELUDE
        + """
from mmapio import FlushFailed, MemoryMappedFile
mapped = MemoryMappedFile.create_rw(arguments[0], 4096)
mapped.update_region(0, b"x")
fail(FDATASYNC, 1, errno.EIO)
try:
    mapped.flush()
except FlushFailed as error:
    first = [error.errno, error.filename]
uses = [mapped.flush, lambda: mapped.update_region(0, b"y"), lambda: mapped.resize(8192)]
outcomes = [outcome(use) for use in uses]
readable = bytes(mapped.as_slice(0, 1)).decode()
before = syncs()
outcomes.append(outcome(mapped.flush))
answer([first, outcomes, readable, syncs() == before, outcome(mapped.close)])
"""
    )
    path = tmp_path / "file"
    first, outcomes, readable, not_tried_again, closing = run_python(code, path, preload=interposer)
    assert first == [5, str(path)]
    assert outcomes == ["FlushFailed"] * 4
    assert readable == "x"
    assert not_tried_again
    assert closing == ""


@pytest.mark.parametrize("interruptions", [1, 3])
def test_an_interrupted_sync_is_made_again(tmp_path: Path, interposer: Path, interruptions: int) -> None:
    """EINTR is no failure of the disk."""
    code = (
        PRELUDE
        + """
from mmapio import MemoryMappedFile
mapped = MemoryMappedFile.create_rw(arguments[0], 4096)
fail(FDATASYNC, 1, errno.EINTR, arguments[1])
answer([outcome(mapped.flush), outcome(mapped.flush)])
"""
    )
    assert run_python(code, tmp_path / "file", interruptions, preload=interposer) == ["", ""]


def test_where_blocks_cannot_be_allocated_zeros_are_written(tmp_path: Path, interposer: Path) -> None:
    """Some file systems know no fallocate; a sparse file there would meet a full disk with SIGBUS."""
    code = (
        PRELUDE
        + """
import os
from mmapio import MemoryMappedFile
fail(FALLOCATE, 1, errno.EOPNOTSUPP, 1000)
mapped = MemoryMappedFile.create_rw(arguments[0], 3_000_001)
mapped.update_region(0, b"begin")
mapped.resize(5_000_000)
about = os.stat(arguments[0])
outcomes = [about.st_size, about.st_blocks * 512 >= 5_000_000, mapped.read_bytes(0, 6).decode()]
fail(PWRITE, 2, errno.ENOSPC, 1000)
outcomes += [outcome(lambda: mapped.resize(9_000_000)), os.stat(arguments[0]).st_size, len(mapped)]
answer(outcomes)
"""
    )
    answers = run_python(code, tmp_path / "file", preload=interposer)
    assert answers == [5_000_000, True, "begin\0", "ResizeFailed", 5_000_000, 5_000_000]


def test_failing_to_allocate_leaves_no_new_file(tmp_path: Path, interposer: Path) -> None:
    """An empty file of the right name would be opened as if it were whole."""
    code = (
        PRELUDE
        + """
import os
from mmapio import MemoryMappedFile
fail(FALLOCATE, 1, errno.ENOSPC)
answer([outcome(lambda: MemoryMappedFile.create_rw(arguments[0], 4096)), os.path.exists(arguments[0])])
"""
    )
    assert run_python(code, tmp_path / "file", preload=interposer) == ["ResizeFailed", False]


def test_the_library_that_counts_can_fail_a_test(tmp_path: Path, interposer: Path) -> None:
    """The control: without a flush there is no sync to be counted, and what is told to fail does."""
    code = (
        PRELUDE
        + """
import os
from mmapio import MemoryMappedFile
mapped = MemoryMappedFile.create_rw(arguments[0], 4096)
quiet = synced_by(lambda: mapped.update_region(0, b"x"))
direct = synced_by(lambda: os.fdatasync(mapped.fileno()))
fail(FDATASYNC, 2, errno.EIO)
answer([quiet, direct] + [outcome(lambda: os.fdatasync(mapped.fileno())) for _ in range(3)])
"""
    )
    assert run_python(code, tmp_path / "file", preload=interposer) == [0, 1, "", "OSError", ""]


def test_flushing_what_is_mapped_elsewhere_too(tmp_path: Path) -> None:
    """A sync covers the file, not the handle: another handle's bytes are on the device as well."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, 4096) as first, MemoryMappedFile.open_rw(path) as second:
        first.update_region(0, b"x")
        second.flush()
        assert path.read_bytes()[:1] == b"x"


def traced_syncs(tmp_path: Path, code: str, *arguments: object, lacking: str) -> tuple[Any, list[Call]]:
    """What `code` answers, and the syncs it makes up to there once a flushed file of 16 pages is mapped."""
    before = """
import os
from mmapio import MemoryMappedFile, MmapMode
mapped = MemoryMappedFile.create_rw(arguments[0], 1 << 16)
mapped.flush()
"""
    # At an ordinary end what is owed would be flushed.
    code, trace = before + code + "os._exit(0)\n", tmp_path / "trace"
    answer, calls = traced(code, tmp_path / "file", *arguments, events=SYNCS, trace=trace, lacking=lacking)
    return answer, calls[2:]


def test_a_flushed_range_does_not_make_the_next_flush_do_nothing(tmp_path: Path) -> None:
    """Write A, flush as long a range with B: the books say that nothing is pending, and A is in memory."""
    code = """
mapped.update_region(0, b"A" * 100)
mapped.flush_range(8192, 100)
pending = mapped.pending_bytes
mapped.flush()
answer([mapped.fileno(), mapped.address, pending])
"""
    (number, address, pending), calls = traced_syncs(tmp_path, code, lacking="that a flush never skips")
    assert pending == 0
    assert [call.name for call in calls] == ["msync", "fdatasync"]
    assert calls[0].arguments == (hex(address + 8192), "100", "MS_SYNC")
    assert calls[1] == Call("fdatasync", (str(number),), "0")


PAGE = PAGE_SIZE
RANGES = [(0, 1), (1, PAGE), (PAGE - 1, 2), (PAGE, PAGE), (PAGE + 1, 5), (0, 1 << 16), (65535, 1)]


def test_a_range_is_synced_from_the_beginning_of_its_first_page(tmp_path: Path) -> None:
    """msync refuses an address within a page; a length that forgets what lies before it misses a page."""
    code = """
for offset, count in arguments[1]:
    mapped.flush_range(offset, count)
for offset in (0, 5, len(mapped)):
    mapped.flush_range(offset, 0)
answer(mapped.address)
"""
    address, calls = traced_syncs(tmp_path, code, RANGES, lacking="which pages a range syncs")
    assert [(call.name, call.result) for call in calls] == [("msync", "0")] * len(RANGES)
    for (offset, count), call in zip(RANGES, calls, strict=True):
        begin, length, how = int(call.arguments[0], 16) - address, int(call.arguments[1]), call.arguments[2]
        assert (begin, how) == (offset // PAGE_SIZE * PAGE_SIZE, "MS_SYNC")
        assert offset + count <= begin + length <= -(-(offset + count) // PAGE_SIZE) * PAGE_SIZE


def test_a_range_is_synced_where_growth_has_put_it(tmp_path: Path) -> None:
    """The old mapping lives as long as its views; it does not reach to what came with the growth."""
    code = """
mapped.close()
mapped = MemoryMappedFile.open_rw(arguments[0], reserve=1)
view = mapped.as_slice_mut(0, 1)
mapped.resize(1 << 20)
mapped.flush_range((1 << 20) - 1, 1)
answer(mapped.address)
"""
    address, calls = traced_syncs(tmp_path, code, lacking="which mapping a range syncs")
    assert calls == [Call("msync", (hex(address + (1 << 20) - PAGE_SIZE), str(PAGE_SIZE), "MS_SYNC"), "0")]


def test_not_waiting_has_the_kernel_begin_and_no_more(tmp_path: Path) -> None:
    """A sync would wait; no call at all would leave the pages for half a minute."""
    code = """
mapped.update_region(0, bytes(50000))
mapped.flush(wait=False)
mapped.flush_range(5000, 100, wait=False)
mapped.flush_range(5000, 0, wait=False)
answer([mapped.fileno(), mapped.pending_bytes, mapped.needs_flush()])
"""
    lacking = "that a flush that does not wait begins"
    (number, *books), calls = traced_syncs(tmp_path, code, lacking=lacking)
    begun = [
        (str(number), begin, count, "SYNC_FILE_RANGE_WRITE")
        for begin, count in (("0", "65536"), ("4096", "1004"))
    ]
    assert calls == [Call("sync_file_range", each, "0") for each in begun]
    assert books == [50000, True]


def test_what_cannot_be_written_is_not_flushed(tmp_path: Path) -> None:
    """A sync through a read-only or private mapping would wait for what other processes write."""
    code = """
other = MemoryMappedFile.open_rw(arguments[0])
other.update_region(0, b"x")
for mode in (MmapMode.READ_ONLY, MmapMode.COPY_ON_WRITE):
    with MemoryMappedFile.builder(arguments[0]).mode(mode).open() as quiet:
        if mode is MmapMode.COPY_ON_WRITE:
            quiet[0] = 1
        for wait in (True, False):
            quiet.flush(wait)
            quiet.flush_range(0, 100, wait)
answer(other.pending_bytes)
"""
    assert traced_syncs(tmp_path, code, lacking="that read-only handles sync nothing") == (1, [])


@pytest.mark.parametrize("mode", [MmapMode.READ_ONLY, MmapMode.READ_WRITE, MmapMode.COPY_ON_WRITE])
def test_a_fresh_mapping_sees_what_was_flushed(tmp_path: Path, mode: MmapMode) -> None:
    """Another process, which shares nothing with the writer but the file."""
    path = tmp_path / "file"
    code = """
from mmapio import MemoryMappedFile, MmapMode
with MemoryMappedFile.builder(arguments[0]).mode(MmapMode(arguments[1])).open() as mapped:
    answer([len(mapped), mapped.read_bytes(0, 3).decode(), bytes(mapped.as_slice(9000, 3)).decode()])
"""
    with MemoryMappedFile.create_rw(path, 10000, reserve=1) as mapped:
        mapped.update_region(0, b"abc")
        mapped.flush()
        with mapped.as_slice_mut(9000, 3) as view:
            view[:] = b"xyz"
        mapped.flush_range(9000, 3)
        assert run_python(code, path, mode.value) == [10000, "abc", "xyz"]
        mapped.resize(1 << 20)
        mapped[0] = ord("A")
        mapped.flush_range(0, 1)
        assert run_python(code, path, mode.value) == [1 << 20, "Abc", "xyz"]


# The name of a new file.


def test_the_name_of_a_new_file_is_synced_where_it_was_made(tmp_path: Path) -> None:
    """The process may be elsewhere by then, and the directory have another name."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("no strace: NOT TESTED which directory is synced")
    place = tmp_path / "place"
    place.mkdir()
    trace = tmp_path / "trace"
    code = """
import os
from mmapio import MemoryMappedFile
os.chdir(arguments[0])
mapped = MemoryMappedFile.create_rw("file", 4096)
os.chdir("/")
os.rename(arguments[0], arguments[0] + ".moved")
mapped.update_region(0, b"x")
mapped.flush()
mapped.flush()
answer(mapped.fileno())
"""
    command = (strace, "-f", "-qq", "-y", "-o", str(trace), "-e", f"trace={SYNCS}")
    run_python(code, place, prefix=command)
    synced = re.findall(r"(\w+)\(\d+<(.*?)>\) += 0", trace.read_text())
    assert [path for _, path in synced] == [f"{place}.moved/file", f"{place}.moved", f"{place}.moved/file"]


def test_a_directory_that_is_gone_is_no_failed_sync(tmp_path: Path) -> None:
    """Nobody will look the name up again; the handle goes on serving those who have the file."""

    def work() -> list[str]:
        place = tmp_path / "place"
        place.mkdir()
        mapped = MemoryMappedFile.create_rw(place / "file", 4096)
        (place / "file").unlink()
        place.rmdir()
        return [
            outcome(mapped.flush)[0],
            outcome(lambda: mapped.update_region(0, b"x"))[0],
            outcome(mapped.close)[0],
        ]

    assert in_child(work) == ["", "", ""]


def test_a_directory_that_cannot_be_opened_is_no_failed_sync(tmp_path: Path) -> None:
    """Files can be made in a directory that may not be read: a flush there must not poison the handle."""
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(0o300)

    def work() -> list[str]:
        mapped = MemoryMappedFile.create_rw(place / "file", 4096)
        mapped.update_region(0, b"x")
        return [
            outcome(mapped.flush)[0],
            outcome(lambda: mapped.update_region(0, b"y"))[0],
            outcome(mapped.close)[0],
        ]

    try:
        assert unprivileged(work) == ["", "", ""]
    finally:
        place.chmod(0o700)


OPENERS: dict[str, tuple[str, list[int]]] = {
    "create_rw of a new file": ("create_rw(new, 4096)", [2, 1]),
    "create_rw of an old file": ("create_rw(old, 4096)", [1, 1]),
    "open_or_create of a new file": ("open_or_create(new, 4096)", [2, 1]),
    "open_or_create of an old file": ("open_or_create(old, 4096)", [1, 1]),
    "open_rw": ("open_rw(old)", [1, 1]),
    "from_file": ("from_file(open(old, 'r+b'))", [1, 1]),
    "a builder": ("builder(new).size(4096).create()", [2, 1]),
}


@pytest.mark.parametrize(("opener", "expected"), OPENERS.values(), ids=OPENERS.keys())
def test_the_directory_is_synced_by_who_made_the_name(
    tmp_path: Path, interposer: Path, opener: str, expected: list[int]
) -> None:
    """Once; every further flush is one sync."""
    old = tmp_path / "old"
    old.write_bytes(bytes(4096))
    code = (
        PRELUDE
        + f"""
from mmapio import MemoryMappedFile
old, new = arguments
mapped = MemoryMappedFile.{opener}
mapped.update_region(0, b"x")
mapped.flush_range(0, 1)
answer([synced_by(mapped.flush), synced_by(mapped.flush)])
"""
    )
    assert run_python(code, old, tmp_path / "new", preload=interposer) == expected


# Syncs that fail.

FAILED: dict[str, tuple[str, str, str]] = {
    "flush": ("FDATASYNC", "MANUAL", "mapped.flush()"),
    "flush_range": ("MSYNC", "MANUAL", "mapped.flush_range(0, 1)"),
    "the directory's sync": ("FSYNC", "MANUAL", "new(name); mapped.flush()"),
    "a write": ("FDATASYNC", "ALWAYS", "mapped.update_region(0, b'y')"),
    "an item": ("FDATASYNC", "ALWAYS", "mapped[0] = 121"),
    "a view": ("FDATASYNC", "ALWAYS", "mapped.as_slice_mut(0, 1).release()"),
    "a word": ("FDATASYNC", "ALWAYS", "mapped.atomic_u32(8).store(1)"),
    "growing": ("FDATASYNC", "ALWAYS", "mapped.resize(8192)"),
    "shrinking": ("FDATASYNC", "ALWAYS", "mapped.resize(4095)"),
    "a hole": ("FDATASYNC", "ALWAYS", "mapped.punch_hole(0, 1)"),
    "the bytes' bound": ("FDATASYNC", "every_bytes(1)", "mapped.update_region(0, b'y')"),
    "the writes' bound": ("FDATASYNC", "every_writes(1)", "mapped.update_region(0, b'y')"),
    "close": ("FDATASYNC", "MANUAL", "mapped.update_region(0, b'y'); mapped.close()"),
    "unmap": ("FDATASYNC", "MANUAL", "mapped.update_region(0, b'y'); mapped.unmap()"),
}


@pytest.mark.parametrize(("call", "policy", "work"), FAILED.values(), ids=FAILED.keys())
def test_whatever_sync_fails_the_handle_is_poisoned(
    tmp_path: Path, interposer: Path, call: str, policy: str, work: str
) -> None:
    """Nothing writes or flushes any more, or asks the kernel again; reading goes on, and closing closes."""
    code = (
        PRELUDE
        + f"""
from mmapio import FlushFailed, FlushPolicy, MemoryMappedFile
def new(name):
    global mapped
    mapped = MemoryMappedFile.create_rw(arguments[0] + name, 4096, flush_policy=FlushPolicy.{policy})
def poisoned(number):
    name = errno.errorcode[number]
    new("")
    mapped.update_region(1, b"x")
    mapped.flush()
    fail({call}, 1, number)
    try:
        {work}
    except FlushFailed as error:
        raised = [error.errno == number, error.filename == mapped.path]
    before = syncs()
    uses = [
        mapped.flush, lambda: mapped.flush(wait=False), lambda: mapped.flush_range(0, 1),
        lambda: mapped.update_region(0, b"y"), lambda: mapped.__setitem__(0, 1), lambda: mapped.resize(9000),
        lambda: mapped.as_slice_mut(0, 1), lambda: mapped.chunks_mut(100), lambda: mapped.punch_hole(0, 1),
        lambda: mapped.atomic_u32(4).store(1), lambda: mapped.touch_pages(write=True), mapped.flush,
    ]
    outcomes = set(outcome(use) for use in uses)
    if not mapped.closed:
        bytes(mapped.as_slice(0, 9)), mapped[1], mapped.read_bytes(0, 1)
        mapped.atomic_u32(8).load(), list(mapped.chunks(999)), mapped.reader().read()
        mapped.refresh()
    return [*raised, *outcomes, outcome(mapped.close), mapped.closed, syncs() == before]
answer([poisoned(number) for number in (errno.EIO, errno.ENOSPC, errno.EDQUOT)])
"""
    )
    kind = "Closed" if "close" in work or "unmap" in work else "FlushFailed"
    found = run_python(code, tmp_path / "file", preload=interposer)
    assert found == [[True, True, kind, "", True, True]] * 3


def test_a_hint_that_fails_is_an_error(tmp_path: Path, interposer: Path) -> None:
    """The caller counts on the pages being on their way."""
    code = (
        PRELUDE
        + """
from mmapio import MemoryMappedFile
mapped = MemoryMappedFile.create_rw(arguments[0], 4096)
mapped.update_region(0, b"x")
fail(SYNC_FILE_RANGE, 1, errno.EIO, 2)
answer([outcome(lambda: mapped.flush(wait=False)), mapped.pending_bytes])
"""
    )
    assert run_python(code, tmp_path / "file", preload=interposer) == ["FlushFailed", 1]


def test_an_interrupted_range_is_made_again(tmp_path: Path, interposer: Path) -> None:
    """As an interrupted flush is: a signal is no failure of the disk."""
    code = (
        PRELUDE
        + """
from mmapio import MemoryMappedFile
mapped = MemoryMappedFile.create_rw(arguments[0], 4096)
fail(MSYNC, 1, errno.EINTR, 3)
answer([outcome(lambda: mapped.flush_range(0, 1)), outcome(mapped.flush), syncs()[2]])
"""
    )
    assert run_python(code, tmp_path / "file", preload=interposer) == ["", "", 4]
