"""An independent reader of stores in plain Python, written from the two pages docs/format-*.md alone.

`check_store` is what other tests check a store with after whatever they did to it. It shares nothing with the
native code but the hash function. Nothing may write to the store meanwhile; that it is open does not matter.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from tests.support.plain_log import Log, Record, read_log, require

_PAYLOAD_HEADER = struct.Struct("<HBBI")


class Change(NamedTuple):
    """What a record of a store says. `value` is None in a deletion; `previous` numbers the version before.

    `expires` is in nanoseconds since 1970.
    """

    key: bytes
    value: bytes | None
    creates: bool
    previous: int | None
    expires: int | None = None
    below: int | None = None


def change_of(record: Record) -> Change:
    """Take a store's record apart."""
    payload, what = record.payload, f"record {record.seq}"
    require(len(payload) >= 8, f"{what} is too short for a store's")
    key_length, kind, flags, value_length = _PAYLOAD_HEADER.unpack_from(payload)
    require(kind in (1, 2, 3) and flags & ~7 == 0, f"{what} has the unknown kind {kind} or flags {flags:#x}")
    if kind == 3:
        require((key_length, flags, value_length, len(payload)) == (0, 0, 8, 16), f"{what} is no clear")
        (below,) = struct.unpack_from("<Q", payload, 8)
        require(below <= record.seq, f"{what} clears what comes after it")
        return Change(b"", None, creates=False, previous=None, below=below)
    expiry_at = 24 if flags & 2 else 8
    key_at = expiry_at + (8 if flags & 4 else 0)
    key_end = key_at + key_length
    value_at = -(-key_end // 8) * 8
    require(key_length > 0, f"{what} has an empty key")
    require(len(payload) == value_at + value_length, f"{what}: the lengths do not add up")
    require(not any(payload[key_end:value_at]), f"{what} has other bytes than zeros between key and value")
    require(kind == 1 or (value_length == 0 and not flags & 1), f"{what} deletes and has a value, or creates")
    require(kind == 1 or not flags & 4, f"{what} deletes and expires")
    previous = struct.unpack_from("<Q", payload, 8)[0] if flags & 2 else None
    value = payload[value_at:] if kind == 1 else None
    expires = struct.unpack_from("<Q", payload, expiry_at)[0] if flags & 4 else None
    return Change(payload[key_at:key_end], value, bool(flags & 1), previous, expires)


def changes_of(log: Log) -> list[Change]:
    """What each record of a store's log says, in order, checked against what came before it."""
    changes = [change_of(record) for record in log.records]
    compacted = {each.segment_id for each in log.manifest.compacted}
    numbers = {record.seq for record in log.records}
    newest: dict[bytes, tuple[int, bool]] = {}
    for record, change in zip(log.records, changes, strict=True):
        what = f"record {record.seq}, of key {change.key[:40]!r},"
        if change.below is not None:
            newest |= {key: (seq, False) for key, (seq, _) in newest.items() if seq < change.below}
            continue
        seq, present = newest.get(change.key, (None, False))
        newest[change.key] = (record.seq, change.value is not None)
        # Compaction leaves nothing of what was before, and takes away what was superseded.
        if record.segment_id in compacted and change.previous is None and not change.creates:
            continue
        if compacted and change.previous is not None and change.previous not in numbers:
            require(seq is None or seq < change.previous < record.seq, f"{what} follows {change.previous}")
            continue
        # A log that was cut at its beginning may lack the version before.
        if seq is not None or log.first_seq == 0:
            require(change.previous == seq, f"{what} follows version {change.previous} instead of {seq}")
            require(change.value is not None or present, f"{what} deletes what is absent")
            creates = change.value is not None and not present
            require(change.creates == creates, f"{what} says {change.creates} for whether it creates")
    return changes


def read_store(log: Log, now: int = 0) -> dict[bytes, bytes]:
    """What a store holds by its log alone, in the order of the last change, but what has expired by `now`."""
    found: dict[bytes, tuple[int, bytes]] = {}
    for record, change in zip(log.records, changes_of(log), strict=True):
        if change.below is not None:
            found = {key: version for key, version in found.items() if version[0] >= change.below}
        found.pop(change.key, None)
        if change.value is not None and (change.expires is None or change.expires > now):
            found[change.key] = record.seq, change.value
    return {key: value for key, (_, value) in found.items()}


def check_store(path: str | os.PathLike[str]) -> dict[bytes, bytes]:
    """The content of the store at `path`. AssertionError naming what is violated in its log or its index.

    An index that the next opening would not believe, but build anew, is not looked at.
    """
    log = read_log(path)
    walk_index(log)
    return read_store(log)


class Word(NamedTuple):
    """A directory word taken apart."""

    page: int
    depth: int
    tag_base: int


@dataclass
class Index:
    """An index file taken apart; a split under way is carried out in this copy."""

    data: bytes
    hash_seed: int
    seq: int
    count: int
    depth: int
    directory_page: int
    words: list[Word]
    slots: list[int]
    end: int
    spare: int
    segments: int
    clean: bool
    cleared: int


def _index(log: Log) -> Index | None:
    # None for an index that the next opening would build anew.
    try:
        data = (log.path / "INDEX").read_bytes()
    except FileNotFoundError:
        return None
    if len(data) < 204800 + 10 * 4096:
        return None
    magic, version, _, _, incompatible, owner, seed, checksum = struct.unpack_from("<8sIIII16sQQ", data)
    if magic != b"\x93mmapidx" or owner != log.log_uuid.bytes or checksum != xxh3_64_intdigest(data[:48]):
        return None
    require(version == 1 and incompatible == 0, "the index is not of version 1")
    state = struct.unpack_from("<32Q", data, 4096)
    seq, count = state[1 + 2 * (state[0] & 1) :][:2]
    root, clean, end, spare, slots_used, segments = (state[at] for at in (8, 9, 17, 18, 20, 21))
    cleared = state[5 + (state[0] & 1)]
    depth, page = root & 0x7F, root >> 8
    if root & 0x80:
        return None
    require(depth <= 28 and 4096 * page + (8 << depth) <= len(data), "the directory reaches beyond the file")
    require(slots_used <= 16384, f"{slots_used} slots are used")
    words = list(struct.unpack_from(f"<{1 << depth}Q", data, 4096 * page))
    slots = list(struct.unpack_from(f"<{slots_used}Q", data, 8192))
    if not _believed(log, data, words, slots):
        return None
    old, left, right, prefix = state[24:28]
    if old:
        # Carried out in this copy.
        spread = depth - (old >> 6 & 63)
        require(spread > 0 and prefix >> (depth - spread) == 0, "the split under way fits no directory word")
        half = 1 << (spread - 1)
        words[prefix << spread : (prefix + 1) << spread] = [left] * half + [right] * half
        end, spare, segments = state[28:31]
    parts = [Word(word >> 32, word >> 6 & 63, word & 63) for word in words]
    return Index(data, seed, seq, count, depth, page, parts, slots, end, spare, segments, clean == 1, cleared)


def _believed(log: Log, data: bytes, words: list[int], slots: list[int]) -> bool:
    # Whether the next opening would go by this index; what a clean mark seals must be as it was sealed.
    (seed,) = struct.unpack_from("<Q", data, 40)
    state = struct.unpack_from("<32Q", data, 4096)
    seq, clean, incarnation, end = state[1 + 2 * (state[0] & 1)], state[9], state[16], state[17]
    mark_seq, segment_id, _, index_end, content, checksum = struct.unpack_from("<6Q", data, 512)
    marked = clean == 1 and any(data[512:560])
    if marked and checksum != xxh3_64_intdigest(data[512:552], seed):
        return False
    if marked:
        expected = xxh3_64_intdigest(data[4096:4224] + bytes(8) + data[4232:4352], seed)
        expected = xxh3_64_intdigest(struct.pack(f"<{len(slots)}Q", *slots), expected)
        expected = xxh3_64_intdigest(data[139264 : 139264 + 4 * len(slots)], expected)
        expected = xxh3_64_intdigest(struct.pack(f"<{len(words)}Q", *words), expected)
        require(content == expected, "state, slot and dead table and directory do not match the clean mark")
        require((mark_seq, index_end) == (seq, end), "the clean mark is not that of the state")
    # That it is the file which CONTROL names is taken on trust: Python does not tell when a file was born.
    open_since = log.control is not None and log.control.index != 0 and not log.control.index & 1
    if open_since and log.control is not None and log.control.incarnation == incarnation:
        require(seq <= log.committed, f"the index holds {seq} records, the log {log.committed}")
        return True
    return marked and mark_seq <= log.committed and any(each.id == segment_id for each in log.segments)


def walk_index(log: Log) -> dict[bytes, tuple[int, int]] | None:
    """Where a store's index leads for each key, tombstones included: (segment id, offset of the record).

    Every invariant of the page is checked on the way. None when the next opening would not believe the index.
    """
    index = _index(log)
    if index is None:
        return None
    changes = changes_of(log)
    places = [(record.segment_id, record.offset) for record in log.records]
    numbers = [record.seq for record in log.records]
    keys = {place: change.key for place, change in zip(places, changes, strict=True)}
    taken = [segment_id for segment_id in index.slots if segment_id]
    require(len(set(taken)) == len(taken), "a slot names the segment of another")
    found: dict[bytes, tuple[int, int]] = {}
    for word in _segments(index):
        for bucket, entry in _entries(index, word):
            here = f"in bucket {bucket} of the index segment at page {word.page}"
            slot, offset = entry >> 26 & 0x3FFF, 8 * (entry & 0x3FFFFFF)
            require(slot < len(index.slots), f"an entry {here} names slot {slot}, which is not used")
            place = (index.slots[slot], offset)
            require(place in keys, f"an entry {here} leads to {place[0]:016x} at {offset}, no record")
            key = keys[place]
            hashed = xxh3_64_intdigest(key, index.hash_seed)
            what = f"key {key[:40]!r} with the hash {hashed:016x}"
            require(key not in found, f"{what} has a second entry {here}")
            require(hashed & 511 == bucket, f"{what} is {here}, the wrong one")
            leads = index.words[hashed >> (64 - index.depth)].page
            require(leads == word.page, f"{what} is {here}, it leads to page {leads}")
            tag = hashed << word.tag_base >> 40 & 0xFFFFFF
            require(entry >> 40 == tag, f"{what} has the tag {entry >> 40:06x} {here} instead of {tag:06x}")
            found[key] = place
    _check_entries(numbers, index, changes, places, found)
    return found


def _segments(index: Index) -> list[Word]:
    # The directory's words, each once; every aligned run of them and every page is checked.
    found, at, size = [], 0, 1 << index.depth
    taken = [(index.directory_page, -(-8 * size // 4096), "the directory")]
    while at < size:
        word = index.words[at]
        require(word.depth <= index.depth, f"directory word {at} is deeper than the directory")
        run = 1 << (index.depth - word.depth)
        require(at % run == 0, f"the run of directory word {at} is not aligned to its depth of {word.depth}")
        require(len(set(index.words[at : at + run])) == 1, f"the run of directory word {at} is interrupted")
        require(0 <= word.depth - word.tag_base <= 16, f"the tags of directory word {at} are spent")
        taken.append((word.page, 9, f"the index segment of directory word {at}"))
        found.append(word)
        at += run
    require(len(found) == index.segments, f"{len(found)} index segments, the state says {index.segments}")
    if index.spare:
        taken.append((index.spare, 9, "the spare"))
    free, before = 204800 // 4096, "the dead table"
    for page, pages, what in sorted(taken):
        require(page >= free, f"{what} overlaps {before}")
        free, before = page + pages, what
    require(4096 * free <= index.end <= len(index.data), f"{before} reaches beyond the end at {index.end}")
    return found


def _entries(index: Index, word: Word) -> Iterator[tuple[int, int]]:
    # The entries of an index segment with their buckets, chains checked.
    start, here = 4096 * word.page, f"of the index segment at page {word.page}"
    checksum, overflow_used = struct.unpack_from("<QQ", index.data, start)
    require(overflow_used <= 63, f"{overflow_used} overflow lines {here} are taken")
    if index.clean:
        expected = xxh3_64_intdigest(index.data[start + 8 : start + 9 * 4096], index.hash_seed)
        require(checksum == expected, f"the checksum {here} does not match")
    linked: set[int] = set()
    for bucket in range(512):
        line, lines = 1 + bucket, 1
        while True:
            *entries, link = struct.unpack_from("<8Q", index.data, start + 64 * line)
            yield from ((bucket, entry) for entry in entries if entry)
            if not link:
                break
            require(link <= overflow_used, f"bucket {bucket} {here} leads to line {link} of {overflow_used}")
            require(link not in linked, f"overflow line {link} {here} is in two chains")
            linked.add(link)
            line, lines = 512 + link, lines + 1
            require(lines <= 9, f"the chain of bucket {bucket} {here} is longer than 9 lines")


def _check_entries(
    numbers: list[int],
    index: Index,
    changes: list[Change],
    places: list[tuple[int, int]],
    found: dict[bytes, tuple[int, int]],
) -> None:
    # The entries must be those of the records that the index is said to hold. Those of the commit after it
    # may be there already: a writer was killed between storing entries and counting them.
    held = bisect_left(numbers, index.seq)
    clears = [change.below for change in changes[:held] if change.below is not None]
    require(index.cleared >= max(clears, default=0), f"the index is cleared below {index.cleared}")
    expected = {change.key: at for at, change in enumerate(changes[:held]) if change.below is None}
    present = sum(changes[at].value is not None and numbers[at] >= index.cleared for at in expected.values())
    require(index.count == present, f"the index counts {index.count} keys, there are {present}")
    for at in range(held, len(changes)):
        if found.get(changes[at].key) == places[at]:
            expected[changes[at].key] = at
    for key, at in expected.items():
        if key not in found and numbers[at] < index.cleared:
            continue
        require(key in found, f"key {key[:40]!r} of record {numbers[at]} has no entry")
        require(found[key] == places[at], f"the entry of key {key[:40]!r} leads not to record {numbers[at]}")
    for key in found:
        require(key in expected, f"the index has an entry for key {key[:40]!r}, which it must not hold yet")
