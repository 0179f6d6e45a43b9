# Buckets: the entries of a line compared with a tag, a record's key with the one that is looked for, and an entry that is free.

from libc.stdint cimport uint64_t
from libc.string cimport memcmp, memcpy

from mmapio cimport _memory as memory
from mmapkv.format cimport BUCKETS, CHAIN_MAX, ENTRIES, LINE, OVERFLOW_LINES, SegmentLine

# A bit for each entry of a line that has this tag. All are compared at once: where the first of them stands no processor foresees. What
# changes meanwhile may be missed or found too much, so an entry is loaded again before it is followed.
cdef extern from * nogil:
    """
    #include <stdint.h>
    #ifdef __SSE2__
    #include <immintrin.h>
    static inline unsigned int mmkv_candidates(const void *line, uint64_t tag)
    {
        const float *words = (const float *)line;
        __m128i wanted = _mm_set1_epi32((int)(tag << 8)), mask = _mm_set1_epi32(-256);
        __m128i low = _mm_castps_si128(_mm_shuffle_ps(_mm_load_ps(words), _mm_load_ps(words + 4), 0xDD));
        __m128i high = _mm_castps_si128(_mm_shuffle_ps(_mm_load_ps(words + 8), _mm_load_ps(words + 12), 0xDD));
        int first = _mm_movemask_ps(_mm_castsi128_ps(_mm_cmpeq_epi32(_mm_and_si128(low, mask), wanted)));
        int last = _mm_movemask_ps(_mm_castsi128_ps(_mm_cmpeq_epi32(_mm_and_si128(high, mask), wanted)));
        return (unsigned int)(first | (last & 7) << 4);
    }
    #else
    static inline unsigned int mmkv_candidates(const void *line, uint64_t tag)
    {
        const uint64_t *entries = (const uint64_t *)line;
        unsigned int found = 0;
        for (int i = 0; i < 7; i++)
            found |= (unsigned int)((__atomic_load_n(&entries[i], __ATOMIC_RELAXED) >> 40) == tag) << i;
        return found;
    }
    #endif
    """
    unsigned int candidates_of "mmkv_candidates"(const void *line, uint64_t tag) noexcept
    int lowest_bit "__builtin_ctz"(unsigned int bits) noexcept


cdef inline bint is_same(const char *stored, const char *key, uint64_t size) noexcept nogil:
    # Most keys are a few words, the last two of which may overlap; a call would cost more than comparing them.
    cdef uint64_t one, other, at
    if size < 8 or size > 64:
        return memcmp(stored, key, size) == 0
    for at in range(0, size - 8, 8):
        memcpy(&one, stored + at, 8)
        memcpy(&other, key + at, 8)
        if one != other:
            return False
    memcpy(&one, stored + size - 8, 8)
    memcpy(&other, key + size - 8, 8)
    return one == other


cdef inline uint64_t *free_cell(char *segment, uint64_t bucket) noexcept nogil:
    # An empty entry in the chain of a bucket, which is lengthened if need be.
    cdef SegmentLine *head = <SegmentLine *>segment
    cdef uint64_t *line = <uint64_t *>(segment + LINE + bucket * LINE)
    cdef int i, length = 1
    while True:
        for i in range(ENTRIES):
            if line[i] == 0:
                return &line[i]
        if line[ENTRIES] == 0 or line[ENTRIES] > OVERFLOW_LINES or length >= CHAIN_MAX:
            break
        line = <uint64_t *>(segment + LINE + (BUCKETS - 1 + line[ENTRIES]) * LINE)
        length += 1
    if line[ENTRIES] != 0 or head.overflow_used >= OVERFLOW_LINES or length >= CHAIN_MAX:
        return NULL
    # Taken before it is linked: killed in between, the line is lost until the split, but never in two chains.
    head.overflow_used += 1
    memory.store_release(&line[ENTRIES], head.overflow_used)
    return <uint64_t *>(segment + LINE + (BUCKETS - 1 + head.overflow_used) * LINE)
