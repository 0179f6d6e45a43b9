"""`python -m tests.crash.truncation_storm`: cut and extend a file under a live reader and a live writer.

Three processes: this one watches, a victim reads and writes through mappings, a cutter truncates the file
and makes it whole again, over and over. Each read must give what the file holds, or MappingFault; a write
that was acknowledged must be in the file; and no process may die. What is done follows from the seed; when,
does not.

The lower half of the file holds a known pattern without a zero byte, so that zeros that nobody announced
show. The upper half is the writer's: each write is a number that was never used before, and is looked up in
the file. The cutter counts the cuts that it begins and those that it has mended: what lies between two equal
readings met no cut, and is exact.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mmapio import PAGE_SIZE, MappingFault, MemoryMappedFile, MmapMode, OutOfBounds

HALF = 96 * PAGE_SIZE
"""Bytes that are read; as many follow that are written. Enough for copies that run without the GIL."""

SIZE = 2 * HALF
PATTERN = bytes((at + at // PAGE_SIZE) % 255 + 1 for at in range(HALF))
STEPS = 40
"""Accesses of the reader and of the writer in each round."""

VIOLATIONS_MAX = 10
# A victim that hangs must not look like a slow one.
SILENCE_SECONDS_MAX = 300

STDLIB = "stdlib-mmap"
ZEROS = "zeros-for-faults"
SWALLOWED = "swallowed-store"
DEFECTS = (STDLIB, ZEROS, SWALLOWED)


class Words:
    """Numbers that the processes share. Each is written by one of them."""

    NAMES = (
        "round",
        "begun",
        "mended",
        "stop",
        "stopped",
        "exact",
        "mixed",
        "faults",
        "foreign",
        "stored",
        "lost",
    )

    def __init__(self) -> None:
        self._words = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")

    def __getitem__(self, name: str) -> int:
        return self._words[self.NAMES.index(name)]

    def __setitem__(self, name: str, value: int) -> None:
        self._words[self.NAMES.index(name)] = value

    def add(self, name: str) -> None:
        """One more, of those that the victim counts."""
        self[name] += 1


class Cut:
    """Whether a cut may have met what the block did: read `exact` after it."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self._begun = words["begun"]
        self._whole = words["mended"] == self._begun

    @property
    def exact(self) -> bool:
        """True when the file was whole all the time from the making of this on."""
        return self._whole and self._words["begun"] == self._begun


# The cutter.


def cut(path: Path, words: Words, seed: int, number: int) -> None:
    """Cut and mend the file in each round after `number` until told to stop; ends with its parent."""
    parent = os.getppid()
    descriptor = os.open(path, os.O_RDWR)
    while os.getppid() == parent:
        if words["round"] == number:
            time.sleep(0.0001)
            continue
        number = words["round"]
        chance = random.Random(f"{seed}/{number}/cutter")
        while words["stop"] != number and os.getppid() == parent:
            cut_once(descriptor, words, chance)
            time.sleep(chance.choice((0, 0, 0, 0.0003)))
        words["stopped"] = number


