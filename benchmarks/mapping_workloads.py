"""The glossary of the mapping layer: every workload by name, what it does and what exactly is timed.

A peer's statement is compiled into the loop of `timeit`, `for _ in repeat(None, count): statement`, with all
that it names in local variables, as in a user's function; the row shows it as it stands. The row `(loop)` is
the loop around nothing; it is contained in the others and subtracted from none. Where there is no such row,
the statement is one large operation and the loop does not matter.

The processor is given to others in between, and is slower while its twin is at work. So a measurement of a
small operation is the middle one of many short loops, the statements take several turns in each round, and a
statement's sample of the round is the smallest of its measurements.

Each row has a file of its own, in the page cache unless it is said to be new.
"""

from __future__ import annotations

import itertools
import mmap
import os
import random
import statistics
import timeit
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter_ns
from typing import Any, ClassVar

from .adapters import Stage
from .dataset import WrongAnswer
from .environment import bytes_written_to_device

PAGE = mmap.PAGESIZE
SEED = 1

SMALL_FILE_BYTES = 1 << 20
SLICE_OFFSET = 2 * PAGE

LOOP_NS = 100e3
TRIES = 20

FLUSHED_FILE_BYTES = 64 << 20
GROWTHS = 4


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the command line sets."""

    touch_bytes: int = 1 << 30
    grow_bytes: int = 64 << 20
    sample_ns: float = 2.5e6
    """How long a measurement of a small operation takes, at the least."""


class Act:
    """A statement on its stage: a measurement is so many loops of so many runs."""

    def __init__(self, statement: str, operands: Mapping[str, object], stage: Stage, path: Path) -> None:
        names = {**operands, **stage.names}
        self.statement = statement
        self.names = names
        self.stage = stage
        self.path = path
        self.count = 1
        self.loops = 1
        self.before = 0
        self.timer = timeit.Timer(
            statement,
            f"{', '.join(names)}, = operands" if names else "pass",
            perf_counter_ns,
            globals={"operands": tuple(names.values())},
        )

    @property
    def runs(self) -> int:
        """How often a measurement runs the statement."""
        return self.count * self.loops


class MappedWorkload(ABC):
    """One thing to time: `sample` starts and stops the clock, and all the rest is outside it."""

    name: ClassVar[str]
    operation: ClassVar[str]
    """What one operation is, for the heading."""

    unit: ClassVar[str] = "ns"
    unit_size: ClassVar[float] = 1
    times: ClassVar[bool] = True
    """As of the store's workloads."""

    tries: ClassVar[int] = TRIES
    """Of how many measurements, taken in turn with the others', a sample is the smallest."""

    fresh: ClassVar[bool] = False
    """Whether every measurement has a new file, which the peer makes."""

    has_loop: ClassVar[bool] = True
    """Whether the loop around the statement is worth a row."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes

    @property
    def file_bytes(self) -> int:
        """The length of the file."""
        return SMALL_FILE_BYTES

    @property
    def ballast_bytes(self) -> int:
        """New memory that a measurement touches."""
        return 0

    def make_file(self, path: Path) -> None:
        """Make a row's file, unless every measurement has a new one."""
        path.write_bytes(bytes(self.file_bytes))

    def operands(self) -> dict[str, object]:
        """What the statements of all peers may name; a row's own."""
        return {}

    def why_not(self, directory: Path) -> str:
        """Why it cannot be measured with files in this directory; empty if it can."""
        return ""

    def calibrate(self, act: Act) -> None:
        """Find how many runs make a loop, and how many loops a measurement."""
        while (elapsed := min(act.timer.repeat(3, act.count))) < min(LOOP_NS, self.sizes.sample_ns):
            act.count *= 2
        act.loops = max(int(self.sizes.sample_ns / elapsed), 1)

    def sample(self, act: Act) -> float:
        """Run it and return the cost of one operation, in the smallest unit."""
        return statistics.median(act.timer.repeat(act.loops, act.count)) / act.count

    def begin(self, act: Act) -> None:
        """Look at the stage before a measurement."""
        act.before = 0

    @abstractmethod
    def check(self, act: Act) -> None:
        """Raise `WrongAnswer` if the statement did not do what it must; after each measurement."""


