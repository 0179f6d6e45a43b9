# What a store is at one moment: the records that count, the keys that are present, and what was cleared. Inlined where it is used.

from libc.stdint cimport uint64_t

from mmapio cimport _memory as memory
from mmapkv.format cimport State


cdef inline void read_moment(const State *state, uint64_t *seq, uint64_t *count, uint64_t *cleared) noexcept nogil:
    # All three of the same moment: the records below `seq`, of which those below `cleared` count as deleted.
    cdef uint64_t turn
    while True:
        turn = memory.load_acquire(&state.turn)
        seq[0] = state.applied[turn & 1].seq
        count[0] = state.applied[turn & 1].count
        cleared[0] = state.shown[turn & 1]
        memory.fence_acquire()
        if memory.load_relaxed(&state.turn) == turn:
            return

cdef inline void store_moment(State *state, uint64_t seq, uint64_t count) noexcept nogil:
    # From here on readers go by it, and by what was cleared.
    cdef uint64_t turn = state.turn + 1
    memory.fence_release()
    state.applied[turn & 1].seq = seq
    state.applied[turn & 1].count = count
    state.shown[turn & 1] = state.cleared
    memory.store_release(&state.turn, turn)

cdef inline void store_count(State *state, uint64_t count) noexcept nogil:
    # The same moment, of which less is present than was thought. Of a clear that is not published yet readers learn nothing by it.
    cdef uint64_t turn = state.turn + 1
    memory.fence_release()
    state.applied[turn & 1].seq = state.applied[state.turn & 1].seq
    state.applied[turn & 1].count = count
    state.shown[turn & 1] = state.shown[state.turn & 1]
    memory.store_release(&state.turn, turn)

cdef inline void store_clear(State *state, uint64_t below, uint64_t seq) noexcept nogil:
    # What record `seq` says; readers go by it once the index has published that record. Who reads both words without a lock takes `cleared`
    # first, and then finds the `clear_seq` that goes with it, or a higher one.
    memory.store_release(&state.clear_seq, seq)
    memory.store_release(&state.cleared, below)
