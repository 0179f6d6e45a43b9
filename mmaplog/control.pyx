# cython: language_level=3, auto_pickle=False
"""CONTROL: the words that every append and sync touch, shared between processes and derivable at any time.

Never synced. What it says may be believed only while the page cache it lives in is the one it was written
to: same boot, same mount, same file. `load` checks that; when it answers None, recovery makes a new one.
"""

import errno as _errno
import os

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from mmapio cimport _memory as memory
from mmapio cimport _wait
from mmapio._os cimport Descriptor
from mmapio._vm cimport READ_WRITE
from mmapio.mapping cimport MappedFile
from mmaplog.checksum cimport xxh3
from mmaplog.format cimport (
    APPEND_MUTEX_OFFSET,
    CONTROL_HOT_OFFSET,
    CONTROL_MAGIC,
    CONTROL_SIZE,
    SYNC_MUTEX_OFFSET,
    VERSION,
    CommitSlot,
    ControlHot,
    ControlIdentity,
)

from mmapio import _os as system
from mmapio.sync import SharedMutex

NAME = "CONTROL"
TEMPORARY = "CONTROL.tmp"
ERRNO_MAX = 4095
cdef int ALL = 0x7FFFFFFF
# How long a follower sleeps that nobody knows of: one that may not write CONTROL, or on a kernel that cannot fence the writer.
cdef int64_t UNHEARD_NS = 2_000_000


