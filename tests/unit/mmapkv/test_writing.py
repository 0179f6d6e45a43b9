"""Records that are made before all is known of their keys, and the pages of the index."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from mmapkv import KVStore
from tests.unit.mmapkv.colliding_keys import HashInverter, seed_of
from tests.unit.mmapkv.stores import NEVER, agreeing, contents, opened

HUGE = 2 << 20
# A record of 1,024 bytes is the largest that is made ahead.
SIZES = (0, 1, 7, 8, 9, 100, 900, *range(950, 1000), 1024, 5000)


def test_a_new_key_after_a_known_one_and_back(tmp_path: Path) -> None:
    """A record is laid out for a key like the last: what is wrong about that is put right."""
    path = tmp_path / "kv"
    expected: dict[bytes, bytes] = {}
    with opened(path) as kv:
        kv["known"] = "before"
        for number, size in enumerate(SIZES):
            for known, key_size in itertools.product((True, False), (5, 8, 13)):
                value = b"%c" % (number + 1) * size
                key = b"k" * key_size if known else b"%d" % number + b"n" * (known + key_size)
                kv[key] = expected[key] = value
                assert kv[key] == value
        del kv["known"]
        kv["known"] = expected[b"known"] = b"again"
        assert agreeing(kv) == expected
        assert not kv.verify().damages
    assert contents(path) == expected


def test_a_deletion_of_what_is_not_there_writes_nothing(tmp_path: Path) -> None:
    """Its record was made, too."""
    with opened(tmp_path / "kv") as kv:
        kv["a"] = "1"
        del kv["a"]
        before = kv.stats()["committed"]
        for key in ("a", "never"):
            with pytest.raises(KeyError):
                del kv[key]
        assert kv.stats()["committed"] == before
        kv["b"] = "2"
        assert agreeing(kv) == {b"b": b"2"}
        assert not kv.verify().damages


def test_a_time_to_live_with_and_without_a_version_before(tmp_path: Path) -> None:
    """It stands right before the key, wherever that is."""
    with opened(tmp_path / "kv") as kv:
        for key in ("new", "new", "other"):
            kv.put(key, "value", ttl=1000)
            left = kv.ttl(key)
            assert left is not None
            assert 900 < left <= 1000
        kv["new"] = "for ever"
        assert kv.ttl("new") is None
        assert not kv.verify().damages


def test_what_looks_like_the_key_and_is_another(tmp_path: Path) -> None:
    """The entry that is fetched ahead is only the first that may be the key's."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        keys = list(HashInverter(seed_of(path)).twins(0x5A5A5A, 24, 300, 40))
        expected = {}
        for number, key in enumerate(keys * 2):
            kv[key] = expected[key] = b"%d" % number
        assert agreeing(kv) == expected
        assert not kv.verify().damages


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps")
def test_an_index_grows_by_whole_huge_pages(tmp_path: Path) -> None:
    """Asked for from the second to the thirty-second: VM_HUGEPAGE, `hg`."""
    path = tmp_path / "kv"
    with KVStore.open(path, flush_policy=NEVER) as kv:
        kv.put_many((b"%d" % number, b"") for number in range(150_000))
        assert kv.stats()["index_bytes"] > HUGE
        assert kv.stats()["index_allocated"] % HUGE == 0
        start = name = ""
        asked = []
        for line in Path("/proc/self/smaps").read_text().splitlines():
            words = line.split()
            if not words[0].endswith(":"):
                start, name = words[0], words[-1]
            elif words[0] == "VmFlags:" and name == str(path / "INDEX"):
                first, end = (int(each, 16) for each in start.split("-"))
                asked.append((end - first, "hg" in words))
        assert asked[:2] == [(HUGE, False), ((64 << 20) - HUGE, True)]
        assert not any(huge for _, huge in asked[2:])
