# cython: language_level=3, auto_pickle=False
"""The segment files of a log, found by number and mapped on first use."""

import bisect
import errno as _errno
import time

from libc.stdint cimport uint64_t

from mmapio cimport _memory as memory
from mmapio._os cimport Descriptor
from mmaplog.control cimport Control
from mmaplog.format cimport SEGMENT_HEADER_SIZE, CommitSlot, Footer, Found, Record, read_record
from mmaplog.segment cimport Segment
from mmaplog.spans cimport Spans

from mmapio import _os as system
from mmaplog import control as control_file
from mmaplog import manifest as manifest_file
from mmaplog.errors import CorruptionError, LogError, TooOld
from mmaplog.segment import list_files, list_segments, open_segment

# A listing can be out of date as soon as it is made: the writer, maybe another thread, replaces an empty segment.
cdef int ATTEMPTS = 4
# So many segments are kept mapped, or some more. A process has 65,530 mappings at the most, and a segment takes up to three.
cdef Py_ssize_t OPENED_MAX = 4096
# Who does not know what was there before the end began to be dropped waits for the end of that so often, unless the one at it was killed.
cdef int PAUSES = 100
cdef double PAUSE_SECONDS = 0.001


cdef class SegmentSet:
    """What is in the directory of a log and counts. Looked at again whenever a segment is not found where it should be.

    `manifest` says which of the files count; `control`, where it is known already and to be believed, when they are replaced or removed. While
    a set is `sole` nobody else changes what is there, nor has since MANIFEST was read: then one look is enough.
    """

    def __cinit__(self, Descriptor directory, path, manifest, bint writable, Control control=None, bint sole=False):
        self.directory = directory
        self.path = path
        self.manifest = manifest
        self.log_uuid = manifest.log_uuid
        self.writable = writable
        self.control = control
        self.sole = sole
        self.opened = {}
        self.spans = Spans()
        self.listed_first = manifest.first_seq
        if sole:
            listed, self.others = list_files(directory)
            self.generation = self.generation_now()
            self.take_names(manifest.counting(listed, self.tail_id()))
            self.tidy = len(self.names) == len(listed)
        else:
            # Of no listing yet.
            self.generation = <uint64_t>-1
            self.relist()

    def watch(self, Control control):
        """Go by this CONTROL from now on: it tells when segments were replaced or removed. None: by the files alone."""
        if control is self.control:
            return
        self.control = control
        if self.others is not None and self.knows(self.tail_id()):
            # Nothing was changed since it was listed.
            self.generation = self.generation_now()
        else:
            self.tidy = False
            self.relist()

    def relist(self):
        """Read the directory again, and MANIFEST."""
        cdef uint64_t changes, generation
        attempts = PAUSES
        self.others = None
        while True:
            # Another thread may add or discard a segment while this one reads; a listing from before must not undo that. Nor may files
            # be judged by a MANIFEST that another process replaced meanwhile: who does so raises `generation` before he removes any.
            changes = self.changes
            generation = self.generation_now()
            manifest = judge = self.manifest_now()
            listing = self.list_all()
            if manifest.cut is not None and self.control is not None and not self.is_cut(listing, manifest.cut):
                # MANIFEST says so first; until CONTROL does, the log is what it was, and all of that is there.
                if self.generation == generation and self.manifest.cut is None:
                    judge = self.manifest
                    listing = self.without_successor(listing, manifest.cut)
                elif attempts:
                    attempts -= 1
                    time.sleep(PAUSE_SECONDS)
                    continue
            names = judge.counting(listing, self.tail_id())
            if self.changes != changes or self.generation_now() != generation:
                continue
            # Who drops the end says so first, gives a segment its name then, and raises `generation` last.
            if not self.sole and (self.control is None or self.adds_to_known(names)) and self.manifest_now() != manifest:
                continue
            # Nor may another thread's listing be undone that is newer; from here on none comes in between.
            if self.changes == changes:
                break
        self.manifest = judge
        self.listed_first = judge.first_seq
        self.generation = generation
        self.take_names(names)

    cdef bint is_cut(self, list listing, cut) except -1:
        # Whether CONTROL names the segment with which the log goes on from there. While MANIFEST says that it is being cut, nobody rolls.
        cdef uint64_t tail_id = self.tail_id()
        for entry in listing:
            if entry[1] == tail_id:
                return self.is_successor(entry, cut)
        return True

    cdef list without_successor(self, list listing, cut):
        return [entry for entry in listing if not self.is_successor(entry, cut)]

    cdef bint is_successor(self, entry, cut) except -1:
        if entry[0] != cut.seq:
            return False
        found = self.open(entry)
        return found is None or (<Segment>found).epoch == cut.epoch

    cdef bint adds_to_known(self, list names) except -1:
        # Whether there is a segment that this handle has not heard of, other than the one that is written.
        known = {entry[1] for entry in self.names or ()}
        known.add(self.tail_id())
        return any(entry[1] not in known for entry in names)

    cdef int catch_up(self) except -1:
        # For who takes care of the log: what others have added or removed.
        if not (self.sole and self.tidy):
            self.relist()
        return 0

    cdef int adopt(self, manifest, uint64_t base_seq, uint64_t segment_id, name) except -1:
        # By who has put this segment there, and MANIFEST.
        cdef uint64_t changes
        if not self.sole:
            self.relist()
            return 0
        while True:
            changes = self.changes
            names = manifest.counting(sorted({*self.names, (base_seq, segment_id, name)}), self.tail_id())
            if self.changes == changes:
                break
        self.others = None
        self.manifest = manifest
        self.listed_first = manifest.first_seq
        self.generation = self.generation_now()
        self.take_names(names)
        return 0

    cdef bint knows(self, uint64_t segment_id) noexcept:
        return any(listed == segment_id for _, listed, _ in self.names)

    cdef int take_names(self, list names) except -1:
        self.changes += 1
        self.names = names
        self.spans.forget()
        present = {segment_id for _, segment_id, _ in names}
        self.opened = {key: value for key, value in self.opened.items() if key in present}
        return 0

    cdef list_all(self):
        # What is made while a directory is read may be in the list or not, in any order: of two segments made then the later one alone. So
        # nothing counts that is newer than what a first look found.
        if self.sole:
            return list_segments(self.directory)
        newest = max((base_seq for base_seq, _, _ in list_segments(self.directory)), default=0)
        return [entry for entry in list_segments(self.directory) if entry[0] <= newest]

    cdef forget_some(self):
        # A process cannot have any number of mappings. What is sealed is opened again when it is asked for.
        cdef Footer footer
        self.spans.forget()
        for segment_id in list(self.opened)[:OPENED_MAX // 2]:
            segment = self.opened[segment_id]
            if segment is not self.last and (<Segment>segment).load_footer(&footer):
                self.opened.pop(segment_id, None)

    cdef uint64_t generation_now(self) noexcept:
        return 0 if self.control is None else memory.load_acquire(&self.control.hot.generation)

    cdef uint64_t tail_id(self) noexcept:
        # It is part of the log until another one is named there, even when a roll that was not finished begins where the log does.
        return 0 if self.control is None else self.control.committed().segment_id

    cdef Segment tail(self, CommitSlot *slot):
        # The segment that is written to, and what CONTROL says of it. One without records may be replaced by a larger one meanwhile, or cut off.
        while True:
            slot[0] = self.control.committed()
            try:
                return self.by_id(slot.segment_id)
            except CorruptionError:
                if self.control.committed().segment_id == slot.segment_id:
                    raise

    cdef manifest_now(self):
        try:
            return manifest_file.read(self.directory, self.path)
        except FileNotFoundError:
            return self.manifest

    cdef int follow_changes(self) except -1:
        # What was learnt before segments were replaced or removed is not true any more.
        if self.generation_now() != self.generation:
            self.relist()
        return 0

    @property
    def first_seq(self):
        """The number of the first record that the log still has."""
        return self.first()

    cdef uint64_t first(self) except? 0:
        # A writer may have been killed before CONTROL said so.
        return self.listed_first if self.control is None else max(self.listed_first, memory.load_acquire(&self.control.hot.first_seq))

    def removed(self):
        """How many numbers have no record any more, between the first record and the last. Costs one walk after a change, at most."""
        while True:
            self.follow_changes()
            first = self.first()
            key = self.generation, first
            if self.removed_at == key:
                return self.removed_count
            try:
                found = 0
                for each in self.manifest.compacted:
                    if each.stop <= first:
                        continue
                    found += each.stop - max(each.base_seq, first) - each.records
                    if each.base_seq < first:
                        found += (<Segment>self.by_id(each.segment_id)).count_below(first)
            except CorruptionError:
                # Perhaps it was replaced meanwhile.
                if self.generation_now() == key[0] and self.first() == first:
                    raise
                continue
            self.removed_at, self.removed_count = key, found

    def beside(self):
        """The names of all other files in the directory. Costs a look at it, none in who has just opened it and is the only one."""
        return list_files(self.directory)[1] if self.others is None else self.others

    def strays(self):
        """The names of segment files that do not count, whether or not they ever did: while nobody else truncates or compacts."""
        if self.sole and self.tidy:
            return []
        listing = list_segments(self.directory)
        counting = {name for _, _, name in self.manifest.counting(listing, self.tail_id())}
        return [name for _, _, name in listing if name not in counting]

    def listing(self):
        """(base_seq, id, name) of every segment, in order of their records."""
        return list(self.names)

    def get(self, segment_id):
        """The segment with this id. CorruptionError when its file is gone."""
        return self.by_id(segment_id)

    def at(self, base_seq):
        """The segment that begins with this number, or None."""
        return self.at_base(base_seq)

    def add(self, Segment segment not None):
        """Make a segment known that was just created."""
        self.changes += 1
        # Another thread may have read the directory since it has got its name.
        if not self.knows(segment.id):
            bisect.insort(self.names, (segment.base_seq, segment.id, segment.name))
        self.spans.forget()
        self.opened[segment.id] = segment
        if len(self.opened) > OPENED_MAX:
            self.forget_some()

    cdef Segment by_id(self, uint64_t segment_id):
        cdef Segment found
        for attempt in range(ATTEMPTS):
            for entry in self.names:
                if entry[1] == segment_id:
                    found = self.open(entry)
                    if found is not None:
                        return found
            self.relist()
        self.deny_replaced()
        raise CorruptionError(
            f"the segment with id {segment_id:016x} is missing; restore it from a backup", self.path)

    cdef Segment known(self, uint64_t seq, uint64_t tail_id):
        # What `holding` would give, where it gave that before and nothing has changed since; else None. Costs no look at a name.
        return self.spans.find(seq, tail_id) if self.generation_now() == self.generation else None

    cdef Segment holding(self, uint64_t seq, uint64_t tail_id):
        # The segment with the number `seq`, which must be committed.
        cdef Segment found
        while True:
            self.follow_changes()
            for attempt in range(ATTEMPTS):
                at = self.beyond(seq) - 1
                # The last one known may have been followed by others since.
                if at >= 0 and (attempt or at + 1 < len(self.names) or self.names[at][1] == tail_id):
                    found = self.at_base(self.names[at][0])
                    if found is not None:
                        return found
                self.relist()
            self.deny_truncated(seq)
            if self.generation_now() == self.generation:
                self.deny_replaced()
                raise CorruptionError(f"no segment holds record {seq}; restore the missing file from a backup", self.path)

    def deny_replaced(self):
        """Before damage is told: LogError when CONTROL was lost and made anew since. By the old one more is committed than the files hold."""
        if self.control is None or self.control.private:
            return
        now = control_file.load(self.directory, self.log_uuid, False, False)
        if now is not None and now.incarnation != self.control.incarnation:
            raise LogError(
                _errno.ESTALE, "CONTROL was made anew while this handle had the log open, so it does not know any more what is in there; "
                "close it and open the log again", self.path)

    cdef int deny_truncated(self, uint64_t seq) except -1:
        # What is not where it was expected is no damage when it was dropped meanwhile, or is being dropped now.
        cdef uint64_t first = self.first(), stop
        if seq < first:
            raise TooOld(f"record {seq} was truncated; the log begins with {first}", self.path)
        if self.control is None:
            return 0
        stop = self.control.committed().seq
        manifest = self.manifest_now()
        if manifest.cut is not None:
            stop = min(stop, <uint64_t>manifest.cut.seq)
        if seq >= stop:
            raise TooOld(f"record {seq} was truncated; the log ends before {stop}", self.path)
        return 0

    cdef uint64_t boundary_of(self, Segment segment, uint64_t tail_id) except? 0:
        # The first number that is not in this segment, whatever bytes may follow; 0 when it is the last. By the names alone:
        # whether what follows can be opened is found out by who goes there.
        cdef Footer footer
        if segment.id == tail_id:
            return 0
        for attempt in range(ATTEMPTS):
            at = self.beyond(segment.base_seq)
            if not any(entry[1] == segment.id for entry in self.names[max(at - ATTEMPTS, 0):at]):
                # Compaction has replaced it, and touches nothing without a footer; or it was truncated, with one or without.
                if segment.load_footer(&footer):
                    return footer.seq
                if segment.base_seq < self.first() and at < len(self.names):
                    return self.names[at][0]
            elif at < len(self.names) and (attempt or at + 1 < len(self.names) or self.names[at][1] == tail_id):
                return self.names[at][0]
            self.relist()
        if self.control is not None and not any(entry[1] == segment.id for entry in self.names):
            raise TooOld(f"records from {segment.base_seq} on were truncated", self.path)
        return 0

    cdef Segment following(self, Segment segment, uint64_t tail_id):
        # The segment that starts where this one ends, or None when this is the last.
        cdef Segment found
        if segment.id == tail_id:
            return None
        for attempt in range(ATTEMPTS):
            at = self.beyond(segment.base_seq)
            # The last name known may be that of an empty segment which is gone, and has a namesake in its place.
            if at < len(self.names) and (attempt or at + 1 < len(self.names) or self.names[at][1] == tail_id):
                found = self.at_base(self.names[at][0])
                if found is not None:
                    return found
            self.relist()
        return None

    cdef Py_ssize_t beyond(self, uint64_t seq) except -1:
        # Where in `names` those are that begin above this number.
        return bisect.bisect_left(self.names, (seq + 1,))

    cdef Segment at_base(self, uint64_t base_seq):
        # Of segments with the same base number only one counts: of the newest epoch, and not empty if there is a choice.
        # A roll cut short, or replacing an empty segment by a larger one, leaves an empty twin for a while.
        cdef Segment found, best = None
        cdef Py_ssize_t at = bisect.bisect_left(self.names, (base_seq,))
        best_rank = None
        twins = []
        while at < len(self.names) and self.names[at][0] == base_seq:
            twins.append(self.names[at])
            at += 1
        for entry in twins:
            found = self.open(entry)
            if found is None:
                continue
            if len(twins) == 1:
                return found
            rank = found.epoch, holds_records(found)
            if best_rank is None or rank > best_rank:
                best, best_rank = found, rank
        return best

    cdef Segment open(self, entry):
        # None when the file is gone: the name was that of a segment which never held a record.
        found = self.opened.get(entry[1])
        if found is None:
            try:
                found = open_segment(self.directory, entry[2], self.log_uuid, self.writable)
            except FileNotFoundError:
                return None
            self.opened[entry[1]] = found
            if len(self.opened) > OPENED_MAX:
                self.forget_some()
            # Only the last segment may still grow; what is learnt of it needs its descriptor again and again.
            if self.names and entry[1] == self.names[len(self.names) - 1][1]:
                if self.last is not None:
                    self.last.release()
                self.last = <Segment>found
            else:
                (<Segment>found).release()
        return <Segment>found

    cdef int check(self) except -1:
        # After reads and stores: MappingFault when one of them met a page that is gone.
        for segment in self.opened.values():
            (<Segment>segment).region.check()
        return 0

    def bases(self):
        """The base numbers of the segments, each once, in order."""
        return sorted({entry[0] for entry in self.names})

    def discard(self, Segment segment not None):
        """Remove a segment without records, file and all."""
        self.changes += 1
        system.remove_file(self.directory, segment.name)
        self.changes += 1
        self.opened.pop(segment.id, None)
        self.names = [entry for entry in self.names if entry[1] != segment.id]
        self.spans.forget()


cdef bint holds_records(Segment segment) noexcept:
    # Whether the first record of a segment is there.
    cdef Record record
    return read_record(
        segment.base, SEGMENT_HEADER_SIZE, segment.limit, segment.id, segment.base_seq, True, &record) == Found.RECORD
