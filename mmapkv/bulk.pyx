# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Many changes in one commit: planned, written to the log as one batch of its, then entered into the index and made visible at once."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from mmapio cimport _fault
from mmapio cimport _memory as memory
from mmapio._os cimport now_ns
from mmapio.region cimport Region
from mmapkv.approach cimport fetch_bucket, fetch_record
from mmapkv.batch cimport Batch, Change, Fate
from mmapkv.clearance cimport count_left
from mmapkv.clearing cimport CLEAR_PAYLOAD_SIZE, lay_out_clear
from mmapkv.dead_bytes cimport add_written, superseded_size
from mmapkv.format cimport (
    ADDRESS_BITS,
    FLAG_CREATES,
    FLAG_EXPIRY,
    FLAG_PREVIOUS,
    KIND_DELETE,
    KIND_PUT,
    LINE,
    address_slot,
    make_address,
    value_offset,
)
from mmapkv.index cimport ABSENT, PRESENT, REPLACED, UNSOUND, Hit, Index, Outcome
from mmapkv.moment cimport read_moment, store_clear
from mmapkv.plan cimport Plan, plan_of
from mmapkv.relocation cimport CURRENT, Ground, fate_of, ground_of
from mmapkv.updater cimport StoreUpdater
from mmapkv.writer cimport NEVER_DUE, Version, expiry_of, lay_out
from mmaplog.appender cimport BATCH_SIZE_MAX, record_size
from mmaplog.checksum cimport xxh3
from mmaplog.format cimport FLAG_BATCH, FLAG_BATCH_END, UNIT
from mmaplog.log cimport Log

from mmapkv.bulk_reader import refuse_one_key
from mmapkv.errors import Conflict
from mmapkv.index import Reseed

cdef uint64_t NEVER = <uint64_t>-1
# How many changes ahead their buckets are fetched from memory, and how many the records that those lead to.
cdef uint64_t AHEAD_BUCKET = 16
cdef uint64_t AHEAD_RECORD = 8
# Other threads may run while more than so much is written, or more changes than so many are planned, which takes as long.
cdef uint64_t HELD_BYTES_MAX = 1 << 20
cdef uint64_t HELD_CHANGES_MAX = 1 << 13


