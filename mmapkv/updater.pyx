# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False, cdivision=True
"""Changes that depend on what is there, each in one step for every thread."""

import operator

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcmp

from mmapio._os cimport now_ns
from mmapio.bounds cimport as_long_long, told
from mmapkv.format cimport KIND_DELETE, KIND_PUT
from mmapkv.index cimport Hit
from mmapkv.reader cimport as_bytes
from mmapkv.writer cimport Content, Spot, StoreWriter, Version, begin_version, content_of, expiry_of, set_value

# What `compare_and_set` was not told to compare.
cdef object UNGIVEN = object()
cdef int64_t NUMBER_MAX = 0x7FFFFFFFFFFFFFFF
cdef int64_t NUMBER_MIN = -NUMBER_MAX - 1
# Room for more than this is made only once it is known that all of it fits.
cdef uint64_t LOOKED_UP_FIRST = 64 << 10
# Digits of the largest, and a sign.
cdef enum:
    NUMBER_SIZE_MAX = 20


cdef class StoreUpdater(StoreWriter):
    """The part of ``KVStore`` that reads and writes in one step. What each raises is what ``put`` raises, and more where it says so."""

    def add(self, key, value, /, *, ttl=None, bint durable=False):
        """Set the value of `key` only if it is absent: True then, False with nothing changed otherwise. Costs a put, and raises what that does."""
        return self.put_if(key, value, False, ttl, durable)

    def replace(self, key, value, /, *, ttl=None, bint durable=False):
        """Set the value of `key` only if it is present: True then, False with nothing changed otherwise. Costs a put, and raises what that does."""
        return self.put_if(key, value, True, ttl, durable)

    cdef bint put_if(self, key, value, bint present, ttl, bint durable) except -1:
        cdef Spot spot
        cdef Version version
        cdef Content content = content_of(value)
        key = as_bytes(key, "key")
        begin_version(&version, KIND_PUT, <bytes>key)
        set_value(&version, content, expiry_of(ttl))
        self.seek(&version, False, &spot)
        if spot.live != present:
            self.let_go()
            return False
        self.commit(&spot, &version, durable)
        return True

    def setdefault(self, key, default=None, /):
        """The value of `key`, which is set to `default` first when it is absent.

        Costs a look-up, and a put where it is absent. Raises TypeError when `default` is None then, and what those do.
        """
        cdef Spot spot
        cdef Version version
        cdef Content content
        value = self.get(key)
        if value is not None:
            return value
        if default is None:
            raise TypeError("a store cannot hold None; give setdefault a value")
        key = as_bytes(key, "key")
        content = content_of(default)
        begin_version(&version, KIND_PUT, <bytes>key)
        set_value(&version, content, 0)
        self.seek(&version, self.verify, &spot)
        if spot.live:
            # Put by another thread meanwhile.
            value = self.copy_held(spot.hit.value, spot.hit.value_size)
            self.let_go()
            return value
        value = self.copy_held(content.start, content.size)
        self.commit(&spot, &version, False)
        return value

    def append(self, key, data, /, *, bint durable=False):
        """Add `data` to the end of the value of `key`, or to nothing when it is absent; returns the length of all.

        A time to live stays as it was. Costs a copy of the whole value, for nothing is changed in place: for values that grow
        without end take a log. Raises CorruptionError when the value does not verify, and what put does.
        """
        cdef Spot spot
        cdef Version version
        cdef Content content = content_of(data)
        cdef uint64_t head_size
        key = as_bytes(key, "key")
        begin_version(&version, KIND_PUT, <bytes>key)
        set_value(&version, content, 0)
        if content.size > LOOKED_UP_FIRST:
            version.value_size = 0
        while True:
            self.seek(&version, self.verify, &spot)
            head_size = spot.hit.value_size if spot.live else 0
            version.expires = 0
            if spot.live:
                version.head = spot.hit.value
                version.expires = spot.hit.expires
            if version.head_size == head_size and version.value_size == content.size:
                break
            # So much was not asked for: the room must be for all.
            self.let_go()
            version.head_size = head_size
            version.value_size = content.size
        self.commit(&spot, &version, durable)
        return version.head_size + version.value_size

    def incr(self, key, by=1, /, *, initial=0, bint durable=False):
        """Add `by`, which may be negative, to the number that is the value of `key`, and return the sum; one that is absent counts as `initial`.

        The number is kept as text, decimal digits with perhaps a minus before them, as Redis and memcached keep theirs: so it reads as one
        for everybody, and a put can set it. It has 64 bits with its sign. A time to live stays as it was. Costs a put. Raises
        ValueError when the value is not such a number, OverflowError when the sum, `by` or `initial` is none.
        """
        cdef Spot spot
        cdef Version version
        cdef char text[NUMBER_SIZE_MAX]
        cdef int64_t step = number_of(by, "by"), start = number_of(initial, "initial"), number
        cdef bint is_number
        key = as_bytes(key, "key")
        begin_version(&version, KIND_PUT, <bytes>key)
        # Room for the longest.
        version.value_size = NUMBER_SIZE_MAX
        self.seek(&version, self.verify, &spot)
        number = start
        if spot.live:
            is_number = read_number(spot.hit.value, spot.hit.value_size, &number)
            if not is_number:
                self.let_go()
                raise no_number(key)
            version.expires = spot.hit.expires
        if is_too_much(number, step):
            self.let_go()
            raise too_much(key, number, step)
        number += step
        version.value_size = write_number(number, text)
        version.value = text + NUMBER_SIZE_MAX - version.value_size
        self.commit(&spot, &version, durable)
        return number

    def compare_and_set(self, key, value, /, *, expected=UNGIVEN, version=UNGIVEN, ttl=None, bint durable=False):
        """Set the value of `key` only if it still is `expected`, or its version still is `version`: True then, else False with nothing changed.

        For `expected` and `version` alike None means that the key is absent; a version is what `get_versioned` gives, and changes with every
        write. A `value` of None deletes the key. Costs a put, and reading what is compared. Raises TypeError unless exactly one
        of the two is given, ValueError for a `version` that none can be.

        >>> import tempfile; from mmapkv import KVStore
        >>> with KVStore.open(tempfile.mkdtemp()) as kv:
        ...     kv["leader"] = "a"
        ...     kv.compare_and_set("leader", "b", expected="a"), kv.compare_and_set("leader", "c", expected="a"), kv["leader"]
        (True, False, b'b')
        """
        cdef Spot spot
        cdef Version made
        cdef Content content = None, wanted = None
        cdef bint by_value = expected is not UNGIVEN, absent, holds
        cdef uint64_t number = 0
        if by_value == (version is not UNGIVEN):
            raise TypeError("compare_and_set takes either expected= or version=")
        absent = (expected if by_value else version) is None
        if by_value and not absent:
            wanted = content_of(expected)
        elif not absent:
            number = version_of(version)
        key = as_bytes(key, "key")
        begin_version(&made, KIND_DELETE if value is None else KIND_PUT, <bytes>key)
        if value is not None:
            content = content_of(value)
            set_value(&made, content, expiry_of(ttl))
        self.seek(&made, self.verify and by_value, &spot)
        if absent or not spot.live:
            holds = absent and not spot.live
        elif by_value:
            holds = spot.hit.value_size == wanted.size and memcmp(spot.hit.value, wanted.start, wanted.size) == 0
        else:
            holds = spot.hit.seq == number
        if not holds or made.kind == KIND_DELETE and not spot.live:
            self.let_go()
            return holds
        self.commit(&spot, &made, durable)
        return True

    def touch(self, key, /, ttl=None, *, bint durable=False):
        """Let `key` live for `ttl` seconds (or a timedelta) from now, for ever with None: True, or False when it is absent.

        Costs a put of its value, and raises what that does.
        """
        cdef Spot spot
        cdef Version version
        cdef uint64_t expires = expiry_of(ttl)
        key = as_bytes(key, "key")
        begin_version(&version, KIND_PUT, <bytes>key)
        while True:
            self.seek(&version, self.verify, &spot)
            if not spot.live:
                self.let_go()
                return False
            version.value = spot.hit.value
            if version.value_size == spot.hit.value_size:
                break
            # So much was not asked for: the room must be for all.
            self.let_go()
            version.value_size = spot.hit.value_size
        version.expires = expires
        self.commit(&spot, &version, durable)
        return True

    def ttl(self, key, /):
        """How many seconds `key` has still to live, None if it has no end. KeyError when it is absent. Costs a look-up."""
        cdef Hit hit
        cdef uint64_t now
        key = as_bytes(key, "key")
        if not self.look(key, len(key), &hit):
            raise KeyError(key)
        if hit.expires == 0:
            return None
        now = now_ns()
        return (hit.expires - now) / 1e9 if hit.expires > now else 0.0

    def _drop_expired(self, key, /):
        # Whether there was something to delete. Between its being found and this, another thread may have put it anew.
        cdef Spot spot
        cdef Version version
        begin_version(&version, KIND_DELETE, <bytes?>key)
        self.seek(&version, False, &spot)
        if spot.live or not spot.known or spot.hit.deleted:
            self.let_go()
            return False
        self.commit(&spot, &version, False)
        return True


