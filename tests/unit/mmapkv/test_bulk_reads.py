"""Many keys in one call give what one after another would."""

from __future__ import annotations

import array
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmapio import MappedSlice
from mmapkv import BufferTooSmall, CorruptionError, KVStore
from tests.unit.mmapio.processes import TIMEOUT_SECONDS, in_child, killed_after, run_python
from tests.unit.mmapkv.colliding_keys import HashInverter, seed_of
from tests.unit.mmapkv.stores import opened
from tests.unit.mmaplog.damage import overwrite

MODEL = {b"%d" % number: b"v%d" % number * (number % 9) for number in range(0, 1000, 2)}
GROUPS = [0, 1, 3, 4, 5, 8, 15, 16, 17, 500]


@pytest.fixture
def kv(tmp_path: Path) -> Iterator[KVStore]:
    """A store of some segments in which every second number has a value, some of them empty."""
    with opened(tmp_path / "kv") as made:
        for number in range(0, 1000, 3):
            made[b"%d" % number] = b"before" * 30
        made.clear()
        made.update(MODEL)
        yield made


@pytest.mark.parametrize("count", GROUPS)
@pytest.mark.parametrize("view", [False, True])
def test_get_many_is_many_gets(kv: KVStore, count: int, view: bool) -> None:
    """In the order of the keys, whatever their number is to the size of a group."""
    wanted = [b"%d" % number for number in random.Random(count).choices(range(1000), k=count)]
    found = kv.get_many(wanted, view=view)
    assert found == [MODEL.get(key) for key in wanted]
    assert all(value is None or isinstance(value, MappedSlice if view else bytes) for value in found)


def test_any_iterable_of_any_keys(kv: KVStore) -> None:
    """Of what a mapping takes; the same key may come twice."""
    wanted = [b"2", "4", bytearray(b"6"), memoryview(b"8"), b"2", b"", b"k" * 70_000, "nine"]
    expected = [MODEL[b"2"], MODEL[b"4"], MODEL[b"6"], MODEL[b"8"], MODEL[b"2"], 7, 7, 7]
    for keys in (
        wanted,
        tuple(wanted),
        iter(wanted),
        dict(enumerate(wanted)).values(),
        (key for key in wanted),
    ):
        assert kv.get_many(keys, 7) == expected
    assert kv.get_many({b"4": 1}.keys()) == [MODEL[b"4"]]
    assert kv.get_many(np.array([b"12", b"14"])) == [MODEL[b"12"], MODEL[b"14"]]


@pytest.mark.parametrize("keys", [5, None, [b"2", 5], (b"2", None), b"ab"])
def test_keys_that_are_none(kv: KVStore, keys: object) -> None:
    """Also behind those that are."""
    with pytest.raises(TypeError):
        kv.get_many(keys)  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        kv.get_many_into(keys, bytearray(100))  # type: ignore[arg-type]


def test_a_list_that_changes_while_it_is_taken_over(tmp_path: Path) -> None:
    """By a destructor, which the garbage collector calls when memory for its keys is asked for."""
    code = """
import gc
from mmapkv import KVStore
class Meddler:
    def __del__(self):
        keys.clear()
        junk.extend(bytes(100) for _ in range(10_000))
keys, junk = [b"%d" % number * 10 for number in range(2_000)], []
with KVStore.open(arguments[0]) as kv:
    gc.disable()
    one = Meddler()
    one.itself = one
    del one
    gc.enable()
    gc.set_threshold(1, 1, 1)
    found = kv.get_many(keys)
answer(len(found))
"""
    assert run_python(code, tmp_path / "kv") in (0, 2000)


def test_views_of_many_outlive_the_store(tmp_path: Path) -> None:
    """Each holds what it points into."""
    with opened(tmp_path / "kv") as kv:
        kv.update({b"%d" % number: b"%d" % number * 400 for number in range(300)})
        assert len(kv.stats()) > 0
        assert kv.stats()["segments"] > 3
        views = kv.get_many([b"%d" % number for number in range(300)], view=True)
        kv.clear()
    assert views == [b"%d" % number * 400 for number in range(300)]


def test_chains_and_splits(tmp_path: Path) -> None:
    """Keys of one bucket and one tag, so that the first entry that fits is seldom the right one."""
    with opened(tmp_path / "kv") as kv:
        twins = list(HashInverter(seed_of(tmp_path / "kv")).twins(5, 24, 77, 40))
        for at, key in enumerate(twins):
            kv[key] = b"%d" % at
        absent = list(HashInverter(seed_of(tmp_path / "kv")).twins(5, 24, 77, 50))[40:]
        wanted = twins + absent
        random.Random(1).shuffle(wanted)
        kept = {key: b"%d" % at for at, key in enumerate(twins)}
        assert kv.get_many(wanted) == [kept.get(key) for key in wanted]


