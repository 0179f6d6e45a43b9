"""Every way in which a file of a small log can be wrong, and what may come of opening it.

``python -m tests.unit.mmaplog.matrix --dir DIR`` tries them all; the test beside it tries some of each kind.
What may come of it: an error of a type that is documented, or the right data. Never an entry that is not what
was written, never one that never was, never one missing that was durable, unless somebody says so; never a
signal.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import resource
import shutil
import signal
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import xxhash

from mmapio import MmapIoError
from mmaplog import FlushPolicy, Log
from tests.unit.mmaplog import damage
from tests.unit.mmaplog.segment_file import (
    FOOTER_OFFSETS,
    HEADER_SIZE,
    MARK_OFFSETS,
    NO_CLAIM,
    RECORD,
    SegmentFile,
    segment_paths,
)

MANUAL = FlushPolicy.MANUAL
PER_SEGMENT = 4
COUNT = 3 * PER_SEGMENT
#: A log with a CONTROL that is believed; as copied after a clean close; as copied while it was in use; one
#: that was compacted, so that its full segments have gaps.
STATES = ("known", "closed", "in use", "with gaps")
#: What compaction removed from that.
REMOVED = frozenset({1, 2, 6})
FILES = ("first", "middle", "tail", "MANIFEST", "CONTROL", "LOCK")
Mode = Literal["r", "w"]
MODES: tuple[Mode, ...] = ("r", "w")
#: A case that takes longer hangs.
SECONDS_MAX = 300
MEMORY_MAX = 1 << 30


def payload(number: int) -> bytes:
    """What record `number` holds."""
    return b"record %d " % number * (1 + number % 3)


@dataclass(frozen=True)
class Case:
    """Damage to one file; `forged` when checksums were made to fit: then it is believed, within limits."""

    name: str
    inflict: Callable[[Path], object]
    forged: bool = False


class Ground:
    """A small log that is damaged and put back again and again, without being made anew each time."""

    def __init__(self, path: Path, state: str, fill: Callable[[Path, int], object] | None = None) -> None:
        self.path = path
        self.state = state
        path.parent.mkdir(parents=True, exist_ok=True)
        _build(path, fill or _fill)
        self.numbers = set(range(COUNT))
        if state == "with gaps":
            self.numbers -= REMOVED
            with Log.open(path, "w", flush_policy=MANUAL) as log:
                log.compact(lambda entry: entry.seq not in REMOVED)
        if state != "known":
            (path / "CONTROL").unlink()
        if state == "in use":
            tail = SegmentFile(segment_paths(path)[-1])
            tail.drop_mark()
            tail.save()
        self.contents = {each.name: each.read_bytes() for each in path.iterdir()}
        first, *middle, last = [each.name for each in segment_paths(path)]
        self.names: dict[str, str] = {"first": first, "tail": last}
        if middle:
            self.names["middle"] = middle[0]
        self._hold_control(None)

    def file(self, which: str) -> Path:
        """The path of one of `FILES`."""
        return self.path / self.names.get(which, which)

    def restore(self) -> None:
        """Make everything as it was before the damage."""
        for each in list(self.path.iterdir()):
            if each.is_dir() and not each.is_symlink():
                each.rmdir()
            elif each.name not in self.contents or each.is_symlink() or not each.is_file():
                each.unlink()
        for each in self.path.parent.glob("*.elsewhere"):
            each.unlink()
        for name, content in self.contents.items():
            if not (self.path / name).exists():
                (self.path / name).write_bytes(b"")
            if (self.path / name).read_bytes() != content:
                damage.overwrite_whole(self.path / name, content)
        held = self.held
        if held is not None and self.file("CONTROL").stat().st_ino != os.fstat(held).st_ino:
            # It is bound to its inode: a new one is made by opening, and nothing else is changed by that.
            self.file("CONTROL").unlink()
            with Log.open(self.path, "w", flush_policy=MANUAL):
                pass
            self.contents["CONTROL"] = self.file("CONTROL").read_bytes()
            self._hold_control(held)
            damage.overwrite_whole(self.file("tail"), self.contents[self.names["tail"]])

    def _hold_control(self, before: int | None) -> None:
        # As long as it is open, no other file gets its number.
        self.held = os.open(self.file("CONTROL"), os.O_RDONLY) if self.state == "known" else None
        if before is not None:
            os.close(before)


def _fill(path: Path, part: int) -> None:
    with Log.open(path, flush_policy=MANUAL, segment_bytes=64 << 10) as log:
        for number in range(part * PER_SEGMENT, (part + 1) * PER_SEGMENT):
            assert log.append(payload(number)) == number
            log.flush()


def _build(path: Path, fill: Callable[[Path, int], object]) -> None:
    # Three segments with few bytes in use: a torn tail, once it is noticed, begins the next segment.
    for part in range(3):
        fill(path, part)
        tail = SegmentFile(segment_paths(path)[-1])
        end = tail.end()
        if part < 2:
            tail.drop_mark()
            tail.data[end + 8] = 1
            tail.save()
            (path / "CONTROL").unlink()
            with Log.open(path, "w", flush_policy=MANUAL):
                pass
            tail = SegmentFile(tail.path)
            tail.data[end:] = b""
        else:
            tail.data[end + 64 :] = b""
        tail.save()
    with Log.open(path, "w", flush_policy=MANUAL) as log:
        assert log.committed == COUNT
    assert [SegmentFile(each).base_seq for each in segment_paths(path)] == [0, PER_SEGMENT, 2 * PER_SEGMENT]


# What can be wrong.


def within(name: str, act: Callable[..., object], *arguments: object) -> Callable[[Path], object]:
    """Do something to a file of a directory."""
    return lambda path: act(path / name, *arguments)


def cases(ground: Ground, other: Ground, which: str, stride: int = 1) -> Iterator[Case]:
    """Every case of one file; of lengths and bits, which are many, one in `stride`."""
    if which in ground.contents or which in ground.names:
        yield from replaced(ground, other, which)
        yield from truncated(ground, which, stride)
        yield from _flipped(ground, which, stride)
    else:
        yield from _in_the_way(ground, which)
    if which in ground.names:
        yield from _forged_segment(ground, which, stride)
    if which == "MANIFEST":
        yield from _forged_manifest(ground, stride)


def replaced(ground: Ground, other: Ground, which: str) -> Iterator[Case]:
    name = ground.file(which).name
    yield Case("missing", lambda path: (path / name).unlink())
    for content in (b"\x7fELF\2\1\1" + bytes(9000), b"include *.txt\n", b"\0" * 5000, b"\xff" * 70_000):
        yield Case(f"foreign {content[:4]!r}", within(name, damage.overwrite_whole, content))
    content = ground.contents[name]
    swapped = b"".join(content[at : at + 8][::-1] for at in range(0, len(content), 8))
    yield Case("of another byte order", within(name, damage.overwrite_whole, swapped))
    theirs = other.contents.get(other.file(which).name)
    if theirs is not None:
        yield Case("of another log", within(name, damage.overwrite_whole, theirs))
    yield from _in_the_way(ground, which)


def _in_the_way(ground: Ground, which: str) -> Iterator[Case]:
    name = ground.file(which).name

    def without(path: Path) -> Path:
        (path / name).unlink(missing_ok=True)
        return path / name

    def link(path: Path) -> None:
        target = path.parent / f"{name}.elsewhere"
        if (path / name).exists():
            shutil.move(path / name, target)
        (path / name).symlink_to(target)

    def bind(path: Path) -> None:
        place = Path.cwd()
        with socket.socket(socket.AF_UNIX) as made:
            os.chdir(path)
            try:
                without(path)
                made.bind(name)
            finally:
                os.chdir(place)

    yield Case("a directory", lambda path: without(path).mkdir())
    yield Case("a FIFO", lambda path: os.mkfifo(without(path)))
    yield Case("a link", link)
    yield Case("a link to itself", lambda path: without(path).symlink_to(name))
    yield Case("a socket", bind)
    if os.geteuid() == 0:
        device = os.makedev(1, 5)
        yield Case("a device", lambda path: os.mknod(without(path), 0o20600, device))


def truncated(ground: Ground, which: str, stride: int) -> Iterator[Case]:
    name = ground.file(which).name
    size = len(ground.contents[name])
    lengths = [*range(min(size, 1024)), *range(1024, min(size, HEADER_SIZE), 8), *range(HEADER_SIZE, size)]
    for length in [0, *lengths[1::stride], size - 1, size + 1, size + 100_000]:
        yield Case(f"{length} bytes long", within(name, os.truncate, length))


def _flipped(ground: Ground, which: str, stride: int) -> Iterator[Case]:
    name = ground.file(which).name
    content = ground.contents[name]
    for bit in itertools.islice(_bits_in_use(which, content), 0, None, stride):
        flipped = bytes([content[bit // 8] ^ 1 << bit % 8])
        yield Case(
            f"bit {bit % 8} of byte {bit // 8} flipped",
            within(name, damage.overwrite, flipped, bit // 8),
        )


def _bits_in_use(which: str, content: bytes) -> Iterator[int]:
    if which in ("first", "middle", "tail"):
        spans = [(0, 96), *((at, at + 24) for at in MARK_OFFSETS), *((at, at + 48) for at in FOOTER_OFFSETS)]
        spans.append((HEADER_SIZE, len(content)))
    elif which == "CONTROL":
        spans = [(0, 104), (4096, 4096 + 192)]
    else:
        spans = [(0, len(content))]
    for start, stop in spans:
        yield from range(8 * start, 8 * stop)


def _forged_segment(ground: Ground, which: str, stride: int) -> Iterator[Case]:
    # Any bit, with the checksum made right again; and fields at their edges.
    name = ground.file(which).name
    segment = SegmentFile(ground.file(which))
    starts = [record.offset for record in segment.records()]
    sizes = {record.offset: record.size for record in segment.records()}

    places: list[tuple[str, int, int, Callable[[SegmentFile], object]]] = []
    places += [("header", 0, 88, lambda changed: changed.patch_header(88, "<Q", 0))]
    # Copies that are not there become copies that are.
    places += [("mark", at, 16, partial(_reseal, at=at, count=16)) for at in MARK_OFFSETS]
    places += [("footer", at, 40, partial(_reseal, at=at, count=40)) for at in FOOTER_OFFSETS]
    places += [("record", at, sizes[at], partial(_reseal_record, at=at)) for at in starts]
    bits = [
        (kind, at + bit // 8, 1 << bit % 8, reseal)
        for kind, at, size, reseal in places
        for bit in range(8 * size)
    ]
    for kind, at, flip, reseal in bits[::stride]:
        yield Case(
            f"bit {flip} of byte {at} flipped, and the {kind} sealed again",
            within(name, _change, at, flip, reseal),
            forged=True,
        )
    for offset, length in itertools.product(starts, (0, 1, 2, 3, 0x1000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)):
        yield Case(
            f"the record at {offset} claims a length of {length}",
            within(name, _claim_length, offset, length),
            forged=True,
        )
    edges = (0, 1, 4095, 4096, 4097, 1 << 16, (8 << 30) + 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
    fields = [("<Q", at) for at in (40, 48, 56, 64, 80)] + [("<I", at) for at in (8, 12, 16, 20, 72, 76)]
    for (form, at), value in itertools.product(fields, edges):
        if value < 1 << 8 * struct.calcsize(form):
            yield Case(
                f"the header's field at {at} is {value}",
                within(name, damage.patch_segment, at, form, value),
                forged=True,
            )


def _always(body: bytes, _: bytes) -> bytes:
    return body


def _change(path: Path, at: int, flip: int, reseal: Callable[[SegmentFile], object]) -> None:
    changed = SegmentFile(path)
    changed.data[at] ^= flip
    reseal(changed)
    changed.save()


def _reseal(changed: SegmentFile, at: int, count: int) -> None:
    digest = xxhash.xxh3_64_intdigest(bytes(changed.data[at : at + count]), changed.segment_id)
    struct.pack_into("<Q", changed.data, at + count, digest)


def _reseal_record(changed: SegmentFile, at: int) -> None:
    (length,) = struct.unpack_from("<I", changed.data, at)
    if 16 <= 8 * length <= len(changed.data) - at:
        changed.reseal(at)


def _claim_length(path: Path, offset: int, length: int) -> None:
    changed = SegmentFile(path)
    struct.pack_into("<I", changed.data, offset, length)
    _reseal_record(changed, offset)
    changed.save()


def _forged_manifest(ground: Ground, stride: int) -> Iterator[Case]:
    body = ground.contents["MANIFEST"].split(b"\n")[1]
    for version in (b"0", b"2", b"10", b"-1", b"x", b"", b"repair", b"99999999999999999999"):
        yield Case(
            f"version {version!r}",
            partial(damage.rewrite_manifest, change=bytes, version=version),
            forged=True,
        )
    bodies = [b"", b"[]", b"{}", b"null", b"{" * 5000, b"[" * 100_000, b"\xff\xfe", b'{"first_seq": 1e400}']
    for name in (b"first_seq", b"segment_bytes", b"log_uuid", b"erasing", b"consents", b"began", b"epoch"):
        for value in (
            b"-1",
            b"0",
            b"1",
            b"9223372036854775808",
            b"1e9",
            b'"x"',
            b"null",
            b"[]",
            b"true",
            b"1" * 5000,
        ):
            bodies.append(body[:-1] + b', "' + name + b'": ' + value + b"}")
    for at in range(0, 8 * len(body), stride):
        bodies.append(body[: at // 8] + bytes([body[at // 8] ^ 1 << at % 8]) + body[at // 8 + 1 :])
    for each in bodies:
        if b"\n" not in each:
            yield Case(
                f"body {each[:200]!r}",
                partial(damage.rewrite_manifest, change=partial(_always, each)),
                forged=True,
            )


# What may come of it.


@dataclass
class Truth:
    """What the files say once they are damaged, read by hand: the oracle."""

    #: Each number with the payloads that it may have.
    payloads: dict[int, set[bytes]]
    #: So many records at least must be there when nobody complains.
    least: int


def truth(ground: Ground, case: Case) -> Truth:
    """Look at the damaged files."""
    payloads = {number: {payload(number)} for number in ground.numbers}
    vouched = 2 * PER_SEGMENT
    for which in ground.names:
        path = ground.file(which)
        if not path.is_file() or path.is_symlink() or path.stat().st_size < HEADER_SIZE:
            continue
        segment = SegmentFile(path)
        segment.segment_id = int(path.name[21:37], 16)
        for offset in range(HEADER_SIZE, len(segment.data) - 15, 8):
            length, checksum, number, _, flags, lag = RECORD.unpack_from(segment.data, offset)
            if not 16 <= 8 * length <= len(segment.data) - offset:
                continue
            if segment.checksum(offset, 8 * length) != checksum:
                continue
            seq = int(path.name[:20]) + number
            if case.forged:
                head = 24 if flags & 8 else 16
                content = bytes(segment.data[offset + head : offset + 8 * length - (flags & 7)])
                payloads.setdefault(seq, set()).add(content)
            if which == "tail" and lag != NO_CLAIM:
                vouched = max(vouched, seq - lag)
        for mark in MARK_OFFSETS if which == "tail" else ():
            seq, _, checksum = struct.unpack_from("<QQQ", segment.data, mark)
            if (
                xxhash.xxh3_64_intdigest(bytes(segment.data[mark : mark + 16]), segment.segment_id)
                == checksum
            ):
                vouched = max(vouched, seq)
    if case.forged:
        # Forged marks and footers may lie about the end, and a forged record may be the last one.
        return Truth(payloads, 0)
    return Truth(payloads, COUNT if ground.state == "known" and _control_is_right(ground) else vouched)


def _control_is_right(ground: Ground) -> bool:
    path = ground.file("CONTROL")
    return path.is_file() and not path.is_symlink() and path.read_bytes() == ground.contents["CONTROL"]


#: What opening and reading may raise.
TYPED = (MmapIoError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def is_typed(error: Exception) -> bool:
    """Whether an error is one of those that are documented."""
    if isinstance(error, TYPED):
        return True
    # Of what is no regular file, and of links.
    return type(error) is OSError and error.errno in (22, 40, 6)


def violations(ground: Ground, case: Case, mode: Mode) -> Iterator[str]:
    """Open the damaged log, read all of it in every way, and say what should not have come of that."""
    expected = truth(ground, case)
    complaints: list[Exception] = []
    try:
        log = Log.open(ground.path, mode, flush_policy=MANUAL)
    except Exception as error:
        if not is_typed(error):
            yield f"opening raised {error!r}"
        return
    with log:
        committed, first = log.committed, int(log.stats()["first_seq"])
        seen: dict[int, bytes] = {}
        try:
            for entry in log.replay():
                seen[entry.seq] = bytes(entry.payload)
        except Exception as error:
            complaints.append(error)
        for number in range(COUNT + 2):
            try:
                found = bytes(log[number].payload)
                if number in seen and found != seen[number]:
                    yield f"log[{number}] is another record than the replay's"
                seen[number] = found
            except IndexError as error:
                # Where there are gaps, a forged number makes another one.
                has_gap = number not in ground.numbers or (
                    case.forged and ground.numbers != set(range(COUNT))
                )
                if first <= number < committed and not has_gap:
                    yield f"log[{number}] raised {error!r}"
            except Exception as error:
                complaints.append(error)
        try:
            damages = log.verify().damages
        except Exception as error:
            complaints.append(error)
            damages = ()
        yield from (f"reading raised {error!r}" for error in complaints if not is_typed(error))
        for number, content in seen.items():
            if content not in expected.payloads.get(number, ()):
                yield f"record {number} is {content!r}"
        missing = {number for number in ground.numbers if number < expected.least} - seen.keys()
        if not complaints and not damages and missing:
            yield f"{sorted(missing)} are missing and nobody complains"
        if mode == "w" and not case.forged:
            yield from _append_and_look_again(ground, log, committed)


def _append_and_look_again(ground: Ground, log: Log, committed: int) -> Iterator[str]:
    try:
        if log.append(b"appended") != committed:
            yield "the next record did not get the next number"
        log.flush()
        log.close()
        with Log.open(ground.path, "r") as again:
            if (again.committed, bytes(again[committed].payload)) != (committed + 1, b"appended"):
                yield "what was appended is not there again"
    except Exception as error:
        if not is_typed(error):
            yield f"appending raised {error!r}"


@dataclass(frozen=True)
class Subject:
    """What is spoilt, how, and what may come of it."""

    ground: Callable[[Path, str], Ground]
    cases: Callable[[Ground, Ground, str, int], Iterator[Case]]
    violations: Callable[[Ground, Case, Mode], Iterator[str]]


def run(
    directory: Path, state: str, which: str, stride: int, subject: Subject | None = None
) -> tuple[int, list[str]]:
    """Try the cases of one file; how many there were, and what went wrong. To be called in a process of its
    own.

    The name of the case that is tried stands in the file ``case`` of `directory`: of one that ended the
    process, nobody else can tell.
    """
    logging.getLogger("mmaplog").setLevel(logging.ERROR)
    subject = subject or Subject(Ground, cases, violations)
    ground, other = subject.ground(directory / "log", state), subject.ground(directory / "other", state)
    found: list[str] = []
    count = 0
    with (directory / "case").open("wb", buffering=0) as note:
        for case, mode in itertools.product(subject.cases(ground, other, which, stride), MODES):
            count += 1
            note.seek(0)
            note.write(f"{state} {which} {mode}: {case.name}".encode().ljust(400))
            signal.alarm(SECONDS_MAX)
            case.inflict(ground.path)
            found += [
                f"{state}, {which}, mode {mode}, {case.name}: {each}"
                for each in subject.violations(ground, case, mode)
            ]
            ground.restore()
        signal.alarm(0)
    used = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if used > MEMORY_MAX:
        found.append(f"{state}, {which}: {used} bytes of memory were used")
    return count, found


def main(
    subject: Subject | None = None, states: tuple[str, ...] = STATES, files: tuple[str, ...] = FILES
) -> int:
    """Try everything, a process for each file and state."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dir", type=Path, required=True, help="where the logs are made")
    parser.add_argument("--stride", type=int, default=1, help="of lengths and bits, one in so many")
    parser.add_argument("--state", choices=states, action="append", help="only this state")
    parser.add_argument("--file", choices=files, action="append", help="only this file")
    options = parser.parse_args()
    totals: Counter[str] = Counter()
    for state, which in itertools.product(options.state or states, options.file or files):
        place = options.dir / f"{state.replace(' ', '-')}-{which}"
        place.mkdir(parents=True)
        pid = os.fork()
        if pid == 0:
            count, found = run(place, state, which, options.stride, subject)
            (place / "found").write_text("\n".join([str(count), *found]))
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status:
            print(f"DIED with {status} in {(place / 'case').read_text().strip()}", flush=True)
            totals["died"] += 1
            continue
        count, *found = (place / "found").read_text().splitlines()
        totals["cases"] += int(count)
        totals["wrong"] += len(found)
        print(f"{state}, {which}: {int(count):,} cases, {len(found)} wrong", flush=True)
        for each in found[:20]:
            print(f"  {each}", flush=True)
        shutil.rmtree(place)
    print(f"{totals['cases']:,} cases, {totals['wrong']} wrong, {totals['died']} died")
    return 1 if totals["wrong"] or totals["died"] else 0


if __name__ == "__main__":
    sys.exit(main())