class Slice(MappedWorkload):
    """Take 64 bytes at an offset, always the same, so that all that is read lies in the processor's cache.

    As the peer's user would: `mm[a:b]` copies, mmapio and numpy give a view. The check compares the bytes.
    """

    name = "slice-64"
    operation = "64 B at an offset"
    length: ClassVar[int] = 64

    def make_file(self, path: Path) -> None:
        path.write_bytes(self._content)

    def operands(self) -> dict[str, object]:
        start = SLICE_OFFSET
        return {"a": start, "b": start + self.length, "n": self.length, "buffer": bytearray(self.length)}

    def check(self, act: Act) -> None:
        expected = self._content[SLICE_OFFSET : SLICE_OFFSET + self.length]
        answer = answer_of(act)
        if answer != expected:
            raise WrongAnswer(f"{self.name}: {act.statement} gave {answer[:16]!r}, not {expected[:16]!r}")

    @cached_property
    def _content(self) -> bytes:
        return random.Random(SEED).randbytes(self.file_bytes)


class SliceLarge(Slice):
    """The same with 64 KiB: a view costs what it did, a copy does not."""

    name = "slice-64k"
    operation = "64 KiB at an offset"
    length = 64 << 10


class Read(Slice):
    """Copy 64 bytes out: into a new `bytes`, or into a buffer that is there."""

    name = "read-64"
    operation = "64 B copied out"


class ReadPage(Slice):
    """The same with 4 KiB."""

    name = "read-4k"
    operation = "4 KiB copied out"
    length = 4096


class Write(MappedWorkload):
    """Copy 64 bytes into the file at an offset, always the same. Nothing is flushed.

    The check reads the file from outside the mapping.
    """

    name = "write-64"
    operation = "64 B copied in"
    length: ClassVar[int] = 64

    def operands(self) -> dict[str, object]:
        data = random.Random(SEED).randbytes(self.length)
        return {"a": SLICE_OFFSET, "b": SLICE_OFFSET + self.length, "data": data}

    def check(self, act: Act) -> None:
        found = act.path.read_bytes()[SLICE_OFFSET : SLICE_OFFSET + self.length]
        if found != act.names["data"]:
            raise WrongAnswer(f"{self.name}: after {act.statement} the file holds {found[:16]!r}")


class WritePage(Write):
    """The same with 4 KiB."""

    name = "write-4k"
    operation = "4 KiB copied in"
    length = 4096


class Counted(MappedWorkload):
    """A workload whose stage counts its runs."""

    def begin(self, act: Act) -> None:
        act.before = act.stage.state()

    def check(self, act: Act) -> None:
        grown = act.stage.state() - act.before
        if grown != act.runs:
            raise WrongAnswer(f"{self.name}: {act.statement} was run {act.runs} times and counted {grown}")


class FetchAdd(Counted):
    """Add one to a shared 64-bit word, atomically, with nobody else at it.

    The state is the word; it must have grown by as much as was added.
    """

    name = "fetch-add"
    operation = "atomic addition to a shared word"


class Mutex(MappedWorkload):
    """Take a lock that other processes can take, and give it back, with nobody else at it.

    The state is whether it is held, which it must not be afterwards.
    """

    name = "mutex"
    operation = "lock and unlock, free"

    def check(self, act: Act) -> None:
        if act.stage.state():
            raise WrongAnswer(f"{self.name}: after {act.statement} the lock is held")


