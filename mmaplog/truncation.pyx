# cython: language_level=3, auto_pickle=False
"""Dropping the end of a log: what `MANIFEST` says is being cut off, whoever finds it there."""

from dataclasses import replace

from libc.stdint cimport uint64_t

from mmaplog.control cimport Control
from mmaplog.format cimport SEGMENT_HEADER_SIZE, Footer
from mmaplog.segment cimport Segment
from mmaplog.segment_set cimport SegmentSet
from mmaplog.syncer cimport end_of_records

from mmapio import _os as system
from mmaplog import control as control_file
from mmaplog import manifest as manifest_file
from mmaplog import reserve
from mmaplog.segment import create_segment, list_segments, open_segment, publish_segment

# What a new segment gets from the file system at first.
FIRST_ALLOCATION = 64 << 10


def finish_cut(SegmentSet segments, manifest, Control control, Segment successor=None):
    """Do what ``manifest.cut`` says, or what is left of it. Returns the segment in which the log goes on, and CONTROL.

    What stays must be durable. `successor` is that segment when it was made before; `control`, where there is one to be believed,
    tells those who have the log open, otherwise it is made anew. Cut short at any step, it is done again: on a full disk with the
    reserve's room.
    """
    return reserve.spend_if_full(segments.directory, lambda: carry_out(segments, manifest, control, successor))


cdef carry_out(SegmentSet segments, manifest, Control control, Segment successor):
    cdef Segment last = None
    cdef Footer footer
    cdef uint64_t seq = manifest.cut.seq
    directory = segments.directory
    if successor is None:
        successor = find_successor(directory, manifest) or create_segment(
            directory, manifest.log_uuid, seq, manifest.cut.epoch, manifest.segment_bytes, FIRST_ALLOCATION, SEGMENT_HEADER_SIZE)
    else:
        publish_segment(directory, successor)
    system.sync(directory)
    segments.add(successor)
    if control is None:
        control = control_file.create(
            directory, manifest.log_uuid, manifest.first_seq, seq, successor.id, SEGMENT_HEADER_SIZE, 0, seq)
    else:
        control.rewind(seq, successor.id, SEGMENT_HEADER_SIZE)
        control.change(manifest.first_seq)
    for base_seq, segment_id, name in reversed(list_segments(directory)):
        if base_seq >= seq and segment_id != successor.id:
            system.remove_file(directory, name)
    segments.relist()
    bases = [base for base in segments.bases() if base < seq]
    if bases:
        last = segments.at_base(bases[len(bases) - 1])
        # Also where there is one: of what it says nobody knows whether it is durable, and it may speak of more than is left. Without
        # it, recovery would take a batch that was cut for one that was never finished. Stored again even if it says this already: who did so may
        # have been killed, before he could tell that the sync had failed.
        footer.seq = seq
        footer.end = end_of_records(last, seq)
        footer.records = last.count_below(seq)
        footer.time_min = 0
        footer.time_max = <uint64_t>-1
        last.store_footer(&footer)
        last.sync()
        last.release()
    system.sync(directory)
    manifest_file.write(directory, replace(manifest, cut=None))
    # Once more: who looked while the files were still there knows segments by heart that are gone.
    control.change(manifest.first_seq)
    segments.relist()
    return segments.get(successor.id), control


def find_successor(directory, manifest):
    """The segment with which a cut that was not finished had begun, or None."""
    for base_seq, _, name in list_segments(directory):
        if base_seq == manifest.cut.seq:
            found = open_segment(directory, name, manifest.log_uuid, True)
            if found.epoch == manifest.cut.epoch:
                return found
    return None
