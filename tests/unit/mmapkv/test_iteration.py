"""Iterating over a store as it was when the iteration began, whatever happens to it meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmapio import Closed
from mmapkv import CorruptionError, KVStore
from mmapkv.index import Index
from tests.unit.mmapkv.stores import agreeing, opened
from tests.unit.mmaplog.damage import overwrite as damage
from tests.unit.mmaplog.segment_file import SegmentFile, segment_paths

START = {b"%d" % number: b"value %d" % number for number in range(200)}


@pytest.fixture
def kv(tmp_path: Path) -> Iterator[KVStore]:
    """A store with a history: each key was written, some overwritten, some deleted, some brought back."""
    with opened(tmp_path / "kv") as made:
        for key in START:
            made[key] = b"before"
        for number in range(0, 300, 3):
            made.pop(b"%d" % number, None)
        for key, value in START.items():
            made[key] = value
        made[b"deleted"] = b"x"
        del made[b"deleted"]
        yield made


def overwrite(kv: KVStore, key: bytes) -> None:
    """Change every value."""
    kv[key] = b"changed"


CHANGES: dict[str, Callable[[KVStore, bytes], object]] = {
    "overwriting": overwrite,
    "overwriting twice": lambda kv, key: (overwrite(kv, key), kv.put(key, b"again")),
    "deleting": lambda kv, key: kv.pop(key, None),
    "deleting another": lambda kv, key: kv.pop(b"%d" % (199 - int(key)), None),
    "deleting and bringing back": lambda kv, key: (kv.pop(key, None), kv.put(key, b"back")),
    "adding": lambda kv, key: kv.put(b"new " + key, b"new"),
    "adding many": lambda kv, key: kv.update({b"%s %d" % (key, number): b"new" * 10 for number in range(30)}),
    "clearing": lambda kv, key: kv.clear(),
    "popitem": lambda kv, key: kv.popitem() if kv else None,
    "flushing": lambda kv, key: kv.flush(),
    "nothing": lambda kv, key: None,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_changes_during_an_iteration_do_not_show_in_it(
    kv: KVStore, change: Callable[[KVStore, bytes], object]
) -> None:
    """Nothing is skipped, nothing comes twice, no value is of another time."""
    found = {}
    for key, value in kv.items():
        assert key not in found
        found[key] = value
        change(kv, key)
    assert found == START
    agreeing(kv)


def test_iterations_of_different_times_are_independent(kv: KVStore) -> None:
    """Each sees the store of its own beginning."""
    one = iter(kv.items())
    kv[b"0"] = b"second"
    two = iter(kv.items())
    del kv[b"1"]
    three = iter(kv.items())
    kv.clear()
    assert dict(one) == START
    assert dict(two) == {**START, b"0": b"second"}
    assert dict(three) == {key: value for key, value in {**START, b"0": b"second"}.items() if key != b"1"}
    assert dict(kv) == {}


def test_the_order_is_that_of_the_last_change(kv: KVStore) -> None:
    """For all three views, and it survives the index being built anew."""
    order = list(START)
    assert list(kv) == order
    kv[b"5"] = b"changed"
    del kv[b"7"]
    kv[b"7"] = b"back"
    order = [key for key in order if key not in (b"5", b"7")] + [b"5", b"7"]
    assert list(kv) == list(kv.keys()) == [key for key, _ in kv.items()] == order
    assert list(kv.values()) == [kv[key] for key in order]


def test_an_exhausted_iteration_stays_exhausted(kv: KVStore) -> None:
    """Even when there is more now."""
    walk = iter(kv)
    assert len(list(walk)) == 200
    kv[b"more"] = b"x"
    assert list(walk) == []
    with pytest.raises(StopIteration):
        next(walk)


@pytest.mark.parametrize("view", ["keys", "values", "items"])
def test_a_view_is_of_the_store_and_not_of_a_moment(kv: KVStore, view: str) -> None:
    """As with dict; only an iteration over it has a moment."""
    made = getattr(kv, view)()
    assert len(made) == 200
    kv[b"more"] = b"x"
    assert len(made) == len(list(made)) == 201


def test_membership_in_views(kv: KVStore) -> None:
    """Keys and items are looked up, values searched for."""
    assert b"5" in kv
    assert b"missing" not in kv
    assert (b"5", b"value 5") in kv.items()
    assert (b"5", b"value 6") not in kv.items()
    assert b"value 150" in kv.values()
    assert b"before" not in kv.values()
    assert kv.keys() & {b"5", b"missing"} == {b"5"}


def test_closing_ends_an_iteration_with_an_error(kv: KVStore) -> None:
    """Going on would read what is not mapped; ending in silence would look like the end of the store."""
    walks = [iter(kv), iter(kv.values()), iter(kv.items())]
    for walk in walks:
        next(walk)
    kv.close()
    for walk in walks:
        with pytest.raises(Closed):
            next(walk)


def test_iterating_over_an_empty_store(tmp_path: Path) -> None:
    """Never filled, or emptied."""
    with opened(tmp_path / "kv") as kv:
        assert list(kv) == list(kv.values()) == list(kv.items()) == []
        kv[b"a"] = b"1"
        kv.clear()
        assert list(kv) == list(kv.values()) == list(kv.items()) == []


def test_an_iteration_that_is_dropped_halfway_leaves_nothing(kv: KVStore) -> None:
    """A `break` is the usual end of a search."""
    for _ in range(50):
        for key in kv:
            if key == b"3":
                break
    kv[b"0"] = b"x"
    assert len(list(kv)) == 200


@pytest.mark.parametrize("changed", [b"again", None], ids=["overwritten", "deleted"])
def test_a_damaged_number_of_the_newest_version_does_not_bring_back_an_older_one(
    tmp_path: Path, changed: bytes | None
) -> None:
    """The walk took the record that the index led to for one that came after it had begun, and went on to
    the version before, which it gave out.
    """
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv[b"key"] = b"before"
        if changed is None:
            del kv[b"key"]
        else:
            kv[b"key"] = changed
    segment = SegmentFile(segment_paths(path)[0])
    damage(segment.path, b"\x40", list(segment.records())[1].offset + 9)
    given = []
    with opened(path, "r") as kv, pytest.raises(CorruptionError):
        for item in kv.items():
            given.append(item)
    assert given == []


def test_what_precedes_damage_comes_before_the_error(tmp_path: Path) -> None:
    """Records are read ahead, but none that verifies is withheld; going on meets the same damage again."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv.update({b"%d" % number: b"value %d" % number for number in range(100)})
    (segment,) = segment_paths(path)
    damage(segment, b"V", segment.read_bytes().index(b"value 77"))
    with opened(path, "r") as kv:
        walk = iter(kv)
        for number in range(77):
            assert next(walk) == b"%d" % number
        for _ in range(2):
            with pytest.raises(CorruptionError, match="record 77"):
                next(walk)


