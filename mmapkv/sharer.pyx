# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""A store's turn to write, where several processes do: each in its turn finds what the others left, the dead ones too."""

from libc.stdint cimport uint64_t

from mmapio cimport _fault
from mmapkv.bulk_reader cimport BulkReader
from mmapkv.format cimport ROOT_MOVED
from mmapkv.index cimport PRESENT, REPLACED, UNSOUND, Hit, Index, Outcome, is_doubtful
from mmapkv.relocation cimport forget
from mmaplog.log cimport Log

from mmapkv import index_file
from mmapkv.catch_up import catch_up
from mmapkv.index import Reseed
from mmaplog.errors import CorruptionError


cdef class Sharer(BulkReader):
    """The part of ``KVStore`` that takes turns with other writers. Whoever is the only one needs no turn."""

    cdef Index hold(self, what):
        # From here to `let_go` nobody else writes, whoever lets go of the GIL, and the index that is returned holds all that was
        # written. What replaces an index takes locks whose holders may be waiting for the tail, so it is done without.
        cdef Log log = self.log
        cdef Index index
        cdef Hit nothing
        cdef Outcome outcome
        while True:
            index = self.index
            if index is None:
                self.raise_closed()
            log.hold_tail(what)
            try:
                outcome = self.approach(index)
            except BaseException:
                log.give_tail()
                raise
            if outcome == PRESENT:
                return index
            log.give_tail()
            self.settle(index, outcome, &nothing)

    cdef int let_go(self) except -1:
        # What `hold`, or a `seek`, took; nothing where nothing is taken.
        if self.several:
            self.log.give_tail()
        return 0

    cdef Outcome approach(self, Index index) except *:
        # PRESENT when the index can be stored to. What is half done in it was left by one who died with the tail in hand.
        cdef Log log = self.log
        cdef uint64_t seq, count
        if self.index is not index or index.state.root & ROOT_MOVED or is_doubtful(index):
            return REPLACED
        if index.state.end > index.limit:
            index.follow()
        if self.tail_id == 0:
            # Before the first write of this handle; what others did before is none of its own.
            try:
                index_file.clear_mark(index)
            except CorruptionError:
                return UNSOUND
        if index.state.split_old:
            index.resume()
        index.applied(&seq, &count)
        if _fault.faults() != self.faults:
            self.check_faults()
        if seq > log.seq:
            return UNSOUND
        if seq < log.seq:
            try:
                catch_up(index, log.replay(seq))
            except Reseed:
                return UNSOUND
        return PRESENT

    cdef int enter_tail(self, Index index) except -1:
        # The index knows the segment that is written.
        if self.tail_id != self.log.segment_id:
            if self.log.discarded:
                # The slot of a segment that is gone would say that the index must be built anew.
                forget(index, self.log.discarded)
                self.log.discarded = 0
            self.tail_slot = index.slot_of(self.log.segment_id)
            self.tail_id = self.log.segment_id
            self._segment_filled()
            self.rolled = True
        return 0

    cdef int tell_rolled(self) except -1:
        # With nothing in hand: what is told may wait for what needs a turn.
        if self.rolled:
            self.rolled = False
            try:
                self._rolled()
            except BaseException:
                # Interrupted while it waited, say.
                self.rolled = True
                raise
        return 0

    def _open(self, Log log, bint verify):
        BulkReader._open(self, log, verify)
        self.several = log.append_mutex is not None