def increased(bytes key not None, bytes value, by, initial):
    """The number that ``incr`` makes of `value`, which is None for a `key` that is absent. ValueError and OverflowError as there."""
    cdef int64_t step = number_of(by, "by"), number = number_of(initial, "initial")
    if value is not None and not read_number(value, len(value), &number):
        raise no_number(key)
    if is_too_much(number, step):
        raise too_much(key, number, step)
    return number + step


cdef object integer_of(given, str what):
    try:
        return operator.index(given)
    except TypeError:
        raise TypeError(f"{what} is an integer, not {type(given).__name__}") from None


cdef int64_t number_of(given, str what) except? -1:
    cdef int overflow = 0
    number = integer_of(given, what)
    cdef int64_t small = as_long_long(number, &overflow)
    if overflow:
        raise OverflowError(f"{what}={told(number)} is not a number of 64 bits with its sign, {NUMBER_MIN} to {NUMBER_MAX}")
    return small


cdef uint64_t version_of(given) except? 0:
    cdef int overflow = 0
    number = integer_of(given, "version")
    cdef int64_t small = as_long_long(number, &overflow)
    if overflow or small < 0:
        raise ValueError(f"version={told(number)} is none that get_versioned gives, which are 0 to {NUMBER_MAX}, or None for an absent key")
    return small


