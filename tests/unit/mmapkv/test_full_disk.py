"""A store on a disk that has no room left: what removes keys still does, and makes it smaller."""

from __future__ import annotations

import asyncio
import errno
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmapkv import AsyncKVStore, KVStore, attach, building
from tests.unit.mmapio.volume import fill, small_volume  # noqa: F401
from tests.unit.mmapkv.stores import MANUAL, SEGMENT, agreeing

KEYS = 3000


def opened(path: Path, *, segment_bytes: int = 1 << 20, **options: Any) -> KVStore:
    """A store that starts no thread."""
    return KVStore.open(path, flush_policy=MANUAL, segment_bytes=segment_bytes, compaction=False, **options)


@pytest.fixture
def full(small_volume: Path) -> Iterator[Path]:  # noqa: F811
    """A closed store that has nothing allocated ahead, on a disk without a block to be had."""
    path = small_volume / "kv"
    with opened(path) as kv:
        kv.put_many((b"%d" % number, b"value") for number in range(KEYS))
    fill(small_volume)
    yield path


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
@pytest.mark.parametrize(
    "remove",
    [
        lambda kv: kv.__delitem__(b"1"),
        lambda kv: kv.pop(b"1"),
        lambda kv: kv.popitem(),
        lambda kv: kv.delete_many([b"1", b"2"]),
        lambda kv: kv.compare_and_set(b"1", None, expected=b"value"),
        lambda kv: kv.clear(),
    ],
    ids=["del", "pop", "popitem", "delete_many", "compare_and_set", "clear"],
)
def test_a_deletion_asks_for_no_room_in_the_index(
    full: Path, remove: Callable[[KVStore], object], shared: bool
) -> None:
    """It adds no entry. The index of a store that was closed has no room ahead, and `del` asked for that."""
    with opened(full, shared=shared) as kv:
        remove(kv)
        assert len(kv) < KEYS
        agreeing(kv)
        assert kv.verify().damages == ()


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
def test_what_is_absent_is_not_deleted_for_want_of_room(small_volume: Path, shared: bool) -> None:  # noqa: F811
    """Where its place in the index was full, `del` asked for room, and told of the disk and not of a key."""
    with opened(small_volume / "kv", shared=shared) as kv:
        for number in range(KEYS):
            kv[b"%d" % number] = b"value"
        # Enough for the log, and not for two segments of an index.
        fill(small_volume, leaving=64 << 10)
        with pytest.raises(OSError, match="No space left") as raised:
            for number in range(KEYS, 100 * KEYS):
                kv[b"%d" % number] = b""
        assert "INDEX" in str(raised.value.filename)
        for number in range(1000):
            with pytest.raises(KeyError):
                del kv[b"absent %d" % number]
            assert kv.pop(b"absent %d" % number, None) is None
            assert not kv.compare_and_set(b"absent %d" % number, None, expected=b"")


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
def test_nor_does_a_new_value(full: Path, shared: bool) -> None:
    """It takes the entry of the one before; a new key is refused once its place in the index is full."""
    with opened(full, shared=shared) as kv:
        kv[b"1"] = b"new"
        assert kv[b"1"] == b"new"
        with pytest.raises(OSError, match="No space left") as raised:
            while True:
                kv[b"new %d" % len(kv)] = b""
        assert raised.value.errno == errno.ENOSPC
        agreeing(kv)


def test_what_was_removed_is_entered_into_an_index_that_lags(full: Path) -> None:
    """As a writer leaves it who was killed after he had deleted. Opening asked for room that it needs not."""
    before = (full / "INDEX").read_bytes()
    with opened(full) as kv:
        kv.delete_many([b"1", b"2"])
    assert (full / "INDEX").stat().st_size == len(before)
    with (full / "INDEX").open("r+b") as file:
        file.write(before)
    with opened(full) as kv:
        assert len(kv) == len(agreeing(kv)) == KEYS - 2
        assert kv.verify().damages == ()


def put_until_full(kv: KVStore, volume: Path) -> None:
    """Put one key again and again, and take what is left then, which is less than a put needs."""
    fill(volume)
    with pytest.raises(OSError, match="No space left"):
        while True:
            kv[b"0"] = b"value"
    with pytest.raises(OSError, match="No space left"):
        (volume / "the rest").write_bytes(bytes(1 << 20))


