# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""An index as a file: laid out, mapped, and closed so that the next to open it may trust it without reading it."""

import os

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc
from libc.string cimport memcmp, memcpy, memset

from mmapio cimport _memory as memory
from mmapio._os cimport Descriptor
from mmapio.mapping cimport MappedFile
from mmapkv.format cimport (
    BUCKETS,
    CLEAN_OFFSET,
    DATA_OFFSET,
    DEPTH_MAX,
    ENTRIES,
    INDEX_CLOSED,
    INDEX_MAGIC,
    INDEX_VERSION,
    LINE,
    OVERFLOW_LINES,
    PAGE,
    SEGMENT_PAGES,
    SLOTS,
    TAG_REBASE,
    CleanMark,
    IndexHeader,
    SegmentLine,
    State,
    make_word,
    word_depth,
    word_page,
    word_tag_base,
)
from mmapkv.index cimport Index, directory_size, page_checksum
from mmapkv.slots cimport SlotMap
from mmaplog.checksum cimport xxh3
from mmaplog.control cimport Control

from mmapio import _os as system
from mmaplog.errors import CorruptionError, FormatError
from mmaplog.header import check as check_header

CLOSED = INDEX_CLOSED
cdef uint64_t FIRST_SIZE = 320 << 10
# Address space kept for an index; one that outgrows it is mapped anew. A process may have many stores open.
cdef uint64_t RESERVE = <uint64_t>4 << 30
# Segments are a third to two thirds full while an index grows. Those of one that is to be made smaller, less than this part.
cdef uint64_t SPARSE = 10