cdef inline bint is_too_much(int64_t number, int64_t step) noexcept:
    return number > NUMBER_MAX - step if step > 0 else number < NUMBER_MIN - step


cdef object no_number(bytes key):
    return ValueError(f"the value of {key[:40]!r} is not a decimal number of 64 bits, which incr could add to")


cdef object too_much(bytes key, number, step):
    return OverflowError(f"{number} and {step} together are more than 64 bits hold; the value of {key[:40]!r} stays")


cdef bint read_number(const char *text, uint64_t size, int64_t *number) noexcept:
    # Downwards, for there is one number more below zero than above.
    cdef bint negative = size > 0 and text[0] == c"-"
    cdef uint64_t at = 1 if negative else 0
    cdef int64_t value = 0, digit
    if size == at or size > NUMBER_SIZE_MAX:
        return False
    for at in range(at, size):
        digit = text[at] - c"0"
        if not 0 <= digit <= 9 or value < (NUMBER_MIN + digit) // 10:
            return False
        value = value * 10 - digit
    if not negative and value == NUMBER_MIN:
        return False
    number[0] = value if negative else -value
    return True


cdef uint64_t write_number(int64_t number, char *text) noexcept:
    # To the end of NUMBER_SIZE_MAX bytes; how many.
    cdef uint64_t at = NUMBER_SIZE_MAX, rest = -<uint64_t>number if number < 0 else <uint64_t>number
    while True:
        at -= 1
        text[at] = c"0" + rest % 10
        rest //= 10
        if rest == 0:
            break
    if number < 0:
        at -= 1
        text[at] = c"-"
    return NUMBER_SIZE_MAX - at