cdef class Control:
    """The mapped CONTROL file. Made by `load` or `create`."""

    def __cinit__(self, MappedFile file not None, bint private):
        cdef ControlIdentity identity
        file.check_open()
        if file.length < CONTROL_SIZE:
            raise ValueError(f"CONTROL has {CONTROL_SIZE} bytes, not {file.length}")
        memcpy(&identity, file.base, sizeof(identity))
        self.file = file
        self.hot = <ControlHot *>(file.base + CONTROL_HOT_OFFSET)
        self.incarnation = identity.incarnation
        self.private = private
        self.can_ring = file.kind == READ_WRITE

    @property
    def durable(self):
        """The number after the last durable record, as every process sees it."""
        return memory.load_acquire(&self.hot.durable)

    @property
    def poison(self):
        """errno of the first failed sync, or 0."""
        return memory.load_acquire(&self.hot.poison)

    @property
    def sync_inflight(self):
        """Which syncs are under way, or may have failed and their process did not live to say so: bits, 0 when none."""
        return memory.load_acquire(&self.hot.sync_inflight)

    def fail_sync(self, number):
        """Tell every process that a sync failed with errno `number`: from here on nothing is acknowledged."""
        memory.store_release(&self.hot.poison, number or _errno.EIO)
        # It told all there was to tell, and the next one to write is going to copy what was not durable.
        memory.store_release(&self.hot.sync_inflight, 0)

    @property
    def first_seq(self):
        """The number of the first record that the log still has, as every process sees it."""
        return memory.load_acquire(&self.hot.first_seq)

    @property
    def generation(self):
        """How often segments were replaced or removed, other than by a roll."""
        return memory.load_acquire(&self.hot.generation)

    @property
    def index(self):
        """Which file is the INDEX of a store, as its writers tell it; 0 when none of them has."""
        return memory.load_acquire(&self.hot.index)

    def change(self, first_seq):
        """Tell every process that there are other segments now, and where the log begins."""
        memory.store_release(&self.hot.first_seq, first_seq)
        memory.count_up(&self.hot.generation)

    def rewind(self, seq, segment_id, end):
        """Tell every process that the log ends here now: all of it is durable. Before `change`."""
        cdef CommitSlot slot
        slot.seq = seq
        slot.segment_id = segment_id
        slot.end = end // 8
        slot.last = 0
        memory.store_release(&self.hot.in_flight, end)
        memory.store_release(&self.hot.durable, seq)
        self.publish(&slot)

    @property
    def in_flight(self):
        """Offset in the tail segment up to which an append that never finished may have written."""
        return memory.load_acquire(&self.hot.in_flight)

    @property
    def tail(self):
        """(next sequence number, segment id, end offset, offset of the last record or 0)."""
        cdef CommitSlot slot = self.committed()
        return slot.seq, slot.segment_id, <uint64_t>slot.end * 8, <uint64_t>slot.last * 8

    def mutexes(self):
        """The mutexes of several writing processes: of those who append, and of those who sync."""
        return SharedMutex(self.file, APPEND_MUTEX_OFFSET), SharedMutex(self.file, SYNC_MUTEX_OFFSET)

    def seal(self):
        """Checksum the words, at the end of a writer's work: from now on a flipped bit is noticed."""
        self.hot.clean_sum = hot_sum(self.hot, self.incarnation)

    def unseal(self):
        """Take the checksum back, before a writer's work."""
        memory.store_release(&self.hot.clean_sum, 0)

    cdef int check(self) except -1:
        # After a read: words may have come from pages that the fault handler put in place of missing ones.
        return self.file.region.check()

    cdef CommitSlot committed(self) noexcept nogil:
        cdef uint64_t turn
        cdef CommitSlot slot
        while True:
            turn = memory.load_acquire(&self.hot.turn)
            slot = self.hot.slots[turn & 1]
            memory.fence_acquire()
            # A slot is rewritten only two turns later, so an unchanged turn means an untorn copy.
            if memory.load_relaxed(&self.hot.turn) == turn:
                return slot

    cdef void publish(self, CommitSlot *slot) noexcept nogil:
        cdef uint64_t turn = self.hot.turn + 1
        # No store to the slot may be seen before the turn that retired it.
        memory.fence_release()
        self.hot.slots[turn & 1] = slot[0]
        memory.store_release(&self.hot.turn, turn)
        # No fence in between where who sleeps can see to that.
        if self.fenced:
            memory.fence_compiler()
        else:
            memory.fence_full()
        if memory.load_relaxed(&self.hot.waiting):
            self.wake_followers()

    cdef void wake_followers(self) noexcept nogil:
        # The flag first: who sets it after this looks at `turn` again before he sleeps.
        memory.store_release(&self.hot.waiting, 0)
        memory.store_release(&self.hot.bell, self.hot.bell + 1)
        _wait.wake_word(<uint32_t *>&self.hot.bell, ALL)

    cdef void begin_sync(self, uint64_t which) noexcept nogil:
        # Before the sync and before what is stored for it. The kernel tells once that it failed, perhaps somebody who is killed that moment.
        memory.set_bits(&self.hot.sync_inflight, which)

    cdef void end_sync(self, uint64_t which) noexcept nogil:
        # Once it has succeeded, and what depends on it is said.
        memory.clear_bits(&self.hot.sync_inflight, which)

    cdef void publish_durable(self, uint64_t seq) noexcept nogil:
        # Whoever waits for it is told without being asked for: beside a sync, the call costs nothing.
        memory.store_release(&self.hot.durable, seq)
        _wait.wake_word(<uint32_t *>&self.hot.durable, ALL)

    cdef int wait_for_turn(self, uint64_t turn, int64_t span_ns) noexcept nogil:
        # Sleeps until `turn` has moved, or about so long. The caller looks again, whatever ended it.
        cdef uint64_t bell = memory.load_acquire(&self.hot.bell)
        if self.can_ring:
            memory.store_release(&self.hot.waiting, 1)
        if not self.can_ring or _wait.fence_others() < 0:
            span_ns = min(span_ns, UNHEARD_NS)
        if memory.load_acquire(&self.hot.turn) != turn:
            return 0
        return _wait.wait_word(<uint32_t *>&self.hot.bell, <uint32_t>bell, span_ns)

    cdef int wait_for_durable(self, uint64_t durable, int64_t span_ns) noexcept nogil:
        # The same for `durable`.
        return _wait.wait_word(<uint32_t *>&self.hot.durable, <uint32_t>durable, span_ns)


cdef uint64_t hot_sum(ControlHot *hot, uint64_t incarnation) noexcept nogil:
    return xxh3(hot, 128, incarnation) or 1


cdef int describe(ControlIdentity *identity, Descriptor opened, bytes log_uuid) except -1:
    # Fills in what binds the file to this boot, mount and inode. A kernel without unique mount ids gets a
    # random one instead: such a file never matches, and opening recovers from the segments.
    cdef bytes boot = system.boot_id()
    memset(identity, 0, sizeof(identity[0]))
    identity.magic = CONTROL_MAGIC
    identity.version = VERSION
    memcpy(identity.log_uuid, <const char *>log_uuid, 16)
    memcpy(identity.boot_id, <const char *>boot, 16)
    device, inode, seconds, nanoseconds, mount, unique = system.identity(opened)
    identity.device = device
    identity.inode = inode
    identity.birth_seconds = seconds
    identity.birth_nanoseconds = nanoseconds
    identity.mount_id = mount if unique else random_word()
    return 0


