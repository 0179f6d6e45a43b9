"""The keys and values that every rival is given."""

from __future__ import annotations

import enum
import random
import struct
from collections.abc import Callable, Sequence
from operator import itemgetter

KEY_SIZE = 16
VALUE_SIZE = 100

CHECKED_KEYS_MAX = 10_000


class WrongAnswer(Exception):
    """A rival gave something else than what was stored in it; its times mean nothing."""


class Layout(enum.Enum):
    """How the objects that a loop walks lie in memory.

    Scattered objects lie in another order than they are used in, so each costs a cache miss, which no rival
    can do anything about. Sequential ones lie in the order they are used in: the processor prefetches them.
    """

    MIXED = "mixed"  # look-up keys scattered, pairs to store sequential, as if just read or computed
    SCATTERED = "scattered"
    SEQUENTIAL = "sequential"


class Order:
    """An order to hand pairs out in. `indices` are at least two, each pair's once."""

    def __init__(self, indices: Sequence[int], layout: Layout) -> None:
        self.first = indices[0]
        self.indices = indices
        self._pick = itemgetter(*indices)
        self._layout = layout

    def to_look_up(self, keys: Sequence[bytes]) -> Sequence[bytes]:
        """Return new objects equal to the keys, in this order. Takes about 0.3 us a key."""
        return self._new_objects(keys, sequential=self._layout is Layout.SEQUENTIAL)

    def to_store(self, items: Sequence[bytes]) -> Sequence[bytes]:
        """Return new objects equal to the keys or values, in this order. Takes about 0.3 to 0.6 us each."""
        return self._new_objects(items, sequential=self._layout is not Layout.SCATTERED)

    def first_to_store(self, items: Sequence[bytes], count: int) -> Sequence[bytes]:
        """Return new objects equal to the first `count` in this order, or to all; sequential."""
        return fresh_copies([items[index] for index in self.indices[:count]])

    def _new_objects(self, items: Sequence[bytes], *, sequential: bool) -> Sequence[bytes]:
        if sequential:
            return fresh_copies(self._pick(items))
        picked: tuple[bytes, ...] = self._pick(fresh_copies(items))
        return picked


class Dataset:
    """`count` pairs of pseudo-random bytes, all distinct, and as many keys that are not among them.

    All come from `seed`, so two runs store the same bytes. Takes about 4 us a pair.
    """

    keys: list[bytes]
    absent: list[bytes]
    values: list[bytes]
    replacements: list[bytes]
    """What an overwrite writes: the value of the next key, so every key gets a new one of the same size."""

    def __init__(self, count: int, seed: int, layout: Layout = Layout.MIXED) -> None:
        rng = random.Random(seed)
        names = list({rng.randbytes(KEY_SIZE): None for _ in range(2 * count)})
        if len(names) != 2 * count:
            raise ValueError(f"seed {seed} drew a key twice among {2 * count:,}; choose another seed")
        values = [rng.randbytes(VALUE_SIZE) for _ in range(count)]
        if len(set(values)) != count:
            raise ValueError(f"seed {seed} drew a value twice among {count:,}; choose another seed")
        self._set(rng, layout, names[:count], names[count:], values)

    def _set(
        self, rng: random.Random, layout: Layout, keys: list[bytes], absent: list[bytes], values: list[bytes]
    ) -> None:
        self.count = len(keys)
        self.layout = layout
        self.keys = keys
        self.absent = absent
        self.values = values
        self.replacements = values[1:] + values[:1]
        self._checked = rng.sample(range(self.count), min(self.count, CHECKED_KEYS_MAX))
        self._rng = rng

    def head(self, count: int | None) -> Dataset:
        """Return the first `count` pairs and as many absent keys, or all of this where it has no more."""
        if count is None or count >= self.count:
            return self
        part = Dataset.__new__(Dataset)
        part._set(self._rng, self.layout, self.keys[:count], self.absent[:count], self.values[:count])
        return part

    @property
    def bytes_stored(self) -> int:
        """Key and value bytes of all pairs."""
        return self.count * (KEY_SIZE + VALUE_SIZE)

    def new_order(self) -> Order:
        """Return a random order of the pairs."""
        indices = list(range(self.count))
        self._rng.shuffle(indices)
        return Order(indices, self.layout)

    def sample(self) -> list[tuple[bytes, bytes]]:
        """Return a sample of the pairs; the keys are new objects."""
        keys = fresh_copies([self.keys[index] for index in self._checked])
        return list(zip(keys, [self.values[index] for index in self._checked], strict=True))

    def check(self, who: str, get: Callable[[bytes], object], expected: Sequence[bytes] | None) -> None:
        """Look up a sample of the keys and as many absent ones; `expected=None` means that none is stored.

        Raises `WrongAnswer`, naming `who` and the key, when an answer differs.
        """
        for index in self._checked:
            wanted = None if expected is None else expected[index]
            answers = ((self.keys[index], wanted), (self.absent[index], None))
            for key, value in answers:
                answer = get(fresh_copies([key])[0])
                if answer != value:
                    raise WrongAnswer(f"{who}: key {key.hex()} gave {answer!r}, expected {value!r}")


def fresh_copies(items: Sequence[bytes]) -> list[bytes]:
    """Return new objects equal to the items, which must all have one size.

    A bytes object remembers its hash, so a dict answers a key object that it has seen before, or that
    any dict has seen, sooner than one that has just come off a socket.
    """
    return [copy for (copy,) in struct.iter_unpack(f"{len(items[0])}s", b"".join(items))]