def test_values_packed_into_a_buffer(kv: KVStore) -> None:
    """As array and numpy have them: where each lies follows from the lengths."""
    wanted = [b"%d" % number for number in range(200)]
    packed = b"".join(MODEL.get(key, b"") for key in wanted)
    lengths = array.array("q", [0]) * 200
    buffer = bytearray(b"x" * (len(packed) + 2))
    assert kv.get_many_into(wanted, buffer, lengths) == len(packed)
    assert buffer == packed + b"xx"
    assert lengths.tolist() == [len(MODEL[key]) if key in MODEL else -1 for key in wanted]

    flat, sizes = np.zeros(len(packed), np.uint8), np.zeros(210, np.int64)
    assert kv.get_many_into(wanted, flat, sizes) == len(packed)
    assert sizes.tolist() == [*lengths.tolist(), *[0] * 10]
    ends = np.cumsum(np.maximum(sizes, 0))
    assert flat[ends[5] : ends[6]].tobytes() == MODEL[b"6"]

    present = [key for key in wanted if key in MODEL]
    assert kv.get_many_into(present, buffer) == len(packed)
    assert kv.get_many_into([], bytearray()) == 0


def test_rows_of_an_array(tmp_path: Path) -> None:
    """With a stride each value has its row, and absent ones leave theirs alone."""
    rows = np.arange(70 * 5, dtype=np.float32).reshape(70, 5)
    with opened(tmp_path / "kv") as kv:
        for number, row in enumerate(rows):
            if number % 7:
                kv[str(number)] = row.data
        out, lengths = np.full((70, 5), -1, np.float32), np.empty(70, np.int64)
        wanted = [str(number) for number in range(70)]
        assert kv.get_many_into(wanted, out, lengths, stride=20) == 60 * 20
        assert lengths.tolist() == [20 if number % 7 else -1 for number in range(70)]
        assert (out[lengths > 0] == rows[lengths > 0]).all()
        assert (out[lengths < 0] == -1).all()
        # A row may be longer than its value, the last one may end with it.
        buffer = bytearray(b"x" * 44)
        assert kv.get_many_into(["1", "2"], buffer, stride=24) == 40
        assert buffer == rows[1].tobytes() + b"xxxx" + rows[2].tobytes()


@pytest.mark.parametrize(
    ("keys", "arguments", "error", "words"),
    [
        ([b"2", b"4"], {}, BufferTooSmall, "the values of 2 keys need 12 bytes, the buffer has 11"),
        ([b"2"] * 200, {}, BufferTooSmall, "the values of 200 keys need 800 bytes, the buffer has 11"),
        ([b"2", b"4"], {"stride": 4}, BufferTooSmall, "key number 1 has 8 bytes, more than the stride of 4"),
        ([b"2", b"2", b"2"], {"stride": 4}, BufferTooSmall, "need 12 bytes, the buffer has 11"),
        # Twice that is -2 in a register.
        ([b"2", b"2", b"2"], {"stride": 2**63 - 1}, BufferTooSmall, "need 18446744073709551618 bytes"),
        ([b"2", b"3"], {}, KeyError, "b'3'"),
        ([b"2"], {"stride": -1}, ValueError, "not -1"),
        ([b"2"], {"stride": -(2**70)}, ValueError, f"not -{2**70}"),
        ([b"2", b"2"], {"stride": 2**70}, BufferTooSmall, "the values of 2 keys need"),
        ([b"2"], {"stride": "1"}, TypeError, "a stride is a number of bytes, an integer, not str"),
        ([b"2", b"4"], {"lengths": array.array("q", [7])}, BufferTooSmall, "2 keys and room for 1 lengths"),
        ([b"2"], {"lengths": array.array("i", [7])}, TypeError, "64-bit signed"),
        ([b"2"], {"lengths": array.array("d", [7])}, TypeError, "64-bit signed"),
        ([b"2"], {"lengths": array.array("Q", [7])}, TypeError, "64-bit signed"),
        ([b"2"], {"lengths": b"bytes123"}, BufferError, "not writable"),
        ([b"2"], {"lengths": 5}, TypeError, "bytes-like"),
    ],
)
def test_nothing_is_written_when_it_raises(
    kv: KVStore, keys: list[bytes], arguments: dict[str, object], error: type[Exception], words: str
) -> None:
    """Neither to the buffer nor to the lengths."""
    buffer = bytearray(b"x" * 11)
    with pytest.raises(error, match=words):
        kv.get_many_into(keys, buffer, **arguments)  # type: ignore[arg-type]
    assert buffer == b"x" * 11
    lengths = arguments.get("lengths")
    assert not isinstance(lengths, array.array) or lengths.tolist() == [7]


def test_the_lengths_stay_when_the_values_do_not_fit(kv: KVStore) -> None:
    """They are written with the values, after all checks."""
    lengths = array.array("q", [7, 7])
    with pytest.raises(BufferTooSmall):
        kv.get_many_into([b"2", b"4"], bytearray(5), lengths)
    assert lengths.tolist() == [7, 7]


