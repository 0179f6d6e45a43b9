"""The index as it grows and as keys collide: long chains, splits, fresh tags, a new seed."""

from __future__ import annotations

import mmap
import random
import struct
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from mmapio import FlushPolicy
from mmapkv import KVStore
from tests.unit.mmapio.processes import in_child
from tests.unit.mmapkv.colliding_keys import HashInverter, seed_of
from tests.unit.mmapkv.index_words import SEGMENTS
from tests.unit.mmapkv.stores import agreeing, contents, opened

NEVER = FlushPolicy.NEVER
CHAIN_KEYS = 63


def large(path: Path, mode: str = "c") -> KVStore:
    """A store with segments of the usual size."""
    return KVStore.open(path, mode, flush_policy=NEVER)


def inverter(path: Path) -> HashInverter:
    """For the keys of a store that is open."""
    return HashInverter(seed_of(path))


def tag_bases(path: Path) -> set[int]:
    """Where the tags of each index segment begin, read from the file."""
    raw = (path / "INDEX").read_bytes()
    (root,) = struct.unpack_from("<Q", raw, 4096 + 64)
    words = struct.unpack_from(f"<{1 << (root & 0x7F)}Q", raw, (root >> 8) * 4096)
    return {word & 63 for word in words}


def test_the_inverter_inverts() -> None:
    """The control of this file: a key of a wanted hash really has it, under any seed."""
    import xxhash

    generator = random.Random(1)
    for _ in range(20):
        seed, wanted = generator.getrandbits(64), generator.getrandbits(64)
        assert xxhash.xxh3_64_intdigest(HashInverter(seed).key(wanted), seed) == wanted


def test_growing_to_many_index_segments(tmp_path: Path) -> None:
    """Every key is found after each doubling, here and by who opens the store later, and after a rebuild."""
    path = tmp_path / "kv"
    count = 150_000
    key = struct.Struct("<Q")
    with large(path) as kv, large(path, "r") as reader:
        depths = set()
        for number in range(count):
            kv[key.pack(number * 0x9E3779B97F4A7C15 & (1 << 64) - 1)] = b"%d" % number
            if number & number - 1 == 0:
                depths.add(kv.stats()["index_depth"])
                assert len(kv) == len(reader) == number + 1
        for number in range(0, count, 3):
            del kv[key.pack(number * 0x9E3779B97F4A7C15 & (1 << 64) - 1)]
        for number in range(0, count, 9):
            kv[key.pack(number * 0x9E3779B97F4A7C15 & (1 << 64) - 1)] = b"%d" % number
        expected = [None if number % 3 == 0 and number % 9 else b"%d" % number for number in range(count)]
        keys = [key.pack(number * 0x9E3779B97F4A7C15 & (1 << 64) - 1) for number in range(count)]
        present = sum(value is not None for value in expected)
        figures = kv.stats()
        assert figures["index_depth"] >= 6
        assert figures["index_segments"] >= 1 << 5
        assert len(depths) >= 3
        for handle in (kv, reader):
            assert [handle.get(each) for each in keys] == expected
            assert len(handle) == present
            assert all(handle.get(b"absent %d" % number) is None for number in range(20_000))
    with large(path, "r") as kv:
        assert kv.stats()["index_depth"] == figures["index_depth"]
        assert [kv.get(each) for each in keys] == expected
    (path / "INDEX").unlink()
    with large(path, "w") as kv:
        assert len(kv) == present
        assert [kv.get(each) for each in keys] == expected
        assert sum(1 for _ in kv) == present


def splits_of_each_put(path: Path, kv: KVStore, keys: Iterable[bytes]) -> Counter[int]:
    """How many puts of these keys split an index segment so many times; the file says."""
    found: Counter[int] = Counter()
    with (
        (path / "INDEX").open("rb") as file,
        mmap.mmap(file.fileno(), 8192, access=mmap.ACCESS_READ) as index,
    ):
        (before,) = struct.unpack_from("<Q", index, SEGMENTS)
        for key in keys:
            kv[key] = b""
            (after,) = struct.unpack_from("<Q", index, SEGMENTS)
            found[after - before] += 1
            before = after
    return found