def test_a_walk_over_many_segments_in_which_most_is_old(tmp_path: Path) -> None:
    """What is read ahead may lie in several segments, one of them perhaps without a living record."""
    with opened(tmp_path / "kv") as kv:
        for turn in range(8):
            for number in range(60):
                kv[b"%d" % number] = b"%d " % turn * 600
        kv[b"3"] = b"last"
        assert kv.stats()["segments"] > 8
        expected = {b"%d" % number: b"7 " * 600 for number in range(60) if number != 3} | {b"3": b"last"}
        assert list(kv.items()) == list(expected.items())
        with opened(tmp_path / "kv", "r") as reader:
            assert list(reader.items()) == list(expected.items())


def test_what_is_changed_again_and_again_meanwhile(tmp_path: Path) -> None:
    """More keys than a walk remembers, with old versions before it, and newer ones, deletions among them."""
    keys = [b"%d" % number for number in range(6000)]
    with opened(tmp_path / "kv") as kv:
        model = {}
        for turn in range(3):
            for key in keys:
                kv[key] = model[key] = b"%d" % turn
        for key in keys[::3]:
            del kv[key], model[key]
        for turn in range(300):
            kv[b"hot"] = model[b"hot"] = b"%d" % turn
        walk, snapshot = iter(kv.items()), kv.snapshot()
        for turn in range(3):
            for number, key in enumerate(keys):
                if number % 2:
                    kv[key] = b"new"
                elif number % 4 or turn:
                    kv.pop(key, None)
            for _ in range(100):
                kv[b"hot"] = b"new"
                kv.pop(b"hot")
        assert dict(walk) == model
        assert dict(snapshot) == model
        assert agreeing(kv) == dict.fromkeys(keys[1::2], b"new")


def test_a_walk_is_not_continued_below_itself(kv: KVStore) -> None:
    """Nor by two threads at once: what the one has read, the other would read over."""
    refused: list[str] = []

    class Meddling(KVStore):
        def _reload_index(self, stale: Index) -> None:
            with pytest.raises(ValueError, match="being continued already") as raised:
                next(walk)
            refused.append(str(raised.value))
            super()._reload_index(stale)

    with Meddling.open(kv.path, "r") as reader:
        walk = iter(reader.items())
        found = [next(walk)]
        kv._rebuild_index(kv._parts()[1])
        found += walk
        assert refused
        assert found == list(kv.items())
