# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Rewriting full segments without the records that nobody wants any more, under the same numbers."""

import array
from dataclasses import dataclass
from functools import partial

from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from mmaplog.draft cimport Draft
from mmaplog.format cimport SEGMENT_HEADER_SIZE, UNIT, CommitSlot, Footer, RecordHeader
from mmaplog.replay cimport Entry, Replay
from mmaplog.segment cimport Segment
from mmaplog.segment_set cimport SegmentSet
from mmaplog.syncer cimport Syncer

from mmapio import _os as system
from mmaplog.manifest import Compacted

# Numbers in a segment are counted in 32 bits.
cdef uint64_t SPAN_MAX = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Compaction:
    """What a compaction did: how many segments it replaced by how many, and what left the log."""

    segments_replaced: int
    segments_written: int
    records_removed: int
    bytes_freed: int


@dataclass
class Group:
    """Neighbouring segments that become one, and where in each the records are that stay."""

    segments: list
    kept: list
    size: int
    records: int
    removed: int
    stop: int
    # What is removed though nothing newer is in its place is below this number.
    swept: int = 0
    # Whether something is left out of records that stay.
    trims: bool = False


def compact(log, keep, key):
    """What :meth:`mmaplog.Log.compact` does, by who keeps others from doing the same."""
    cdef SegmentSet segments = log.segments
    cdef Segment segment
    committed = log.committed
    # What is newer is the reason for what goes, so a power cut must not take it. Also seals what was rolled past.
    log.flush()
    newest = None
    if key is not None:
        newest = {}
        for entry in log.replay(log.first_seq, committed):
            name = key(entry)
            if name is not None:
                newest[name] = entry.seq

    def stays(entry):
        if newest is not None:
            name = key(entry)
            if name is not None and newest.get(name, entry.seq) > entry.seq:
                return False
        return keep is None or keep(entry)

    counts = [0, 0, 0, 0]
    group = None
    # What was replaced takes its room for as long as it is mapped: none is held on to.
    ahead = sealed_segments(log)[::-1]
    while ahead:
        segment = ahead.pop()
        stop = segments.boundary_of(segment, segments.tail_id())
        offsets, size, removed, swept = survey(segments, segment, stop, stays)
        if group is not None and not fits(group, segment, stop, size, segments.manifest.segment_bytes):
            log.spend_if_full(partial(rewrite, log, group, counts))
            group = None
        if group is None:
            group = Group([], [], 0, 0, 0, 0)
        group.segments.append(segment)
        group.kept.append(offsets)
        group.size += size
        group.records += len(offsets)
        group.removed += removed
        group.stop = stop
        group.swept = max(group.swept, swept)
    if group is not None:
        log.spend_if_full(partial(rewrite, log, group, counts))
    return Compaction(*counts)


def sealed_segments(Syncer log):
    """The segments that will not change any more, in order; those that an earlier compaction wrote are among them."""
    cdef SegmentSet segments = log.segments
    cdef Segment segment, tail, following
    cdef CommitSlot slot
    cdef Footer footer
    found = []
    segments.catch_up()
    # That one is being written.
    tail = segments.tail(&slot)
    for base in segments.bases():
        segment = segments.at_base(base)
        if segment is None or segment.base_seq >= tail.base_seq:
            break
        if not segment.load_footer(&footer):
            following = segments.following(segment, slot.segment_id)
            if following is None or following.base_seq > log.control.durable:
                break
            if following.base_seq == log.control.durable:
                # Nothing in there is durable yet, so its name may not be.
                log.sync_names()
            # Nor has anybody sealed it: who synced it was killed before, or there was nothing to sync after the roll.
            log.seal(segment)
        elif footer.end > segment.limit:
            # Another process made it longer since it was looked at.
            segment.refresh()
        found.append(segment)
    return found


cdef survey(SegmentSet segments, Segment segment, uint64_t stop, stays):
    # Where the records start that stay, how many bytes they are, how many records do not stay, and below which number: nobody knows
    # whether something newer stands for them.
    cdef uint64_t first = segments.first(), size = 0, removed = 0, swept = 0
    cdef Replay replay = Replay(segments, max(segment.base_seq, first), stop, True, segments.tail_id())
    cdef Entry entry
    if segment.base_seq < first:
        # Truncated already.
        removed = segment.count_below(first)
    offsets = array.array("I")
    while True:
        entry = replay.take()
        if entry is None:
            return offsets, size, removed, swept
        if not stays(entry):
            removed += 1
            swept = entry.seq + 1
            continue
        offsets.append(replay.start // UNIT)
        size += replay.offset - replay.start


def fits(group, Segment segment, uint64_t stop, uint64_t size, uint64_t segment_bytes):
    """Whether the records of one more segment may go into the same new one.

    Not across epochs: where one begins tells whose numbers were given out again.
    """
    cdef Segment first = group.segments[0]
    if first.epoch != segment.epoch or stop - first.base_seq > SPAN_MAX:
        return False
    return SEGMENT_HEADER_SIZE + <uint64_t>group.size + size <= segment_bytes


def rewrite(log, group, counts, copy=None, replace=None):
    """Put one segment in the place of a group's, and count what that did; nothing where there is nothing to gain.

    A layer above may `copy` records its own way, with the arguments of `copy_records`, and `replace` segments, with the draft of the one that is
    made, its entry in MANIFEST, and those replaced.
    """
    cdef SegmentSet segments = log.segments
    cdef Segment segment
    cdef Draft made
    if group.removed == 0 and not group.trims and len(group.segments) == 1:
        return
    segments.tidy = False
    before = sum(system.file_usage(segments.directory, each.name) for each in group.segments)
    made = Draft(segments.directory, segments.log_uuid, group.segments[0], group.size)
    try:
        for segment, offsets in zip(group.segments, group.kept):
            (copy or copy_records)(segment, offsets, made)
        made.finish(group.stop, group.records)
        made.publish()
        (replace or log.replace_segments)(
            made, Compacted(made.id, made.base_seq, group.stop, group.records), group.segments, group.swept)
    except BaseException:
        discard_unless_listed(segments, made)
        raise
    counts[0] += len(group.segments)
    counts[1] += 1
    counts[2] += group.removed
    counts[3] += before - system.file_usage(segments.directory, made.name)


cdef discard_unless_listed(SegmentSet segments, Draft made):
    # Of what was not finished nothing stays; once MANIFEST lists it, it is part of the log.
    segments.relist()
    if not any(segment_id == made.id for _, segment_id, _ in segments.listing()):
        try:
            system.remove_file(segments.directory, made.name)
        except FileNotFoundError:
            pass


def copy_records(Segment source, offsets, Draft target):
    """Copy the records at `offsets` behind what is there.

    They were verified when they were chosen, and nothing writes to a sealed segment.
    """
    cdef const unsigned int[::1] places = offsets
    cdef Py_ssize_t at, count = len(offsets)
    cdef uint64_t size
    cdef const char *record
    cdef char *place = NULL
    with nogil:
        for at in range(count):
            record = source.base + <uint64_t>places[at] * UNIT
            size = <uint64_t>(<const RecordHeader *>record).length * UNIT
            place = target.place(size)
            if place == NULL:
                break
            memcpy(place, record, size)
            target.settle(source, size)
    source.region.check()
    if count and place == NULL:
        target.refuse(source)