@pytest.mark.parametrize("kind", ["counted", "random", "alike"])
def test_no_put_splits_more_than_one_segment(tmp_path: Path, kind: str) -> None:
    """The work of growing is spread over the puts that make it grow."""
    draw = random.Random(kind)
    count = 150_000
    keys = {
        "counted": lambda number: b"%016d" % number,
        "random": lambda number: draw.randbytes(16),
        "alike": lambda number: b"user:" + bytes(100) + number.to_bytes(8, "big"),
    }[kind]
    with large(tmp_path / "kv") as kv:
        found = splits_of_each_put(tmp_path / "kv", kv, map(keys, range(count)))
        assert kv.stats()["index_segments"] > 30
    assert set(found) == {0, 1}
    assert found[1] < count / 2000


def test_keys_that_collide_are_seen_to_split_more(tmp_path: Path) -> None:
    """The control: who knows the seed can have a put split more than one."""
    with large(tmp_path / "kv") as kv:
        make = inverter(tmp_path / "kv")
        keys = [make.key(number << 46) for number in range(CHAIN_KEYS + 1)]
        assert max(splits_of_each_put(tmp_path / "kv", kv, keys)) > 1


@pytest.mark.parametrize("count", [7, 8, 14, 15, 62, 63, 64, 65, 127, 200])
def test_keys_of_one_bucket(tmp_path: Path, count: int) -> None:
    """A line of seven, a chain of lines, a chain that is full: a split parts them."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        keys = list(inverter(path).keys(0, 0, 17, count))
        expected = {key: b"%d" % number for number, key in enumerate(keys)}
        for number, key in enumerate(keys):
            kv[key] = b"%d" % number
            assert kv[keys[number // 2]] == b"%d" % (number // 2)
        assert agreeing(kv) == expected
        assert (kv.stats()["index_segments"] > 1) == (count > CHAIN_KEYS)
        for key in keys[::2]:
            del kv[key]
            del expected[key]
        assert agreeing(kv) == expected
        for key in keys[::4]:
            kv[key] = expected[key] = b"back"
        assert dict(kv) == expected
    assert contents(path) == expected
    (path / "INDEX").unlink()
    assert contents(path, "w") == expected


@pytest.mark.parametrize("count", [2, 7, 8, CHAIN_KEYS])
def test_keys_that_only_a_comparison_tells_apart(tmp_path: Path, count: int) -> None:
    """Same bucket, same tag: only the record says which key it is of. One that was never put is absent."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        twins = list(inverter(path).twins(0x5A5A5A, 24, 300, count + 20))
        keys, absent = twins[:count], twins[count:]
        for number, key in enumerate(keys):
            assert key not in kv
            kv[key] = b"%d" % number
        assert kv.stats()["index_segments"] == 1
        assert [kv[key] for key in keys] == [b"%d" % number for number in range(count)]
        assert not any(key in kv for key in absent)
        kv[keys[0]] = b"overwritten"
        del kv[keys[1]]
        assert agreeing(kv) == {
            **{key: b"%d" % number for number, key in enumerate(keys) if number > 1},
            keys[0]: b"overwritten",
        }