def delete_until_full(kv: KVStore) -> OSError | None:
    """Delete one key after the other, in each way there is; what the disk said, or None when all are gone."""
    ways: list[Callable[[bytes], object]] = [
        kv.__delitem__,
        kv.pop,
        lambda key: kv.delete_many([key]),
        lambda key: kv.compare_and_set(key, None, expected=b"value"),
    ]
    try:
        for number in range(KEYS):
            ways[number % len(ways)](b"%d" % number)
    except OSError as error:
        return error
    return None


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
@pytest.mark.parametrize("reserve", [0, 512 << 10], ids=["without", "with"])
def test_a_store_is_made_smaller_with_the_reserve(small_volume: Path, reserve: int, shared: bool) -> None:  # noqa: F811
    """A deletion needs room in the log, and a compaction some more, before either gives any."""
    path = small_volume / "kv"
    with opened(path, segment_bytes=SEGMENT, shared=shared, reserve_bytes=reserve) as kv:
        for value in (b"old", b"value"):
            kv.put_many((b"%d" % number, value) for number in range(KEYS))
        assert kv.stats()["reserve_bytes"] == reserve
        put_until_full(kv, small_volume)
        error = delete_until_full(kv)
        if not reserve:
            assert error is not None
            assert error.errno == errno.ENOSPC
            left = len(kv)
            with pytest.raises(OSError, match="No space left"):
                kv.compact()
            assert len(kv) == left
        else:
            assert error is None
            assert reserve > kv.stats()["reserve_bytes"] >= reserve // 2
            assert kv.compact().records_removed >= 3 * KEYS
            assert kv.stats()["reserve_bytes"] == reserve
            kv[b"new"] = b"value"
        agreeing(kv)
        assert kv.verify().damages == ()


def test_clear_draws_on_the_reserve(small_volume: Path) -> None:  # noqa: F811
    """It is one record, and gives most of the room there is."""
    with opened(small_volume / "kv", segment_bytes=SEGMENT, reserve_bytes=256 << 10) as kv:
        kv.put_many((b"%d" % number, b"value") for number in range(KEYS))
        put_until_full(kv, small_volume)
        with pytest.raises(OSError, match="No space left"):
            kv.put_many({b"0": b"value"})
        kv.clear()
        assert kv.compact().records_removed >= KEYS
        assert (len(kv), kv.verify().damages) == (0, ())


def test_deletions_leave_half_of_the_reserve(small_volume: Path) -> None:  # noqa: F811
    """Or there would be none for the compaction that gives back what they take."""
    with opened(small_volume / "kv", reserve_bytes=128 << 10) as kv:
        kv.put_many((b"%d" % number, b"value") for number in range(KEYS))
        fill(small_volume)
        with pytest.raises(OSError, match="No space left"):
            while True:
                del kv[b"0"]
                kv[b"0"] = b"value"
        assert delete_until_full(kv) is not None
        assert kv.stats()["reserve_bytes"] == 64 << 10
        kv.flush()


@pytest.mark.parametrize(("mode", "size"), [("r", 1), ("c", -1)])
def test_a_reserve_that_cannot_be_kept(tmp_path: Path, mode: str, size: int) -> None:
    """Said before anything is made."""
    with pytest.raises(ValueError, match="cannot be kept"):
        KVStore.open(tmp_path / "kv", mode, reserve_bytes=size)  # type: ignore[call-overload]
    assert not (tmp_path / "kv").exists()


def test_who_opens_a_store_beside_an_event_loop_may_keep_one(tmp_path: Path) -> None:
    """And who opens it by a pickled handle, or as before, leaves it as it is."""

    async def work() -> int:
        async with await AsyncKVStore.open(tmp_path / "kv", reserve_bytes=SEGMENT) as kv:
            return (await kv.stats())["reserve_bytes"]

    assert asyncio.run(work()) == SEGMENT
    with KVStore.open(tmp_path / "kv", shared=True) as kv, pickle.loads(pickle.dumps(kv)) as again:
        assert kv.stats()["reserve_bytes"] == again.stats()["reserve_bytes"] == SEGMENT
    with KVStore.open(tmp_path / "kv", reserve_bytes=0) as kv:
        assert kv.stats()["reserve_bytes"] == 0


def test_an_index_that_cannot_be_made_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compaction was done by then, and failed all the same."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with opened(tmp_path / "kv") as kv:
        kv.put_many((b"%d" % number, b"value") for number in range(KEYS))
        kv.delete_many(b"%d" % number for number in range(1, KEYS))
        monkeypatch.setattr(attach, "rebuild", refuse)
        assert kv.compact().records_removed > KEYS
        assert agreeing(kv) == {b"0": b"value"}
        kv[b"new"] = b"value"


def test_an_index_that_cannot_be_built_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What of it was there stayed, and took of the full disk what there was, until the next one was built."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv[b"k"] = b"value"
    (path / "INDEX").unlink()

    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(building, "_fill", fill)
        with pytest.raises(OSError, match="No space left"):
            opened(path)
    assert not list(path.glob("INDEX*"))
    with opened(path) as kv:
        assert agreeing(kv) == {b"k": b"value"}