def test_a_reader_keeps_up_in_the_middle_of_a_call(tmp_path: Path) -> None:
    """Since the last look-up another process wrote: segments to map, more index than is mapped, a new one."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv[b"0"] = b"0"
    keys = [b"%d" % number for number in range(4000)]
    values = [key * 8 for key in keys]
    with opened(path, "r") as reader:
        assert reader.get_many(keys[:2]) == [b"0", None]

        def write() -> KVStore:
            kv = opened(path)
            kv.update(zip(keys, values, strict=True))
            # Beyond 63 of a kind the index is built anew.
            for key in HashInverter(seed_of(path)).twins(5, 24, 77, 70):
                kv[key] = b"twin"
            return kv

        killed_after(write)
        with opened(path):
            assert reader.get_many(keys) == values
            buffer, lengths = bytearray(sum(map(len, values))), np.empty(len(keys), np.int64)
            with opened(path, "r") as fresh:
                assert fresh.get_many_into(keys, buffer, lengths) == len(buffer)
            assert buffer == b"".join(values)
            assert reader.get_many(keys, view=True) == values


def test_nothing_is_missing_while_the_index_is_split(tmp_path: Path) -> None:
    """A writer doubles the directory under the reader's eyes: what is there is found in every call."""
    path = tmp_path / "kv"
    fixed = [b"fixed %d" % number for number in range(100)]
    with opened(path) as kv:
        for key in fixed:
            kv[key] = b"0"

    child = os.fork()
    if child == 0:
        try:
            signal.alarm(TIMEOUT_SECONDS)
            with opened(path) as kv:
                for number in range(150_000):
                    kv[b"more %d" % number] = b"x"
                    if number % 50 == 0:
                        kv[fixed[number // 50 % 100]] = b"%d" % number
            os._exit(0)
        finally:
            os._exit(1)
    least = [0] * len(fixed)
    ended = 0
    with opened(path, "r") as reader:
        while not ended:
            ended, status = os.waitpid(child, os.WNOHANG)
            found = [int(value) for value in reader.get_many(fixed, b"-1")]
            assert all(now >= before >= 0 for now, before in zip(found, least, strict=True))
            least = found
    assert status == 0
    assert min(least) > 140_000


def test_a_damaged_index_is_mended_in_the_middle_of_a_call(tmp_path: Path) -> None:
    """A bucket that lost its entries after a clean close looks like one whose keys are absent."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv.update(MODEL)
    size = (path / "INDEX").stat().st_size
    start = 204_800 + 4096  # the first index segment, behind the first directory
    overwrite(path / "INDEX", bytes(min(9 * 4096, size - start) - 64), start + 64)
    keys = list(MODEL)
    with opened(path, "r") as reader, pytest.raises(CorruptionError, match="index"):
        reader.get_many(keys)
    with opened(path, "w") as kv:
        assert kv.get_many(keys) == list(MODEL.values())


def test_a_cut_segment_is_never_a_wrong_value(tmp_path: Path) -> None:
    """The zeros in place of its pages are not handed out, neither as values nor as absence."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv.update(dict.fromkeys(MODEL, b"x" * 2000))

    def read() -> set[str]:
        outcomes = set()
        with KVStore.open(path, "r", verify=False) as kv:
            assert kv.get_many(MODEL) == [b"x" * 2000] * len(MODEL)
            for file in path.glob("*.seg"):
                os.truncate(file, 0)
            for _ in range(2):
                try:
                    outcomes.add(repr(kv.get_many(MODEL))[:10])
                except Exception as error:
                    outcomes.add(type(error).__name__)
                try:
                    outcomes.add(repr(kv.get_many_into(MODEL, bytearray(2000 * len(MODEL)))))
                except Exception as error:
                    outcomes.add(type(error).__name__)
        return outcomes

    assert in_child(read) == {"MappingFault"}


@pytest.mark.parametrize("kind", [str, bytes, bytearray, memoryview])
def test_one_key_is_not_many(tmp_path: Path, kind: Any) -> None:
    """Its characters were looked up; who deleted was told of an int, or in other words."""
    key = "ab" if kind is str else kind(b"ab")
    said = f"an iterable of keys is wanted, and {key!r} is one key: pass [{key!r}]"
    with KVStore.open(tmp_path / "kv") as kv:
        kv.update({"a": "1", "b": "2"})
        into = lambda keys: kv.get_many_into(keys, bytearray(10), [0] * 2)  # noqa: E731
        part = kv.namespace("")
        for call in (kv.get_many, into, kv.delete_many, part.get_many, part.delete_many):
            with pytest.raises(TypeError) as raised:
                call(key)
            assert str(raised.value) == said
        assert len(kv) == 2