def test_more_chains_than_spare_lines(tmp_path: Path) -> None:
    """A segment has 63 lines for chains; when they are used up it splits, though no chain is full."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        found = inverter(path)
        keys = [key for bucket in range(70) for key in found.keys(0, 0, bucket, 9)]
        for number, key in enumerate(keys):
            kv[key] = b"%d" % number
        assert kv.stats()["index_segments"] > 1
        assert agreeing(kv) == {key: b"%d" % number for number, key in enumerate(keys)}


def test_a_deep_path_takes_its_tags_afresh(tmp_path: Path) -> None:
    """A tag has bits for sixteen splits; then it is taken anew from the records. A wrong bit loses keys."""
    path = tmp_path / "kv"
    with large(path) as kv:
        found = inverter(path)
        # Enough index segments elsewhere that a directory of 2**17 words is no sign of an attack.
        plain = {}
        while kv.stats()["index_segments"] < 64:
            for number in range(len(plain), len(plain) + 5000):
                kv[b"%d" % number] = plain[b"%d" % number] = b"%d" % number
        deep = list(found.keys(0b1011_0111_0001_1010, 16, 77, CHAIN_KEYS + 1))
        for number, key in enumerate(deep):
            kv[key] = b"deep %d" % number
        assert kv.stats()["index_depth"] == 17
        assert tag_bases(path) == {0, 16}
        assert seed_of(path) == found.seed
        others = list(found.keys(0b1011_0111_0001_1010, 16, 78, 40))
        for key in others:
            assert key not in kv
            kv[key] = b"other"
        for key in deep[::2]:
            kv[key] = b"again"
        assert [kv[key] for key in deep[:4]] == [b"again", b"deep 1", b"again", b"deep 3"]
        assert {kv[key] for key in others} == {b"other"}
        assert len(kv) == len(plain) + len(deep) + len(others)
        assert all(kv[key] == value for key, value in plain.items())
        assert in_child(lambda: [large(path, "r").get(key) for key in deep[:2]]) == [b"again", b"deep 1"]


def test_keys_that_no_split_parts_get_a_new_seed(tmp_path: Path) -> None:
    """Who knows the seed can make any number of them; the store must neither hang nor fill the disk."""
    path = tmp_path / "kv"
    expected = {b"%d" % number: b"plain" for number in range(1000)}
    with opened(path) as kv, opened(path, "r") as reader:
        kv.update(expected)
        assert agreeing(reader) == expected
        before = seed_of(path)
        twins = list(inverter(path).twins(0x123456, 24, 5, CHAIN_KEYS + 40))
        for number, key in enumerate(twins):
            kv[key] = expected[key] = b"twin %d" % number
            assert reader[key] == kv[key]
        assert seed_of(path) != before
        assert agreeing(kv) == expected
        assert agreeing(reader) == expected
        assert kv.stats()["index_depth"] < 10
        assert not (path / "INDEX.tmp").exists()
        kv[b"more"] = expected[b"more"] = b"1"
        del kv[twins[0]], expected[twins[0]]
        assert agreeing(reader) == expected
    assert contents(path) == expected
    assert contents(path, "w") == expected


def test_a_new_seed_keeps_the_choice_to_verify(tmp_path: Path) -> None:
    """The handle goes on as it was opened."""
    path = tmp_path / "kv"
    with KVStore.open(path, flush_policy=NEVER, verify=False) as kv:
        before = seed_of(path)
        for key in inverter(path).twins(1, 24, 5, CHAIN_KEYS + 1):
            kv[key] = b"12345678"
        assert seed_of(path) != before
        segment = next(path.glob("*.seg"))
        raw = segment.read_bytes()
        with segment.open("r+b") as file:
            file.seek(raw.index(b"12345678"))
            file.write(b"X")
        assert b"X2345678" in {value for value in map(kv.get, list(inverter_keys(raw))) if value}


def inverter_keys(raw: bytes) -> set[bytes]:
    """Every eight bytes of a segment that precede a value, as keys."""
    found, at = set(), raw.find(b"12345678")
    while at >= 0:
        found.add(raw[at - 8 : at])
        at = raw.find(b"12345678", at + 1)
    return found


def test_iterating_across_splits_and_a_new_seed(tmp_path: Path) -> None:
    """The walk that began before sees the store of its beginning."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        expected = {b"%d" % number: b"%d" % number for number in range(300)}
        kv.update(expected)
        walk = iter(kv.items())
        found = [next(walk) for _ in range(100)]
        twins = list(inverter(path).twins(0x42, 24, 9, CHAIN_KEYS + 1))
        before = seed_of(path)
        for key in twins:
            kv[key] = b"x"
        for key in list(expected)[::3]:
            kv[key] = b"changed"
        assert seed_of(path) != before
        assert dict([*found, *walk]) == expected
