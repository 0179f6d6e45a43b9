"""Flushing is durable or an error, and after an error it is never a success again."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from mmapio import MemoryMappedFile
from tests.unit.mmapio.interposer import PRELUDE
from tests.unit.mmapio.processes import run_python


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