def for_waiting(Descriptor directory, Control known):
    """The same CONTROL for one who sleeps: it stays when the log is closed, and can be told of a waiter where that is allowed."""
    cdef Control made = Control(known.file, known.private)
    if made.can_ring:
        return made
    try:
        opened = system.open_file(NAME, True, follow=False, directory=directory)
    except OSError:
        return made
    if system.file_size(opened) != CONTROL_SIZE:
        return made
    ringing = Control(MappedFile.from_descriptor(opened, writable=True, reserve=CONTROL_SIZE), False)
    return ringing if ringing.incarnation == made.incarnation else made


def name_index(Descriptor directory, Control known, uint64_t index):
    """Have every process know which file is the INDEX of a store; also for who maps CONTROL only to read it."""
    cdef Control made = for_waiting(directory, known)
    if made.can_ring:
        memory.store_release(&made.hot.index, index)


def load(Descriptor directory, log_uuid, bint writable, bint live):
    """Map the CONTROL file of an open directory, or return None when it must not be believed.

    With `live`, another process has the log open and goes by this file, so it is believed whatever mount
    or boot it names, as long as it is one of this log.
    """
    cdef Descriptor opened
    cdef MappedFile file
    cdef ControlIdentity found, expected
    cdef Control made
    try:
        opened = system.open_file(NAME, writable, follow=False, directory=directory)
    except FileNotFoundError:
        return None
    if system.file_size(opened) != CONTROL_SIZE:
        return None
    file = MappedFile.from_descriptor(opened, writable=writable, reserve=CONTROL_SIZE)
    memcpy(&found, file.base, sizeof(found))
    describe(&expected, opened, log_uuid.bytes)
    if found.checksum != xxh3(&found, sizeof(found) - sizeof(found.checksum), 0):
        return None
    if live:
        memcpy(found.boot_id, expected.boot_id, 16)
        found.mount_id = expected.mount_id
    expected.incarnation = found.incarnation
    if memcmp(&found, &expected, sizeof(found) - sizeof(found.checksum)) != 0:
        return None
    made = Control(file, False)
    if made.hot.poison > ERRNO_MAX:
        return None
    if made.hot.clean_sum and made.hot.clean_sum != hot_sum(made.hot, made.incarnation):
        return None
    return made


def create(directory, log_uuid, first_seq, seq, segment_id, end, last, durable, sync_inflight=0):
    """Make CONTROL anew, saying that the log begins and ends where the arguments say. With directory None, in private memory."""
    cdef Descriptor opened
    cdef MappedFile file
    cdef ControlIdentity identity
    cdef CommitSlot slot
    cdef Control made
    if directory is None:
        opened = system.anonymous_file(NAME)
    else:
        # A file of the same name may still be mapped by others: never written again, only replaced.
        try:
            system.remove_file(directory, TEMPORARY)
        except FileNotFoundError:
            pass
        opened = system.open_file(TEMPORARY, True, create=True, exclusive=True, follow=False, directory=directory)
    system.grow(opened, CONTROL_SIZE)
    file = MappedFile.from_descriptor(opened, writable=True, reserve=CONTROL_SIZE)
    describe(&identity, opened, log_uuid.bytes)
    identity.incarnation = random_word()
    identity.checksum = xxh3(&identity, sizeof(identity) - sizeof(identity.checksum), 0)
    memcpy(file.base, &identity, sizeof(identity))
    made = Control(file, directory is None)
    slot.seq = seq
    slot.segment_id = segment_id
    slot.end = end // 8
    slot.last = last // 8
    made.hot.in_flight = end
    made.hot.durable = durable
    made.hot.first_seq = first_seq
    made.hot.sync_inflight = sync_inflight
    made.publish(&slot)
    if directory is not None:
        system.replace_file(directory, TEMPORARY, NAME)
    return made


def random_word():
    """A random nonzero 64-bit number from the system."""
    return int.from_bytes(os.getrandom(8), "little") or 1