def create(Descriptor opened, log_uuid, SlotMap slots, seed=None):
    """Lay out an empty index in an empty file; under a random seed, unless one is given."""
    cdef IndexHeader header
    cdef MappedFile file
    cdef Index made
    cdef bytes uuid_bytes = log_uuid.bytes
    system.grow(opened, FIRST_SIZE)
    file = MappedFile.from_descriptor(opened, writable=True, reserve=RESERVE)
    memset(&header, 0, sizeof(header))
    header.magic = INDEX_MAGIC
    header.version = INDEX_VERSION
    memcpy(header.log_uuid, <const char *>uuid_bytes, 16)
    header.hash_seed = int.from_bytes(os.getrandom(8), "little") if seed is None else seed
    header.checksum = xxh3(&header, sizeof(header) - 8, 0)
    memcpy(file.base, &header, sizeof(header))
    made = Index(file, slots)
    made.number = number_of(opened)
    made.state.end = DATA_OFFSET + PAGE + SEGMENT_PAGES * PAGE
    made.state.segments = 1
    (<uint64_t *>(made.base + DATA_OFFSET))[0] = make_word(DATA_OFFSET // PAGE + 1, 0, 0, 0)
    made.state.root = <uint64_t>(DATA_OFFSET // PAGE) << 8
    return made


def load(Descriptor opened, log_uuid, SlotMap slots, bint writable):
    """Map an existing index. FormatError for one of a newer version, CorruptionError for what is none or damaged."""
    cdef IndexHeader header
    cdef MappedFile file
    cdef Index made
    cdef bytes uuid_bytes = log_uuid.bytes
    size = system.file_size(opened)
    if size < DATA_OFFSET + PAGE + SEGMENT_PAGES * PAGE:
        raise CorruptionError(f"{size} bytes are too few for an index", opened.path)
    raw = system.read_at(opened, sizeof(header), 0)
    memcpy(&header, <const char *>raw, sizeof(header))
    # A power cut may leave the name without the bytes. Anything else that is not ours, or newer, is not thrown away.
    if header.magic == 0:
        raise CorruptionError("the index was never written", opened.path)
    check_header(
        raw, INDEX_MAGIC, INDEX_VERSION, "an index", opened.path, remedy="move it away, the index is then rebuilt from the log")
    if header.incompatible:
        raise FormatError(f"the index uses features {header.incompatible:#x} that this code lacks; upgrade mmapkv",
                          opened.path)
    if memcmp(header.log_uuid, <const char *>uuid_bytes, 16) != 0:
        raise CorruptionError("the index belongs to another log", opened.path)
    file = MappedFile.from_descriptor(opened, writable=writable, reserve=RESERVE)
    made = Index(file, slots)
    made.number = number_of(opened)
    if made.state.clean:
        made.checked_pages = made.limit // PAGE
        made.checked = <unsigned char *>calloc(made.checked_pages, 1)
        if made.checked == NULL:
            raise MemoryError
        made.check_pages = True
    return made


def is_sparse(Index index, uint64_t keys):
    """Whether an index has room for so many more entries than it has that a new one would take about a fourth of it, or less.

    With `keys` it has so many entries at least. Where these few would allow it, costs a look at each cell.
    """
    cdef uint64_t room = index.state.segments * BUCKETS * ENTRIES
    return index.state.segments > 1 and keys * SPARSE < room and not has_entries(index, room // SPARSE)


cdef bint has_entries(Index index, uint64_t many) except -1:
    # Whether there are so many; one that grows meanwhile beyond what is mapped counts as if there were.
    cdef uint64_t root = index.state.root, depth = root & 0x7F, first = (root >> 8) * PAGE, left = many, page, at
    cdef uint64_t *cells
    if first + directory_size(depth) > index.limit:
        return True
    for page in segment_pages(index):
        if (page + SEGMENT_PAGES) * PAGE > index.limit:
            return True
        cells = <uint64_t *>(index.base + page * PAGE + LINE)
        for at in range((BUCKETS + OVERFLOW_LINES) * (ENTRIES + 1)):
            if at % (ENTRIES + 1) != ENTRIES and cells[at] != 0:
                if left == 0:
                    return True
                left -= 1
    return False


def mark_clean(Index index, uint64_t seq, uint64_t segment_id, uint64_t end):
    """Checksum everything, sync it, and then say durably that it may be trusted: it holds the records below `seq`.

    The log ended at `end` of the segment then. Costs a pass over the index and two syncs. What was allocated ahead is given back.
    """
    cdef CleanMark mark
    cdef uint64_t page
    # Unless it was cut by others, which the sync finds out. Nobody looks beyond what is in use, whatever he has mapped.
    if index.file.learn_length() >= index.limit:
        index.file.resize(index.state.end)
        index.follow()
    for page in segment_pages(index):
        (<SegmentLine *>(index.base + page * PAGE)).checksum = page_checksum(index.base + page * PAGE, index.seed)
    memory.store_release(&index.state.clean, 1)
    index.file.sync_all()
    mark.seq = seq
    mark.segment_id = segment_id
    mark.end = end
    mark.index_end = index.state.end
    mark.content = content_checksum(index)
    mark.checksum = xxh3(&mark, sizeof(mark) - 8, index.seed)
    memcpy(index.base + CLEAN_OFFSET, &mark, sizeof(mark))
    index.file.sync_all()


def clear_mark(Index index not None):
    """Take the clean mark back, durably, before the first store. CorruptionError when the index turns out not to be sound."""
    cdef uint64_t page
    # Where several write, another one may have done so.
    if index.check_pages and index.state.clean:
        for page in segment_pages(index):
            if not index.sound_page(page):
                raise CorruptionError(f"page {page} of the index does not match its checksum", index.file.path)
    index.check_pages = False
    memory.store_release(&index.state.clean, 0)
    if is_marked(index):
        memset(index.base + CLEAN_OFFSET, 0, sizeof(CleanMark))
        index.file.sync_all()


def read_mark(Index index):
    """What the clean mark says, as (seq, segment id, end of the log); None when there is none.

    Raises CorruptionError when there is one and the file is not what was marked.
    """
    cdef CleanMark mark
    # Between taking back the flag and the mark, or setting them, a writer was killed; nothing was stored meanwhile.
    if not is_marked(index) or not index.state.clean:
        return None
    memcpy(&mark, index.base + CLEAN_OFFSET, sizeof(mark))
    if (mark.checksum != xxh3(&mark, sizeof(mark) - 8, index.seed) or mark.index_end != index.state.end
            or mark.content != content_checksum(index)):
        raise CorruptionError("the index is not as it was when it was closed", index.file.path)
    return mark.seq, mark.segment_id, mark.end


def figures(Index index):
    """Counts for `stats`: depth of the directory, index segments, bytes in use and allocated."""
    return {
        "index_depth": index.state.root & 0x7F,
        "index_segments": index.state.segments,
        "index_bytes": index.state.end,
        "index_allocated": index.file.length,
    }


def attend(Index index, Control control, uint64_t named):
    """Have an index notice that another one takes its place, which this CONTROL tells; it named `named` when this one was right."""
    index.heard = named
    index.control = control
    index.named = &control.hot.index


def is_clean(Index index):
    """Whether the index has not been stored to since it was closed."""
    return memory.load_acquire(&index.state.clean) != 0


def expiring_below(Index index):
    """The number below which every record is that has a time to live; 0 when none has."""
    return index.state.expiring


def is_plausible(Index index):
    """Whether everything that is followed without a further look stays within the file and the format."""
    cdef State *state = index.state
    cdef uint64_t depth = state.root & 0x7F, page = state.root >> 8, pages = index.limit // PAGE, at, seq, count
    cdef uint64_t *words
    if depth > DEPTH_MAX or not DATA_OFFSET // PAGE <= page < pages or page * PAGE + directory_size(depth) > index.limit:
        return False
    if state.slots_used > SLOTS or state.slot_hand > SLOTS or state.end > index.limit or state.end % PAGE or state.segments > pages:
        return False
    if state.spare and not is_segment(state.spare, pages):
        return False
    index.applied(&seq, &count)
    if count > seq:
        return False
    words = <uint64_t *>(index.base + page * PAGE)
    for at in range(<uint64_t>1 << depth):
        if not is_word(words[at], depth, pages):
            return False
    return not state.split_old or is_split(state, depth, pages)


cdef bint is_segment(uint64_t page, uint64_t pages) noexcept:
    return DATA_OFFSET // PAGE <= page and page + SEGMENT_PAGES <= pages


cdef bint is_word(uint64_t word, uint64_t depth, uint64_t pages) noexcept:
    return (is_segment(word_page(word), pages) and word_depth(word) <= depth and word_tag_base(word) <= word_depth(word)
            and word_depth(word) - word_tag_base(word) <= TAG_REBASE)


cdef bint is_split(State *state, uint64_t depth, uint64_t pages) noexcept:
    # The intent of a split, about to be carried out by another than who wrote it down.
    cdef uint64_t old = word_depth(state.split_old)
    if not is_word(state.split_left, depth, pages) or not is_word(state.split_right, depth, pages):
        return False
    if word_depth(state.split_left) != old + 1 or word_depth(state.split_right) != old + 1 or state.split_prefix >> old:
        return False
    if state.split_end > pages * PAGE or state.split_end % PAGE or state.split_segments > pages:
        return False
    return is_segment(state.split_spare, pages)


cdef uint64_t number_of(Descriptor opened) except 0:
    # Even, and not 0. An inode by itself would be given to another file, once this one is removed.
    cdef uint64_t[3] words
    _, words[0], words[1], words[2], _, _ = system.identity(opened)
    return xxh3(words, sizeof(words), 0) & ~<uint64_t>INDEX_CLOSED or 2


cdef bint is_marked(Index index) noexcept:
    cdef CleanMark nothing
    memset(&nothing, 0, sizeof(nothing))
    return memcmp(index.base + CLEAN_OFFSET, &nothing, sizeof(nothing)) != 0


cdef uint64_t content_checksum(Index index) noexcept:
    # Over what has no checksum of its own. The incarnation is left out: it changes while the mark stands.
    cdef State copy = index.state[0]
    cdef uint64_t sum
    copy.incarnation = 0
    sum = xxh3(&copy, sizeof(copy), index.seed)
    sum = xxh3(index.slot_table, copy.slots_used * 8, sum)
    sum = xxh3(index.dead, copy.slots_used * 4, sum)
    return xxh3(index.base + (copy.root >> 8) * PAGE, 8 * (<uint64_t>1 << (copy.root & 0x7F)), sum)


cdef segment_pages(Index index):
    # The pages at which the index segments in use start.
    cdef uint64_t root = index.state.root, at
    cdef uint64_t *words = <uint64_t *>(index.base + (root >> 8) * PAGE)
    return {word_page(words[at]) for at in range(<uint64_t>1 << (root & 0x7F))}