def cut_once(descriptor: int, words: Words, chance: random.Random) -> None:
    """Truncate to somewhere, perhaps extend to somewhere, and make whole."""
    size = chance.choice((0, chance.randrange(SIZE), chance.randrange(SIZE) // PAGE_SIZE * PAGE_SIZE))
    words["begun"] += 1
    os.ftruncate(descriptor, size)
    time.sleep(chance.choice((0, 0, 0, 0.0002)))
    if chance.random() < 0.3:
        os.ftruncate(descriptor, chance.randrange(size, SIZE + 1))
    if size < HALF:
        os.pwrite(descriptor, PATTERN[size:], size)
    os.ftruncate(descriptor, SIZE)
    words["mended"] += 1


# The victim.


class Subject(Protocol):
    """What is to survive."""

    def read(self, chance: random.Random, start: int, count: int) -> tuple[bytes, bool]:
        """Bytes of the lower half, and whether foreign code read them. Raises MappingFault."""

    def write(self, chance: random.Random, start: int, data: bytes) -> None:
        """Write 8 bytes, aligned, into the upper half. Raises MappingFault."""

    def heal(self, *, wholly: bool = False) -> None:
        """After a MappingFault; `wholly` for views too."""

    def close(self) -> None:
        """At the end of a round."""


class Ours:
    """A file mapped by mmapio: one handle that reads, in any mode, and one that writes."""

    def __init__(self, path: Path, chance: random.Random) -> None:
        ways = (MemoryMappedFile.open_ro, MemoryMappedFile.open_rw, MemoryMappedFile.open_cow)
        self.writer = MemoryMappedFile.open_rw(path, reserve=chance.choice((SIZE, 64 << 30)))
        self.reader = chance.choice((*(way(path) for way in ways), self.writer))
        self.kept = self.reader.as_slice(0, HALF) if len(self.reader) >= HALF else None

    def read(self, chance: random.Random, start: int, count: int) -> tuple[bytes, bool]:
        mapped = self.reader
        ways: tuple[Callable[[], bytes], ...] = (
            lambda: mapped.read_bytes(start, count),
            lambda: self._into(start, count),
            lambda: mapped[start : start + count],
            lambda: mapped.as_slice(start, count).tobytes(),
            lambda: self._words(start, count),
            lambda: b"".join(mapped.chunks_owned(5 * PAGE_SIZE))[start : start + count],
            lambda: self._kept(start, count),
            lambda: self._foreign(start, count),
            lambda: self._foreign(start, count),
        )
        way = chance.randrange(len(ways))
        found = ways[way]()
        if not found:
            # A slice is cut off at the end, as of bytes.
            raise OutOfBounds(errno.EINVAL, "the file was shorter when it was last looked at")
        return found, way >= len(ways) - 2

    def _into(self, start: int, count: int) -> bytes:
        target = bytearray(count)
        self.reader.read_into(start, target)
        return bytes(target)

    def _words(self, start: int, count: int) -> bytes:
        first, count = start // 8 * 8, min(count, 64)
        words = self.reader.atomic_u64_slice(first, (start + count - first + 7) // 8)
        found = b"".join(word.load().to_bytes(8, sys.byteorder) for word in words)
        return found[start - first :][:count]

    def _kept(self, start: int, count: int) -> bytes:
        # A view from the beginning of the round: it never heals, so it either shows the file or raises.
        if self.kept is None:
            return self.reader.read_bytes(start, count)
        return bytes(self.kept[start : start + count])

    def _foreign(self, start: int, count: int) -> bytes:
        # Nobody guards this; the check that follows must tell of zeros that it met.
        view = self.reader.as_slice(start, count)
        found = bytes(memoryview(view))
        view[0]
        return found

    def write(self, chance: random.Random, start: int, data: bytes) -> None:
        mapped = self.writer
        number = int.from_bytes(data, sys.byteorder)
        ways: tuple[Callable[[], object], ...] = (
            lambda: mapped.update_region(start, data),
            lambda: self._assign(start, data),
            lambda: mapped.atomic_u64(start).store(number),
            lambda: mapped.atomic_u64(start).swap(number),
            lambda: self._mutable(start, data),
            lambda: mapped.update_region(start & ~0xFFF, bytes(start & 0xFFF) + data),
        )
        chance.choice(ways)()

    def _assign(self, start: int, data: bytes) -> None:
        if len(self.writer) < start + 8:
            raise OutOfBounds(errno.EINVAL, "the file was shorter when it was last looked at")
        self.writer[start : start + 8] = data

    def _mutable(self, start: int, data: bytes) -> None:
        with self.writer.as_slice_mut(start, 8) as view:
            view[:] = data

    def heal(self, *, wholly: bool = False) -> None:
        self.reader.refresh()
        self.writer.refresh()
        if wholly:
            if len(self.reader) < SIZE and self.reader.mode is MmapMode.COPY_ON_WRITE:
                # It was refreshed in the middle of a cut, and keeps the length that it got.
                self.reader = MemoryMappedFile.open_cow(self.reader.path)
            self.kept = self.reader.as_slice(0, HALF)

    def close(self) -> None:
        for mapped in (self.reader, self.writer):
            # A handle that is marked says so when it is closed with writes outstanding.
            with contextlib.suppress(MappingFault):
                mapped.close()


class Stdlib:
    """The control: the standard library's mapping, which must not survive."""

    def __init__(self, path: Path, chance: random.Random) -> None:
        with path.open("r+b") as file:
            self.mapped = mmap.mmap(file.fileno(), 0)

    def read(self, chance: random.Random, start: int, count: int) -> tuple[bytes, bool]:
        return self.mapped[start : start + count], False

    def write(self, chance: random.Random, start: int, data: bytes) -> None:
        self.mapped[start : start + len(data)] = data

    def heal(self, *, wholly: bool = False) -> None:
        pass

    def close(self) -> None:
        self.mapped.close()


class ZerosForFaults(Ours):
    """A planted defect: what is missing is read as zeros."""

    def read(self, chance: random.Random, start: int, count: int) -> tuple[bytes, bool]:
        try:
            return super().read(chance, start, count)
        except MappingFault:
            return bytes(count), False


class SwallowedStore(Ours):
    """A planted defect: a store to what is missing reports success."""

    def write(self, chance: random.Random, start: int, data: bytes) -> None:
        with contextlib.suppress(MappingFault):
            super().write(chance, start, data)


SUBJECTS: dict[str | None, Callable[[Path, random.Random], Subject]] = {
    None: Ours,
    STDLIB: Stdlib,
    ZEROS: ZerosForFaults,
    SWALLOWED: SwallowedStore,
}


class Violation(Exception):
    """What must not happen."""


@dataclass
class Victim:
    """One process' rounds."""

    path: Path
    words: Words
    seed: int
    make: Callable[[Path, random.Random], Subject]
    descriptor: int = -1
    number: int = 0
    used: int = 0
    found: list[str] = field(default_factory=list)

    def round(self, number: int) -> None:
        """Read in this thread and write in another while the cutter is at work, then look at what is left."""
        self.number = number
        chance = random.Random(f"{self.seed}/{number}/reader")
        subject = self.make(self.path, chance)
        writer = threading.Thread(target=self._guarded, args=(self._write, subject))
        self.words["round"] = number
        writer.start()
        self._guarded(self._read, subject, chance)
        writer.join()
        self.words["stop"] = number
        while self.words["stopped"] != number:
            time.sleep(0.0001)
        self._guarded(self._settle, subject, chance)
        subject.close()

    def _guarded(self, work: Callable[..., None], *arguments: object) -> None:
        try:
            work(*arguments)
        except Violation as error:
            self.found.append(f"{error}")
        except Exception:
            self.found.append(traceback.format_exc())

    def _read(self, subject: Subject, chance: random.Random) -> None:
        for _ in range(STEPS):
            start = chance.randrange(HALF)
            count = chance.choice((1, 8, 100, PAGE_SIZE, HALF))
            self._read_once(subject, chance, start, min(count, HALF - start))

    def _read_once(self, subject: Subject, chance: random.Random, start: int, count: int) -> None:
        met = Cut(self.words)
        try:
            data, foreign = subject.read(chance, start, count)
        except (MappingFault, OutOfBounds):
            self.words.add("faults")
            self._heal(subject, chance)
            return
        self.words.add("foreign") if foreign else None
        if data == PATTERN[start : start + len(data)]:
            self.words.add("exact")
        elif met.exact:
            raise Violation(f"wrong bytes at {start}, though no cut was near: {data[:16].hex()}...")
        elif not pattern_or_zeros(data, start):
            raise Violation(f"bytes at {start} that were never written: {data[:16].hex()}...")
        else:
            self.words.add("mixed")

    def _write(self, subject: Subject) -> None:
        chance = random.Random(f"{self.seed}/{self.number}/writer")
        for _ in range(STEPS):
            self._write_once(subject, chance)

    def _write_once(self, subject: Subject, chance: random.Random) -> None:
        self.used += 1
        data = (self.number << 32 | self.used).to_bytes(8, sys.byteorder)
        start = chance.randrange(HALF, SIZE, 8)
        met = Cut(self.words)
        try:
            subject.write(chance, start, data)
        except (MappingFault, OutOfBounds):
            self.words.add("lost")
            self._heal(subject, chance)
            return
        found = os.pread(self.descriptor, 8, start)
        if found == data:
            self.words.add("stored")
        elif met.exact:
            raise Violation(
                f"a store at {start} was acknowledged and is not in the file, though no cut was near"
            )

    def _heal(self, subject: Subject, chance: random.Random) -> None:
        # Not always at once: a marked handle must go on refusing when the file is whole again.
        if chance.random() < 0.8:
            subject.heal()

    def _settle(self, subject: Subject, chance: random.Random) -> None:
        for start in range(0, HALF, HALF // 4):
            self._read_once(subject, chance, start, HALF // 4)
        self._store_into_nothing(subject, chance)
        subject.heal(wholly=True)
        for _ in range(4):
            # Nobody cuts any more: no exception is an excuse now.
            met = Cut(self.words)
            data, _ = subject.read(chance, 0, HALF)
            if data != PATTERN[: len(data)] or not met.exact:
                raise Violation("wrong bytes in a whole file, after refresh()")
            subject.write(chance, HALF, b"healed..")
            if os.pread(self.descriptor, 8, HALF) != b"healed..":
                raise Violation("a store is not in a whole file, after refresh()")

    def _store_into_nothing(self, subject: Subject, chance: random.Random) -> None:
        # However seldom the cutter gets a turn, each round has one store that meets a cut for certain.
        os.ftruncate(self.descriptor, 0)
        try:
            subject.write(chance, HALF, b"nowhere.")
        except (MappingFault, OutOfBounds):
            return
        finally:
            os.pwrite(self.descriptor, PATTERN, 0)
            os.ftruncate(self.descriptor, SIZE)
        raise Violation(f"a store at {HALF} was acknowledged and is not in the file, though no cut was near")


def pattern_or_zeros(data: bytes, start: int) -> bool:
    """Whether each byte is the pattern's or zero: what a cut and a mended file can show at most."""
    expected = PATTERN[start : start + len(data)]
    for at in range(0, len(data), PAGE_SIZE):
        piece, wanted = data[at : at + PAGE_SIZE], expected[at : at + PAGE_SIZE]
        if piece != wanted and any(got not in (0, want) for got, want in zip(piece, wanted, strict=True)):
            return False
    return True


# The watcher.


@dataclass
class Options:
    """What to do."""

    rounds: int
    seed: int
    directory: Path
    defect: str | None = None
    violations_max: int = VIOLATIONS_MAX


class Storm:
    """Runs victims, one after the other dies, until the rounds are done or enough has gone wrong."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.words = Words()
        self.violations: list[str] = []

    def run(self) -> None:
        """All rounds."""
        begin = 1
        while begin <= self.options.rounds and len(self.violations) < self.options.violations_max:
            notes = self.options.directory / f"notes-{begin}"
            self._prepare(begin)
            cutter = os.fork()
            if cutter == 0:
                self._be_the_cutter(begin)
            victim = os.fork()
            if victim == 0:
                self._be_the_victim(begin, notes)
            status = self._wait(victim)
            os.kill(cutter, signal.SIGKILL)
            os.waitpid(cutter, 0)
            if notes.exists():
                self.violations += notes.read_text().split("\0")[:-1]
            reached = self.words["round"]
            if status:
                how = signal.Signals(-status).name if status < 0 else f"exit {status}"
                self.violations.append(f"round {reached}: the process ended with {how}")
            begin = reached + 1

    def _wait(self, pid: int) -> int:
        deadline, reached = time.monotonic() + SILENCE_SECONDS_MAX, 0
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            if self.words["round"] != reached:
                deadline, reached = time.monotonic() + SILENCE_SECONDS_MAX, self.words["round"]
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    @property
    def _path(self) -> Path:
        return self.options.directory / "file"

    def _prepare(self, begin: int) -> None:
        self._path.write_bytes(PATTERN + bytes(HALF))
        self.words["round"] = self.words["stop"] = self.words["stopped"] = begin - 1
        # The last cutter may have been killed in the middle of a cut.
        self.words["mended"] = self.words["begun"]

    def _be_the_cutter(self, begin: int) -> None:
        try:
            cut(self._path, self.words, self.options.seed, begin - 1)
        finally:
            os._exit(0)

    def _be_the_victim(self, begin: int, notes: Path) -> None:
        # Never back to who forked: whatever happens ends here.
        code = 1
        try:
            victim = Victim(self._path, self.words, self.options.seed, SUBJECTS[self.options.defect])
            victim.descriptor = os.open(self._path, os.O_RDWR)
            for number in range(begin, self.options.rounds + 1):
                victim.round(number)
                if victim.found:
                    with notes.open("a") as file:
                        file.writelines(f"round {number}: {text}\0" for text in victim.found)
                    break
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def table(self) -> str:
        """For people."""
        words = self.words
        rows = (
            ("rounds", words["round"]),
            ("violations", len(self.violations)),
            ("cuts", words["begun"]),
            ("reads that were exact", words["exact"]),
            ("reads that met a cut and gave zeros for what was gone", words["mixed"]),
            ("reads by foreign code", words["foreign"]),
            ("reads that raised", words["faults"]),
            ("stores found in the file", words["stored"]),
            ("stores that raised", words["lost"]),
        )
        width = max(len(name) for name, _ in rows) + 2
        return "\n".join(f"{name:<{width}}{value:,}" for name, value in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the storm that the command line asks for; 0 when nothing was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.truncation_storm", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10_000, help="how many rounds (10,000)")
    parser.add_argument("--seed", type=int, default=1, help="what everything is drawn from (1)")
    parser.add_argument("--dir", type=Path, help="where the file goes; a temporary directory if not given")
    parser.add_argument("--defect", choices=DEFECTS, help="plant a defect, which must be caught")
    chosen = parser.parse_args(arguments)
    if chosen.rounds < 1:
        parser.error("--rounds is at least 1")
    if chosen.dir is not None and not chosen.dir.is_dir():
        parser.error(f"--dir {chosen.dir}: not a directory; make it first, or leave the option out")
    directory = Path(tempfile.mkdtemp(prefix="truncation-storm-", dir=chosen.dir))
    limit = VIOLATIONS_MAX if chosen.defect is None else 1
    storm = Storm(Options(chosen.rounds, chosen.seed, directory, chosen.defect, limit))
    begun = time.perf_counter()
    try:
        storm.run()
    finally:
        shutil.rmtree(directory)
    for text in storm.violations:
        print(f"VIOLATION in {text}")
    print(storm.table())
    print(f"seed {chosen.seed}, {time.perf_counter() - begun:.0f} s")
    return 1 if storm.violations else 0


if __name__ == "__main__":
    sys.exit(main())
