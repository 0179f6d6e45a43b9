"""Every way in which a file of a small store can be wrong, and what may come of opening it.

``python -m tests.unit.mmapkv.matrix --dir DIR`` tries them all; the test beside it tries some of each kind.
What may come of it: an error of a type that is documented, or the right data. Never a value that the key did
not have, never one missing that was durable, unless somebody says so; never a signal.
"""

from __future__ import annotations

import itertools
import logging
import random
import struct
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from xxhash import xxh3_64_intdigest

from mmapkv import KVStore, verify
from tests.unit.mmapio.processes import killed_after
from tests.unit.mmapkv.index_words import IndexWords
from tests.unit.mmaplog import damage, matrix
from tests.unit.mmaplog.matrix import COUNT, MANUAL, PER_SEGMENT, Case, Ground, Mode, is_typed, within

#: As for a log; and one whose writer was killed, with an index that no checksum protects.
STATES = ("known", "closed", "in use", "killed")
FILES = ("first", "middle", "tail", "MANIFEST", "CONTROL", "LOCK", "INDEX")

#: Three segments of four changes: a key, and its value, or None for a deletion.
CHANGES: tuple[tuple[bytes, bytes | None], ...] = (
    (b"apple", b"green"),
    (b"pear", b"yellow" * 3),
    (b"apple", b"red"),
    (b"fig", b""),
    (b"pear", None),
    (b"long key" * 5, b"x" * 99),
    (b"plum", b"blue"),
    (b"apple", None),
    (b"apple", b"brown"),
    (b"fig", b"purple"),
    (b"plum", b"blue again"),
    (b"nut", b"1"),
)
KEYS = (*sorted({key for key, _ in CHANGES}), b"never", b"appla")


def content_after(count: int) -> dict[bytes, bytes]:
    """What the store holds after so many changes."""
    made: dict[bytes, bytes] = {}
    for key, value in CHANGES[:count]:
        made.pop(key, None)
        if value is not None:
            made[key] = value
    return made


def ground(path: Path, state: str) -> Ground:
    """A small store, to be spoilt and put back again and again."""
    if state != "killed":
        made = Ground(path, state, _fill)
        with KVStore.open(path, "r") as kv:
            assert dict(kv.items()) == content_after(COUNT)
        made.restore()
        return made
    made = Ground(path, "known", _fill)

    def change() -> None:
        # Makes the index unclean, and leaves the content as it is.
        kv = KVStore.open(path, "w", flush_policy=MANUAL)
        kv._begin_writing(kv._open_parts()[1])

    killed_after(change)
    made.contents["INDEX"] = (path / "INDEX").read_bytes()
    made.contents["CONTROL"] = (path / "CONTROL").read_bytes()
    return made


def _fill(path: Path, part: int) -> None:
    with KVStore.open(path, flush_policy=MANUAL, segment_bytes=64 << 10) as kv:
        for key, value in CHANGES[part * PER_SEGMENT : (part + 1) * PER_SEGMENT]:
            if value is None:
                del kv[key]
            else:
                kv[key] = value
            kv.flush()


# What can be wrong.


def cases(spoilt: Ground, other: Ground, which: str, stride: int) -> Iterator[Case]:
    """Every case of one file; of lengths and bits, which are many, one in `stride`."""
    if which != "INDEX":
        yield from matrix.cases(spoilt, other, which, stride)
        return
    yield from matrix.replaced(spoilt, other, which)
    yield from matrix.truncated(spoilt, which, 97 * stride)
    words = IndexWords(spoilt.path)
    # With no checksum in force, an index can say what it likes of what it leads to; not what that is.
    believed = not words[4096 + 72]
    used = [at for at in range(0, len(words.data), 8) if words[at]]
    unused = random.Random(stride).sample(range(0, len(words.data), 8), 200)
    bits = [(at, bit) for at in (*used, *unused) for bit in range(64)]
    for at, bit in bits[::stride]:
        word = struct.pack("<Q", words[at] ^ 1 << bit)
        flipped = within("INDEX", damage.overwrite, word, at)
        yield Case(f"bit {bit} of the word at {at} flipped", flipped, forged=believed)
    edges = (0, 1, 4096, 1 << 31, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
    for at, value in itertools.islice(itertools.product(used, edges), 0, None, max(1, stride // 8)):
        put = within("INDEX", damage.overwrite, struct.pack("<Q", value), at)
        yield Case(f"the word at {at} is {value}", put, forged=believed)
    for form, at, value in (("<I", 8, 0), ("<I", 8, 2), ("<I", 20, 1), ("<I", 20, 1 << 31), ("<Q", 40, 7)):
        yield Case(
            f"the header's field at {at} is {value}", partial(_reseal_header, form, at, value), believed
        )


def _reseal_header(form: str, at: int, value: int, path: Path) -> None:
    data = bytearray((path / "INDEX").read_bytes()[:56])
    struct.pack_into(form, data, at, value)
    struct.pack_into("<Q", data, 48, xxh3_64_intdigest(bytes(data[:48])))
    damage.overwrite(path / "INDEX", bytes(data))


# What may come of it.


def violations(spoilt: Ground, case: Case, mode: Mode) -> Iterator[str]:
    """Open the damaged store, read all of it in every way, and say what should not have come of that."""
    least = matrix.truth(spoilt, case).least
    files = b"".join(each.read_bytes() for each in spoilt.path.iterdir() if _is_plain(each))
    allowed = [content_after(count) for count in range(least, COUNT + 1)]
    try:
        verify(spoilt.path)
    except Exception as error:
        if not is_typed(error):
            yield f"verify raised {error!r}"
    try:
        kv = KVStore.open(spoilt.path, mode, flush_policy=MANUAL)
    except Exception as error:
        if not is_typed(error):
            yield f"opening raised {error!r}"
        return
    with kv:
        complaints: list[Exception] = []
        found: dict[bytes, bytes | None] = {}
        for key in KEYS:
            try:
                found[key] = kv.get(key)
            except Exception as error:
                complaints.append(error)
        items: list[tuple[bytes, bytes]] = []
        length = -1
        try:
            for item in kv.items():
                items.append(item)
            length = len(kv)
        except Exception as error:
            complaints.append(error)
        yield from (f"reading raised {error!r}" for error in complaints if not is_typed(error))
        for key, value in itertools.chain(found.items(), items):
            if case.forged:
                if value is not None and value not in files:
                    yield f"{key!r} is {value!r}, which is nowhere"
            elif all(value != each.get(key) for each in allowed):
                yield f"{key!r} is {value!r}"
        if case.forged or complaints:
            return
        present = {key: value for key, value in found.items() if value is not None}
        if present not in allowed or list(present.items()) != sorted(items) or length != len(items):
            yield f"the store holds {present}, {len(items)} items, and has length {length}"
        if mode == "w":
            yield from _put_and_look_again(spoilt, kv, present)


def _put_and_look_again(spoilt: Ground, kv: KVStore, present: dict[bytes, bytes]) -> Iterator[str]:
    try:
        kv[b"new"] = b"put"
        kv.close()
        with KVStore.open(spoilt.path, "r") as again:
            if dict(again.items()) != {**present, b"new": b"put"}:
                yield "what was put is not there again, or something else is"
    except Exception as error:
        if not is_typed(error):
            yield f"putting raised {error!r}"


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


SUBJECT = matrix.Subject(ground, cases, violations)


def main() -> int:
    """Try everything, a process for each file and state."""
    logging.getLogger("mmapkv").setLevel(logging.ERROR)
    return matrix.main(SUBJECT, STATES, FILES)


if __name__ == "__main__":
    sys.exit(main())