cdef class BulkWriter(StoreUpdater):
    """The part of ``KVStore`` that commits many changes at once."""

    def put_many(self, pairs, /, *, ttl=None, bint durable=False):
        """Set the values of many keys, all of them or none: `pairs` is a mapping, or an iterable of (key, value).

        A commit is atomic as that of :meth:`batch` is. `ttl` is for all of them, and `durable` costs one sync. Nothing is written when iterating
        raises. Costs less than single puts, for what one key needs comes from memory while others are looked up, and a million pairs in one call
        cost what they do in a thousand; other threads that write wait meanwhile. Until it returns it takes some 120 bytes for each pair, besides keys
        and values. Raises what put does, MemoryError, and RecordTooLarge with nothing written for more than 512 MiB, with what the format adds.
        """
        cdef Batch batch = Batch(self, durable)
        cdef uint64_t expires = expiry_of(ttl)
        if type(pairs) is dict:
            for key, value in (<dict>pairs).items():
                batch.add(KIND_PUT, key, value, expires)
        elif hasattr(pairs, "keys"):
            for key in pairs.keys():
                batch.add(KIND_PUT, key, pairs[key], expires)
        else:
            for key, value in pairs:
                batch.add(KIND_PUT, key, value, expires)
        batch.over = True
        self.commit_batch(batch, durable, None, NEVER, False, NEVER)

    def _put_entries(self, entries, /):
        # For what was copied from a store: (key, value, when it expires in nanoseconds since 1970, or None), all of them or none.
        cdef Batch batch = Batch(self, False)
        for key, value, expires in entries:
            batch.add(KIND_PUT, key, value, 0 if expires is None else expires)
        batch.over = True
        self.commit_batch(batch, False, None, NEVER, False, NEVER)

    def delete_many(self, keys, /, *, bint durable=False):
        """Remove many keys, all of them or none, and return how many were there.

        Costs less than single deletions, and memory as put_many does; `durable` costs one sync. Raises TypeError for a single key,
        and for what is no key, and what put_many does. What cannot be stored as a key is absent.
        """
        cdef Batch batch = Batch(self, durable)
        refuse_one_key(keys)
        for key in keys:
            batch.add(KIND_DELETE, key, None, 0)
        batch.over = True
        return self.commit_batch(batch, durable, None, NEVER, False, NEVER)

    def batch(self, *, bint durable=False):
        """Changes that are committed together when a ``with`` block ends, and not at all when it raises.

        `durable` makes them so, by one sync. Costs nothing until then, but some 120 bytes a change; the end costs what :meth:`put_many` does,
        and raises that.
        """
        return Batch(self, durable)

    def _require_writer(self):
        # Closed, InvalidMode, and whatever else forbids to write.
        if self.index is None:
            self.raise_closed()
        self.log.check_writable()

    def _commit(self, Batch batch not None, list reads=None, uint64_t stop=NEVER, bint alone=False, uint64_t cleared=NEVER, bint clears=False):
        # For a transaction that saw the records in [`cleared`, `stop`): Conflict when one of the keys in `reads`, or one that it changes, has
        # a newer one, or was cleared since; with `alone`, when there is any newer one. With `clears` as well, all that there was goes.
        # Another thread may be about to add to it, and the GIL is let go of.
        batch.over = True
        return self.commit_batch(batch, batch.durable, reads, stop, alone, cleared, clears)

    cdef uint64_t commit_batch(
            self, Batch batch, bint durable, list reads, uint64_t stop, bint alone, uint64_t cleared, bint clears=False) except? 0:
        # How many records were written.
        cdef Log log = self.log
        cdef Index index
        cdef Plan plan = plan_of(batch)
        cdef Hit hit
        cdef Outcome outcome
        cdef uint64_t written, total, seq, count, below
        if self.several and reads is None:
            self.tell_rolled()
        if self.due != NEVER_DUE:
            self.make_way(size_at_most(batch))
        while True:
            index = self.take_tail("a batch")
            try:
                try:
                    outcome = self.check_reads(index, reads, stop, alone, cleared, &hit)
                    if outcome == PRESENT:
                        read_moment(index.state, &seq, &count, &below)
                        batch.clears = clears and count > 0
                        outcome = self.plan_changes(index, plan, stop, cleared, &hit)
                    if outcome == PRESENT:
                        self.fit(index, batch, &written, &total)
                        if written:
                            self.publish_changes(index, batch, written, total)
                        break
                finally:
                    log.give_tail()
            except Reseed:
                self._rebuild_index(index)
                continue
            # It takes locks whose holders may be waiting for the tail.
            self.settle(index, outcome, &hit)
        if written:
            log.flush_if_due(durable)
        if reads is None:
            self.tell_rolled()
        return written

    def _tell_rolled(self):
        # For a transaction, which let go first of the moment that it was at: that is waited for.
        self.tell_rolled()

    cdef Outcome check_reads(self, Index index, list reads, uint64_t stop, bint alone, uint64_t cleared, Hit *hit) except *:
        # PRESENT when they are still what they were.
        cdef Outcome outcome
        cdef const char *start
        cdef uint64_t size
        if alone and self.log.seq > stop:
            raise Conflict(f"the store was changed by record {stop}, after this transaction began and read all of it; run it again", self._path)
        if reads is None or alone or self.log.seq <= stop:
            return PRESENT
        for key in reads:
            start = PyBytes_AS_STRING(<bytes?>key)
            size = PyBytes_GET_SIZE(<bytes>key)
            while True:
                outcome = index.find(xxh3(start, size, index.seed), start, size, False, hit)
                if _fault.faults() != self.faults:
                    self.check_faults()
                if outcome == PRESENT or outcome == ABSENT:
                    break
                if outcome == REPLACED or outcome == UNSOUND:
                    return outcome
                index.settle(outcome, hit)
            if outcome == PRESENT:
                self.refuse_changed(index, hit, stop, cleared)
        return PRESENT

    cdef Outcome plan_changes(self, Index index, Plan plan, uint64_t stop, uint64_t cleared, Hit *hit) except *:
        # Finds for each change what there is to be done, and makes room in the index for all of it. PRESENT when that is finished.
        cdef Batch batch = plan.batch
        cdef Change *change
        cdef char *base = index.base
        cdef uint64_t at = 0, now = now_ns(), segments = index.state.segments
        cdef bint known = False
        cdef Outcome outcome
        if batch.count <= HELD_CHANGES_MAX:
            plan.begin(index)
        else:
            with nogil:
                plan.begin(index)
        for at in range(min(AHEAD_BUCKET, batch.count)):
            fetch_bucket(index, batch.changes[at].hash)
        at = 0
        while at < batch.count:
            change = &batch.changes[at]
            if change.fate != Fate.OPEN:
                at += 1
                if at % HELD_CHANGES_MAX == 0:
                    with nogil:
                        pass  # whoever waits for the GIL has it now
                continue
            if at + AHEAD_BUCKET < batch.count:
                fetch_bucket(index, batch.changes[at + AHEAD_BUCKET].hash)
            if at + AHEAD_RECORD < batch.count:
                fetch_record(index, batch.changes[at + AHEAD_RECORD].hash)
            outcome = index.find(change.hash, change.key, change.key_size, False, hit)
            if _fault.faults() != self.faults:
                self.check_faults()
            if outcome == REPLACED or outcome == UNSOUND:
                return outcome
            if outcome != PRESENT and outcome != ABSENT:
                index.settle(outcome, hit)
                continue
            if outcome == PRESENT:
                self.refuse_changed(index, hit, stop, cleared)
                if batch.clears or hit.seq < index.state.cleared:
                    hit.deleted = True
            if change.kind == KIND_DELETE and (outcome == ABSENT or hit.deleted or hit.expires and hit.expires <= now):
                change.fate = Fate.VOID
                continue
            change.flags = FLAG_EXPIRY if change.expires else 0
            self.expiring = self.expiring or change.flags
            change.superseded = 0
            if outcome == ABSENT:
                plan.fresh[plan.count] = change.hash
                plan.count += 1
                change.flags |= FLAG_CREATES
                change.cell = NULL
            else:
                known = True
                change.flags |= FLAG_PREVIOUS
                if hit.deleted:
                    change.flags |= FLAG_CREATES
                change.cell = hit.cell
                change.previous_seq = hit.seq
                change.previous = hit.address
                change.superseded = 0 if hit.deleted else <uint32_t>(superseded_size(index, hit) // UNIT)
            change.fate = Fate.PLANNED
        plan.reserve(index)
        if known and (index.base != base or index.state.segments != segments):
            self.find_cells(index, batch)
        return PRESENT

    cdef int find_cells(self, Index index, Batch batch) except -1:
        # Anew: a split copied them, or the index was mapped elsewhere.
        cdef Ground ground
        cdef Region held = ground_of(index, &ground)
        cdef Change *change
        cdef uint64_t at
        for at in range(batch.count):
            change = &batch.changes[at]
            if at + AHEAD_BUCKET < batch.count:
                fetch_bucket(index, batch.changes[at + AHEAD_BUCKET].hash)
            if (change.fate == Fate.PLANNED and change.cell != NULL
                    and fate_of(&ground, change.hash, change.previous, &change.cell) != CURRENT):
                raise Reseed("an index segment is damaged")
        return 0

    cdef int fit(self, Index index, Batch batch, uint64_t *written, uint64_t *total) except -1:
        # Room in one segment for all records, and their number and size. The last that can fail.
        cdef Log log = self.log
        cdef Change *change
        cdef uint64_t at
        written[0] = total[0] = 0
        if batch.clears:
            written[0] = 1
            total[0] = record_size(CLEAR_PAYLOAD_SIZE, False)
        for at in range(batch.count):
            change = &batch.changes[at]
            if change.fate == Fate.PLANNED:
                written[0] += 1
                total[0] += record_size(payload_size_of(change), False)
        if written[0] == 0:
            return 0
        if written[0] > 1 and total[0] > BATCH_SIZE_MAX:
            log.refuse_batch(written[0], total[0])
        try:
            log.find_room(total[0], written[0], True)
        except OSError as error:
            if not removes(batch):
                raise
            self.draw_room(total[0], written[0], error)
        return self.enter_tail(index)

    cdef int publish_changes(self, Index index, Batch batch, uint64_t written, uint64_t total) except -1:
        cdef Log log = self.log
        cdef uint64_t seq, count, at
        cdef Change *change
        index.applied(&seq, &count)
        if batch.clears:
            at = record_size(CLEAR_PAYLOAD_SIZE, False)
            count = count_left(index, log.segments, log.seq, log.seq, self.tail_slot, log.end + at, at)
        if total <= HELD_BYTES_MAX:
            self.write_changes(log, index, batch, written)
        else:
            with nogil:
                self.write_changes(log, index, batch, written)
        log.bytes_pending += total
        log.writes_pending += written
        for at in range(batch.count):
            change = &batch.changes[at]
            if change.fate == Fate.PLANNED:
                if change.flags & FLAG_CREATES:
                    count += 1
                elif change.kind == KIND_DELETE:
                    count -= 1
        index.publish(log.seq, count)
        self.seen = log.seq
        if _fault.faults() != self.faults:
            self.check_faults()
        return 0

    cdef void write_changes(self, Log log, Index index, Batch batch, uint64_t written) noexcept nogil:
        cdef Change *change
        cdef Version version
        cdef uint64_t at, size, tag, place, left = written, below = log.seq
        cdef uint8_t flags
        memset(&version, 0, sizeof(version))
        if batch.clears:
            lay_out_clear(log.begin(CLEAR_PAYLOAD_SIZE), below)
            left -= 1
            log.seal_next(CLEAR_PAYLOAD_SIZE, 0 if written == 1 else FLAG_BATCH)
        place = log.end
        for at in range(batch.count):
            change = &batch.changes[at]
            if at + AHEAD_RECORD < batch.count:
                memory.prefetch(batch.changes[at + AHEAD_RECORD].value)
                memory.prefetch(batch.changes[at + AHEAD_RECORD].value + LINE)
            if change.fate != Fate.PLANNED:
                continue
            size = payload_size_of(change)
            version.kind = change.kind
            version.key = change.key
            version.key_size = change.key_size
            version.value = change.value
            version.value_size = change.value_size
            version.expires = change.expires
            lay_out(log.begin(size), change.flags, &version, change.previous_seq, change.previous)
            left -= 1
            # A batch of one record is a record.
            flags = 0 if written == 1 else FLAG_BATCH | (FLAG_BATCH_END if left == 0 else 0)
            log.seal_next(size, flags)
        log.publish()
        # Committed: what is not entered now is entered by the next writer. Readers see none of it until `applied` is published.
        if batch.clears:
            store_clear(index.state, below, below)
        for at in range(batch.count):
            change = &batch.changes[at]
            if at + AHEAD_RECORD < batch.count:
                fetch_bucket(index, batch.changes[at + AHEAD_RECORD].hash)
            if change.fate != Fate.PLANNED:
                continue
            if change.cell == NULL:
                change.cell = index.place(change.hash, &tag)
            else:
                tag = change.cell[0] >> ADDRESS_BITS << ADDRESS_BITS
            if change.superseded:
                index.add_dead(address_slot(change.previous), UNIT * change.superseded)
            size = record_size(payload_size_of(change), False)
            add_written(index, self.tail_slot, change.kind, change.flags, size)
            if change.expires:
                index.state.expiring = log.seq
            memory.store_release(change.cell, tag | make_address(self.tail_slot, place))
            place += size

    cdef int refuse_changed(self, Index index, Hit *hit, uint64_t stop, uint64_t cleared) except -1:
        # What was there when a transaction began is not there any more.
        cdef uint64_t seq = hit.seq
        if cleared <= hit.seq < index.state.cleared and not hit.deleted:
            seq = index.state.clear_seq
        elif hit.seq < stop:
            return 0
        raise Conflict(
            f"{hit.key[:min(hit.key_size, 40)]!r} was changed by record {seq}, after this transaction began; run it again", self._path)


cdef bint removes(Batch batch) noexcept:
    # Whether all its records do.
    cdef uint64_t at
    for at in range(batch.count):
        if batch.changes[at].fate == Fate.PLANNED and batch.changes[at].kind != KIND_DELETE:
            return False
    return True


cdef uint64_t size_at_most(Batch batch) noexcept:
    # Of all its records.
    cdef uint64_t at, size = 0
    for at in range(batch.count):
        size += record_size(
            value_offset(FLAG_PREVIOUS | FLAG_EXPIRY, batch.changes[at].key_size) + batch.changes[at].value_size, False)
    return size


cdef inline uint64_t payload_size_of(Change *change) noexcept nogil:
    return value_offset(change.flags, change.key_size) + change.value_size