class Chunks(MappedWorkload):
    """Walk a file of `--touch-mib` in pieces of 4 KiB, with a view, or where there is none a copy, of each.

    The file is sparse but for the last piece, and in the page cache, where a copy finds its bytes. Timed is
    the whole walk. The check compares the last piece.
    """

    name = "chunks"
    operation = "piece of 4 KiB in a walk over the file"
    tries = 5
    has_loop = False
    length: ClassVar[int] = 4096

    @property
    def file_bytes(self) -> int:
        return self.sizes.touch_bytes

    def make_file(self, path: Path) -> None:
        with path.open("xb") as file:
            file.truncate(self.file_bytes - self.length)
            file.seek(0, os.SEEK_END)
            file.write(self._last())

    def operands(self) -> dict[str, object]:
        return {"n": self.length, "size": self.file_bytes}

    def calibrate(self, act: Act) -> None:
        """One walk is long enough; it also brings in what will be copied."""
        act.timer.timeit(1)

    def sample(self, act: Act) -> float:
        return act.timer.timeit(1) / (self.file_bytes // self.length)

    def check(self, act: Act) -> None:
        chunk = answer_of(act)
        if chunk != self._last():
            raise WrongAnswer(f"{self.name}: the last piece of {act.statement} was {chunk[:16]!r}")

    def _last(self) -> bytes:
        return random.Random(SEED).randbytes(self.length)


class Touch(MappedWorkload):
    """Bring in every page of a new file of `--touch-mib`, all blocks allocated, none of it in memory.

    mmapio reads (`touch_pages()`), the others have to access a byte of each page, here by a store. On warm
    memory: so much, and half as much again, is touched and freed before each measurement. The state is how
    many bytes were brought in.
    """

    name = "touch"
    operation = "new file, every page brought in"
    unit = "ms"
    unit_size = 1e6
    tries = 3
    fresh = True
    has_loop = False

    @property
    def file_bytes(self) -> int:
        return self.sizes.touch_bytes

    @property
    def ballast_bytes(self) -> int:
        # More than it needs: not every page that is freed is the next to be given out.
        return 3 * self.file_bytes // 2

    def operands(self) -> dict[str, object]:
        return {"n": PAGE, "size": self.file_bytes}

    def calibrate(self, act: Act) -> None:
        """Once is all that a new file allows."""

    def check(self, act: Act) -> None:
        touched = act.stage.state()
        if touched != self.file_bytes:
            raise WrongAnswer(
                f"{self.name}: {act.statement} touched {touched:,} of {self.file_bytes:,} bytes"
            )


class TouchWrite(Touch):
    """The same, but afterwards a store to any page meets no fault: `touch_pages(write=True)`."""

    name = "touch-write"
    operation = "new file, every page brought in to be written"


class Grow(MappedWorkload):
    """Add `--grow-mib` of allocated blocks to a file, mapped, without touching them. The mean of 4 times.

    mmapio's has a live view of the file as it was at first. The state is the length of the mapping; mmapio's
    also requires that the address has not moved and that the view shows what is stored to the file.
    """

    name = "grow"
    operation = "growth of a mapped file"
    unit = "us"
    unit_size = 1e3
    tries = 5
    fresh = True
    has_loop = False

    @property
    def file_bytes(self) -> int:
        return self.sizes.grow_bytes

    def operands(self) -> dict[str, object]:
        return {"step": self.sizes.grow_bytes}

    def calibrate(self, act: Act) -> None:
        act.count = GROWTHS

    def sample(self, act: Act) -> float:
        return act.timer.timeit(act.count) / act.count

    def check(self, act: Act) -> None:
        expected = self.file_bytes + act.count * self.sizes.grow_bytes
        length, on_disk = act.stage.state(), act.path.stat().st_blocks * 512
        if length != expected or on_disk < expected:
            raise WrongAnswer(
                f"{self.name}: after {act.statement} {length:,} bytes are mapped and {on_disk:,} are on "
                f"disk, expected {expected:,}"
            )


class Alone(MappedWorkload):
    """A workload of operations that wait: each is timed alone, which is a loop of one run."""

    tries = 1
    has_loop = False

    def calibrate(self, act: Act) -> None:
        once = statistics.median(act.timer.repeat(5, 1))
        act.loops = max(int(TRIES * self.sizes.sample_ns / once), 1)


class Flush(Alone):
    """Store 4 KiB on a page drawn at random of a file of 64 MiB, and have it on the device.

    All of the file was stored to through a mapping, and synced, before: the kernel then keeps it in large
    folios. The middle one of many. The check reads the last page written from outside the mapping.
    """

    name = "flush"
    operation = "page stored and durable"
    unit = "us"
    unit_size: ClassVar[float] = 1e3
    advice: ClassVar[int | None] = None
    """What the kernel was told before it brought the file in."""

    @property
    def file_bytes(self) -> int:
        return min(FLUSHED_FILE_BYTES, self.sizes.touch_bytes)

    def make_file(self, path: Path) -> None:
        with path.open("x+b") as file:
            os.posix_fallocate(file.fileno(), 0, self.file_bytes)
            with mmap.mmap(file.fileno(), 0) as mapping:
                if self.advice is not None:
                    mapping.madvise(self.advice)
                mapping[::PAGE] = b"\x01" * (self.file_bytes // PAGE)
            os.fsync(file.fileno())

    def operands(self) -> dict[str, object]:
        data = random.Random(SEED).randbytes(PAGE)
        return {"at": Offsets(self.file_bytes), "page": data, "n": PAGE}

    def check(self, act: Act) -> None:
        at = act.names["at"]
        assert isinstance(at, Offsets)
        with act.path.open("rb") as file:
            found = os.pread(file.fileno(), PAGE, at.last)
        if found != act.names["page"]:
            raise WrongAnswer(f"{self.name}: after {act.statement} the page at {at.last} is {found[:16]!r}")


class ToTheDevice(MappedWorkload):
    """A workload that measures how much the device has written, by the kernel's count of its sectors.

    The middle one of many, since whoever else writes meanwhile is counted too.
    """

    unit = "KiB to the device"
    unit_size: ClassVar[float] = 1024
    times = False

    def why_not(self, directory: Path) -> str:
        counted = bytes_written_to_device(directory) is not None
        return "" if counted else "the kernel does not count what is written to the device below --dir"

    def sample(self, act: Act) -> float:
        return statistics.median(self._written(act) for _ in range(act.loops))

    def _written(self, act: Act) -> int:
        before = bytes_written_to_device(act.path)
        act.timer.timeit(1)
        after = bytes_written_to_device(act.path)
        assert before is not None, "`why_not` comes first"
        assert after is not None
        return after - before


class FlushBytes(ToTheDevice, Flush):
    """The same, but measured is how much the device has written, by the kernel's count of its sectors."""

    name = "flush-bytes"
    operation = "page stored and durable"


class FlushSmall(Flush):
    """As `flush`; the kernel was told `MADV_RANDOM` before the file was touched, and keeps small folios."""

    name = "flush-small"
    operation = "page of small folios stored and durable"
    advice = mmap.MADV_RANDOM


class FlushSmallBytes(FlushBytes):
    """As `flush-bytes`, on what `flush-small` works on."""

    name = "flush-small-bytes"
    operation = "page of small folios stored and durable"
    advice = mmap.MADV_RANDOM


class RoundTrip(Alone, Counted):
    """Wake another process, which waits, and wait for its answer. The middle one of many.

    mmapio waits on and notifies words of a mapped file; multiprocessing sends and receives 8 bytes through a
    pipe. The state is how many the other process has answered.
    """

    name = "round-trip"
    operation = "round trip to another process"
    unit = "us"
    unit_size = 1e3


class Offsets(Iterator[int]):
    """The pages of a file in an endless shuffled order."""

    def __init__(self, size: int) -> None:
        offsets = list(range(0, size, PAGE))
        random.Random(SEED).shuffle(offsets)
        self._offsets = itertools.cycle(offsets)
        self.last = -1

    def __next__(self) -> int:
        self.last = next(self._offsets)
        return self.last


def answer_of(act: Act) -> bytes:
    """Run a statement that reads once more, and return what it read: its value, its `chunk` or the buffer."""
    names: dict[str, Any] = dict(act.names)
    buffer = names.get("buffer", b"")
    try:
        code = compile(act.statement, "<statement>", "eval")
    except SyntaxError:
        exec(act.statement, {}, names)
        value = names.get("chunk", buffer)
    else:
        value = eval(code, {}, names)
        if isinstance(value, int):
            value = buffer
    return bytes(value)


WORKLOADS: dict[str, type[MappedWorkload]] = {
    workload.name: workload
    for workload in (
        Slice, SliceLarge, Read, ReadPage, Write, WritePage, FetchAdd, Mutex,
        Chunks, Touch, TouchWrite, Grow, Flush, FlushBytes, FlushSmall, FlushSmallBytes, RoundTrip,
    )
}  # fmt: skip
"""In the order they run."""
