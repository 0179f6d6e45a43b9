"""An independent reader of logs in plain Python, written from docs/format-log.md alone.

It shares nothing with the native code but the hash function, so that the two can only agree when the page is
right. It reads files, maps nothing, takes no lock and changes nothing; a log that is written to meanwhile may
look broken. Whatever is not as the page says is an AssertionError that names it.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

_SEGMENT_NAME = re.compile(r"(0\d{19})-([0-9a-f]{16})(\.compact)?\.seg")
_SEGMENT_HEADER = struct.Struct("<8sIIII16sQQQQIIQQ")
_MARK = struct.Struct("<QQQ")
_FOOTER = struct.Struct("<QQQQQQ")
_RECORD_HEADER = struct.Struct("<IIIBBH")
_IDENTITY = struct.Struct("<8sII16sQ16sQQQQQQ")
_SLOT = struct.Struct("<QQII")

_RECORDS_START = 4096
_LAG_UNKNOWN = 0xFFFF


def require(condition: object, complaint: str) -> None:
    """AssertionError with `complaint` unless the condition holds, under ``python -O`` too."""
    if not condition:
        raise AssertionError(complaint)


class Record(NamedTuple):
    """A record: its number, payload and time (nanoseconds since 1970, or None), and where it stands."""

    seq: int
    payload: bytes
    time: int | None
    segment_id: int
    offset: int


@dataclass
class Segment:
    """A segment file, its header taken apart, its bytes up to what may be read."""

    name: str
    id: int
    base_seq: int
    epoch: int
    log_uuid: uuid.UUID
    data: bytes
    replaces: int
    compacted: bool

    @property
    def footer(self) -> tuple[int, int, int] | None:
        """(number after it, offset after its last record, how many it has), of the copy that verifies."""
        for copy in (1536, 2048):
            number, end, records, _, _, checksum = _FOOTER.unpack_from(self.data, copy)
            if checksum == xxh3_64_intdigest(self.data[copy : copy + 40], self.id):
                return number, end, records
        return None


class Compacted(NamedTuple):
    """An entry of `compacted` in MANIFEST."""

    segment_id: int
    base_seq: int
    stop: int
    records: int


@dataclass
class Manifest:
    """What MANIFEST says, or the segments where it is lost."""

    log_uuid: uuid.UUID
    first_seq: int
    compacted: list[Compacted]
    cut: tuple[int, int] | None

    def counting(self, segments: list[Segment], tail_id: int | None) -> list[Segment]:
        """The segments that are part of the log."""
        listed = {each.segment_id for each in self.compacted}
        counting = [
            segment
            for segment in segments
            if (
                segment.id in listed
                if segment.compacted
                else not any(each.base_seq <= segment.base_seq < each.stop for each in self.compacted)
            )
        ]
        first = max(
            (segment.base_seq for segment in counting if segment.base_seq <= self.first_seq), default=None
        )
        require(first is not None, f"records from {self.first_seq} on are missing")
        assert first is not None
        return [segment for segment in counting if segment.base_seq >= first or segment.id == tail_id]


@dataclass
class Control:
    """What a CONTROL file says; offsets in bytes."""

    incarnation: int
    seq: int
    segment_id: int
    end: int
    last: int
    in_flight: int
    durable: int
    first_seq: int
    index: int


@dataclass
class Log:
    """A log that was read and found sound. `control` is None when it had to be read without."""

    path: Path
    log_uuid: uuid.UUID
    first_seq: int
    control: Control | None
    segments: list[Segment]
    manifest: Manifest
    records: list[Record] = field(default_factory=list)
    stop: int = 0

    @property
    def committed(self) -> int:
        """The number after the last record."""
        return self.stop


def record_at(segment: Segment, offset: int, seq: int | None = None) -> tuple[Record, int, int] | None:
    """The record at an offset with its size and its lag, or None when nothing whole stands there.

    With `seq`, it must have that number.
    """
    data = segment.data
    if offset + 16 > len(data):
        return None
    length, checksum, below, kind, flags, lag = _RECORD_HEADER.unpack_from(data, offset)
    size, head, padding = 8 * length, 24 if flags & 8 else 16, flags & 7
    if length == 0 or offset + size > len(data) or size < head + padding:
        return None
    seed = segment.id ^ (length + (offset // 8 << 32))
    if xxh3_64_intdigest(data[offset + 8 : offset + size], seed) & 0xFFFFFFFF != checksum:
        return None
    where = f"the record at offset {offset} of {segment.name}"
    require(kind == 1 and flags & ~0x3F == 0, f"{where} has the unknown type {kind} or flags {flags:#x}")
    require(
        not any(data[offset + size - padding : offset + size]), f"{where} ends with other bytes than zeros"
    )
    if seq is not None and segment.base_seq + below != seq:
        return None
    time = int.from_bytes(data[offset + 16 : offset + 24], "little") if flags & 8 else None
    payload = data[offset + head : offset + size - padding]
    return Record(segment.base_seq + below, payload, time, segment.id, offset), size, lag


def read_log(path: str | os.PathLike[str]) -> Log:
    """Read a whole log and check it: as far as CONTROL says, else to the first record that is none."""
    directory = Path(path)
    segments = [
        _segment(entry) for entry in sorted(directory.iterdir()) if _SEGMENT_NAME.fullmatch(entry.name)
    ]
    require(segments, f"{directory} has no segments")
    manifest = _manifest(directory, segments)
    for segment in segments:
        require(segment.log_uuid == manifest.log_uuid, f"{segment.name} belongs to another log")
    require(manifest.cut is None, f"the records from {manifest.cut} on were being dropped")
    control = _control(directory, manifest.log_uuid)
    segments = manifest.counting(segments, None if control is None else control.segment_id)
    floor = manifest.first_seq if control is None else control.seq
    tail = None if control is None else _confirmed_tail(control, segments)
    if tail is None:
        control = None
    else:
        # Others that begin where the tail does, or at the committed number or later, are unfinished rolls.
        before = [each for each in segments if each.base_seq < floor and each.base_seq != tail.base_seq]
        segments = [*before, tail]
    log = Log(directory, manifest.log_uuid, manifest.first_seq, control, _one_per_base(segments), manifest)
    require(
        all(before.epoch <= after.epoch for before, after in itertools.pairwise(log.segments)),
        "the epochs of the segments go down",
    )
    at, end = _read_records(log)
    log.records = [record for record in log.records if record.seq >= log.first_seq]
    if control is None:
        _judge_end(log, at, end)
        require(log.committed >= floor, f"{floor} records were committed, {log.committed} are there")
    else:
        require(
            control.first_seq <= log.first_seq,
            f"CONTROL begins with {control.first_seq}, MANIFEST with {log.first_seq}",
        )
        last = log.segments[at]
        require(
            (last.id, end) == (control.segment_id, control.end),
            f"the log ends at {end} of {last.name}, not at {control.end} of {control.segment_id:016x}",
        )
        rest = last.data[max(end, control.in_flight) :]
        require(rest.count(0) == len(rest), f"{last.name} has bytes beyond what an append may have written")
    return log


def _segment(entry: Path) -> Segment:
    data = entry.read_bytes()
    require(len(data) >= _RECORDS_START, f"{entry.name} is shorter than a segment's header")
    fields = _SEGMENT_HEADER.unpack_from(data)
    (
        magic,
        version,
        size,
        _,
        incompatible,
        log_uuid,
        number,
        base_seq,
        _,
        capacity,
        epoch,
        _,
        replaces,
        checksum,
    ) = fields
    require(magic == b"\x93mmaplog" and version == 1, f"{entry.name} is no segment of version 1")
    require(checksum == xxh3_64_intdigest(data[:88]), f"{entry.name}: the header does not match its checksum")
    require(incompatible in (0, 1) and size == _RECORDS_START, f"{entry.name} has unknown features")
    kind = ".compact" if incompatible else ""
    require(
        entry.name == f"{base_seq:020}-{number:016x}{kind}.seg", f"{entry.name}: name and header disagree"
    )
    require(bool(replaces) == bool(incompatible), f"{entry.name} replaces {replaces:016x}")
    return Segment(
        entry.name,
        number,
        base_seq,
        epoch,
        uuid.UUID(bytes=log_uuid),
        data[:capacity],
        replaces,
        bool(incompatible),
    )


def _manifest(directory: Path, segments: list[Segment]) -> Manifest:
    try:
        first, second, rest = (directory / "MANIFEST").read_bytes().split(b"\n")
    except FileNotFoundError:
        return _derived_manifest(segments)
    expected = f"mmaplog-manifest 1 {xxh3_64_intdigest(second):016x}"
    require(first == expected.encode() and rest == b"", "MANIFEST does not match its checksum")
    body = json.loads(second)
    require(body.get("erasing") is not True, "the log was being replaced by an empty one")
    compacted = [
        Compacted(int(segment_id, 16), base_seq, stop, records)
        for segment_id, base_seq, stop, records in body.get("compacted", [])
    ]
    require(
        all(each.base_seq < each.stop and each.records <= each.stop - each.base_seq for each in compacted)
        and all(before.stop <= after.base_seq for before, after in itertools.pairwise(compacted)),
        "the compacted segments that MANIFEST lists are not in order",
    )
    cut = (body["cut"][0], body["cut"][1]) if "cut" in body else None
    swept, times = body.get("swept", (0, 0))
    require(0 <= swept < 1 << 63 and (times > 0) == ("swept" in body), "what was swept makes no sense")
    for file_id, seq, turn in body.get("consents", []):
        require(len(file_id) == 16 and int(file_id, 16) > 0 and turn > 0, "who agreed cannot be")
        require(0 <= seq <= body["first_seq"], "more was agreed to go than has gone")
    began = body.get("began", [])
    epochs, starts = (
        [0, *(epoch for epoch, _ in began)],
        [0, *(seq for _, seq in began), body["first_seq"] - 1],
    )
    require(len(began) <= 64 and epochs == sorted(set(epochs)), "the epochs that began are not in order")
    require(not began or starts == sorted(starts), "where epochs began is not in order, or not below the log")
    return Manifest(uuid.UUID(body["log_uuid"]), body["first_seq"], compacted, cut)


def _derived_manifest(segments: list[Segment]) -> Manifest:
    present = {segment.id for segment in segments}
    compacted: list[Compacted] = []
    for segment in segments:
        if not segment.compacted or segment.footer is None or segment.replaces in present:
            continue
        stop, _, records = segment.footer
        newer = [
            each.base_seq
            for each in segments
            if segment.base_seq < each.base_seq < stop and each.epoch > segment.epoch
        ]
        if newer:
            stop = min(newer)
            records = sum(record.seq < stop for record in _records_in_order(segment))
        if not compacted or segment.base_seq >= compacted[-1].stop:
            compacted.append(Compacted(segment.id, segment.base_seq, stop, records))
    newest = max(segments, key=lambda segment: segment.epoch)
    cut = None
    alone = [segment.epoch for segment in segments].count(newest.epoch) == 1
    behind = any(segment.base_seq >= newest.base_seq for segment in segments if segment is not newest)
    if alone and behind and not any(_records_in_order(newest)):
        cut = newest.base_seq, newest.epoch
    return Manifest(segments[0].log_uuid, segments[0].base_seq, compacted, cut)


def _records_in_order(segment: Segment) -> Iterator[Record]:
    offset = _RECORDS_START
    while (found := record_at(segment, offset)) is not None:
        yield found[0]
        offset += found[1]


def _control(directory: Path, log_uuid: uuid.UUID) -> Control | None:
    # None when the file is not of this page cache.
    try:
        data = (directory / "CONTROL").read_bytes()
        status = (directory / "CONTROL").stat()
    except FileNotFoundError:
        return None
    if len(data) != 8192:
        return None
    magic, version, _, owner, incarnation, boot, device, inode, *_, checksum = _IDENTITY.unpack_from(data)
    if (magic, version, owner) != (b"\x93mmapctl", 1, log_uuid.bytes):
        return None
    boot_now = uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()).bytes
    device_now = os.major(status.st_dev) << 32 | os.minor(status.st_dev)
    if (boot, device, inode) != (boot_now, device_now, status.st_ino):
        return None
    hot = data[4096 : 4096 + 128]
    (clean_sum,) = struct.unpack_from("<Q", data, 4096 + 128)
    if checksum != xxh3_64_intdigest(data[:96]) or clean_sum not in (
        0,
        xxh3_64_intdigest(hot, incarnation) or 1,
    ):
        return None
    (turn,) = struct.unpack_from("<Q", hot)
    seq, segment_id, end, last = _SLOT.unpack_from(hot, 8 + 24 * (turn & 1))
    in_flight, durable = struct.unpack_from("<QQ", hot, 56)
    first_seq, _, index = struct.unpack_from("<3Q", data, 4096 + 152)
    return Control(incarnation, seq, segment_id, 8 * end, 8 * last, in_flight, durable, first_seq, index)


def _confirmed_tail(control: Control, segments: list[Segment]) -> Segment | None:
    # The segment in which the log ends, when a record ends there.
    tail = next((each for each in segments if each.id == control.segment_id), None)
    if tail is None or not _RECORDS_START <= control.end <= len(tail.data) or control.seq < tail.base_seq:
        return None
    if control.durable > control.seq or any(
        each.base_seq >= control.seq
        and each is not tail
        and (each.base_seq != tail.base_seq or each.epoch >= tail.epoch)
        and record_at(each, _RECORDS_START)
        for each in segments
    ):
        return None
    if control.last == 0:
        fresh = control.seq == tail.base_seq
        confirmed = fresh if control.end == _RECORDS_START else control.durable == control.seq
    else:
        found = record_at(tail, control.last, control.seq - 1)
        confirmed = found is not None and control.last + found[1] == control.end
    return tail if confirmed else None


def _one_per_base(segments: list[Segment]) -> list[Segment]:
    best: dict[int, tuple[tuple[int, bool, int], Segment]] = {}
    for segment in segments:
        rank = (segment.epoch, record_at(segment, _RECORDS_START) is not None, -segment.id)
        if segment.base_seq not in best or rank > best[segment.base_seq][0]:
            best[segment.base_seq] = rank, segment
    return [best[base][1] for base in sorted(best)]


def _read_records(log: Log) -> tuple[int, int]:
    # Fills in the records; the index of the segment in which they end, and the offset there.
    seq, stop = log.segments[0].base_seq, None if log.control is None else log.control.seq
    listed = {each.segment_id: each for each in log.manifest.compacted}
    for at, segment in enumerate(log.segments):
        # A segment's records end where the next one's begin, whatever bytes follow.
        successor = log.segments[at + 1].base_seq if at + 1 < len(log.segments) else None
        boundary = stop if successor is None else successor
        if segment.compacted:
            offset, seq = _read_compacted(log, segment, listed[segment.id], boundary)
            if successor is None:
                break
            continue
        offset, ends = _RECORDS_START, {seq: _RECORDS_START}
        while seq != boundary:
            found = record_at(segment, offset, seq)
            if found is None:
                break
            log.records.append(found[0])
            offset += found[1]
            seq += 1
            ends[seq] = offset
        newer = successor is not None and log.segments[at + 1].epoch > segment.epoch
        _check_marks(segment, ends, seq, successor, newer)
        if seq != boundary or successor is None:
            break
    require(
        stop is None or seq == stop, f"record {seq} of {stop} at offset {offset} of {segment.name} is damaged"
    )
    log.stop = seq
    return at, offset


def _read_compacted(log: Log, segment: Segment, listed: Compacted, boundary: int | None) -> tuple[int, int]:
    # As above, of one with gaps: it holds as many records as MANIFEST says, and ends where its footer says.
    where, footer = segment.name, segment.footer
    require(footer is not None, f"{where} has no footer")
    require(listed.base_seq == segment.base_seq, f"MANIFEST says that {where} begins with {listed.base_seq}")
    require(boundary == listed.stop, f"MANIFEST says that {where} ends before {listed.stop}, not {boundary}")
    assert footer is not None
    number, end, records = footer
    require(
        number >= listed.stop and records >= listed.records, f"the footer of {where} says less than MANIFEST"
    )
    offset, expected, counted = _RECORDS_START, segment.base_seq, 0
    while offset < end:
        found = record_at(segment, offset)
        require(found is not None, f"record {expected} or later at offset {offset} of {where} is damaged")
        assert found is not None
        require(
            expected <= found[0].seq < number,
            f"record {found[0].seq} at offset {offset} of {where} is out of order",
        )
        if found[0].seq < listed.stop:
            log.records.append(found[0])
        expected = found[0].seq + 1
        offset += found[1]
        counted += 1
    require(
        offset == end and counted == records, f"the footer of {where} counts {records} records up to {end}"
    )
    found_below = sum(record.segment_id == segment.id for record in log.records)
    require(found_below == listed.records, f"MANIFEST counts {listed.records} records in {where}")
    return offset, listed.stop


def _check_marks(
    segment: Segment, ends: dict[int, int], seq: int, successor: int | None, newer: bool
) -> None:
    # What a footer and a durable mark vouch for must be there.
    for copy in (512, 1024):
        number, end, checksum = _MARK.unpack_from(segment.data, copy)
        if checksum == xxh3_64_intdigest(segment.data[copy : copy + 16], segment.id):
            what = f"the durable mark of {segment.name}"
            if newer and number > seq:
                continue  # of what was cut off since
            require(number <= seq, f"{what} says {number}, but record {seq} is damaged")
            # The lowest bit says that there was a writer since.
            require(ends.get(number) == end & ~1, f"{what} does not end behind record {number - 1}")
    for copy in (1536, 2048):
        number, end, records, _, _, checksum = _FOOTER.unpack_from(segment.data, copy)
        if checksum == xxh3_64_intdigest(segment.data[copy : copy + 40], segment.id):
            what = f"the footer of {segment.name}"
            require(successor is not None, f"{what} says {number}, but the next segment is missing")
            if newer and number > seq:
                continue
            require(number == successor, f"{what} says {number}, the next segment begins with {successor}")
            require(number <= seq, f"{what} says {number}, but record {seq} is damaged")
            require(ends.get(number) == end, f"{what} does not end behind record {number - 1}")
            require(records == number - segment.base_seq, f"{what} counts {records} records")


def _judge_end(log: Log, at: int, end: int) -> None:
    # Without CONTROL: was what is missing ever durable?
    missing = log.committed
    for segment in log.segments[at:]:
        start = end if segment is log.segments[at] else _RECORDS_START
        for record, lag in _records_from(segment, start, missing):
            durable = record.seq - lag if lag != _LAG_UNKNOWN else 0
            require(
                durable <= missing,
                f"record {record.seq} says that records {missing} to {durable - 1} were durable; "
                f"they are damaged from offset {end} of {log.segments[at].name} on",
            )


def _records_from(segment: Segment, offset: int, seq: int) -> Iterator[tuple[Record, int]]:
    # Every whole record behind an offset that is not below `seq`, with its lag, wherever it may start.
    for at in range(offset, len(segment.data.rstrip(b"\0")), 8):
        head = segment.data[at : at + 16]
        if len(head) == 16 and any(head[:4]):
            _, _, below, kind, flags, _ = _RECORD_HEADER.unpack(head)
            if kind == 1 and flags & ~0x3F == 0 and segment.base_seq + below >= seq:
                found = record_at(segment, at)
                if found is not None:
                    yield found[0], found[2]
