"""The store's workloads notice a wrong answer, and do what they say they do."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import pytest

from benchmarks import opening_workloads
from benchmarks.adapters import Form, NotThere, Session
from benchmarks.adapters.mmapkv_store import INDEX, MmapkvStore
from benchmarks.adapters.python_dict import PythonDict
from benchmarks.adapters.raw_file import RawFile
from benchmarks.adapters.rival import Commits, Pair
from benchmarks.dataset import Dataset, WrongAnswer
from benchmarks.harness import Harness
from benchmarks.opening_workloads import Rebuild, RebuildFromHints, Reopen
from benchmarks.process_workloads import Processes
from benchmarks.workload import BATCH_KEYS, Amounts, Operands, batches_of, fill
from benchmarks.workloads import WORKLOADS
from benchmarks.ycsb_workloads import INSERT, MODIFY, READ, SCAN, UPDATE, Operations, Zipfian

AMOUNTS = Amounts(operations=400, durable=10, commits=3)
KEYS = 500


class Able(PythonDict):
    """A dict that can do everything that there is a workload for, within one process."""

    name = "able"
    spellings: ClassVar[Any] = {
        **PythonDict.spellings,
        **{
            name: {Form.CALL: name}
            for name in ("get-many", "get-many-into", "put-many", "put-all", "durable", "commit")
        },
        "ycsb-e": {Form.CALL: "scan"},
    }

    @contextmanager
    def reading(self) -> Iterator[Session]:
        pairs = self._pairs
        yield Session(
            pairs.get,
            self.put,
            pairs.__delitem__,
            pairs.items,
            pairs,
            get_many=self.get_many,
            get_many_into=self.get_many_into,
            scan_from=self.scan_from,
        )

    def commits(self) -> Commits:
        return Commits(self.put, self.put_many)

    def found_in(self, keys: Sequence[bytes], answer: object, buffer: bytearray) -> dict[bytes, bytes]:
        assert isinstance(answer, int)
        return {key: bytes(buffer[at * answer :][:answer]) for at, key in enumerate(keys)}

    def put(self, key: bytes, value: bytes) -> None:
        self._pairs[key] = value

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._pairs.get(key) for key in keys]

    def get_many_into(self, keys: Sequence[bytes], buffer: bytearray) -> int:
        joined = b"".join([self._pairs[key] for key in keys])
        buffer[: len(joined)] = joined
        return len(joined) // len(keys)

    def put_many(self, pairs: Sequence[Pair]) -> None:
        self._pairs.update(pairs)

    def scan_from(self, key: bytes, count: int) -> Iterable[Pair]:
        return islice(sorted(pair for pair in self._pairs.items() if pair[0] >= key), count)


class ForgetsOne(Able):
    name = "forgets-one"

    def put_many(self, pairs: Sequence[Pair]) -> None:
        super().put_many(pairs[1:])


class KeepsTheOld(Able):
    name = "keeps-the-old"

    def put(self, key: bytes, value: bytes) -> None:
        self._pairs.setdefault(key, value[::-1])


class Disordered(Able):
    name = "disordered"

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return super().get_many(keys)[::-1]

    def get_many_into(self, keys: Sequence[bytes], buffer: bytearray) -> int:
        return super().get_many_into(keys[::-1], buffer)

    def scan_from(self, key: bytes, count: int) -> Iterable[Pair]:
        return list(super().scan_from(key, count))[::-1]


def run(name: str, rival: type[PythonDict], directory: Path) -> None:
    list(Harness(Dataset(KEYS, seed=1), [rival], directory, 1).run([WORKLOADS[name](AMOUNTS)]))


@pytest.mark.parametrize("name", Able.spellings)
def test_one_who_can_do_everything_is_found_right(name: str, tmp_path: Path) -> None:
    run(name, Able, tmp_path)


@pytest.mark.parametrize(
    ("name", "liar"),
    [
        ("get-many", Disordered),
        ("get-many-into", Disordered),
        ("put-many", ForgetsOne),
        ("put-all", ForgetsOne),
        ("commit", ForgetsOne),
        ("durable", KeepsTheOld),
        ("ycsb-a", KeepsTheOld),
        ("ycsb-b", KeepsTheOld),
        ("ycsb-f", KeepsTheOld),
        ("ycsb-d", KeepsTheOld),
        ("ycsb-e", Disordered),
    ],
)
def test_a_wrong_answer_ends_the_run(name: str, liar: type[PythonDict], tmp_path: Path) -> None:
    """A rival that left its work undone would lead the table."""
    with pytest.raises(WrongAnswer, match=f"^{liar.name} {name}: "):
        run(name, liar, tmp_path)


def test_raw_writes_are_read_back(tmp_path: Path) -> None:
    """What the durable put is held against must write what it says it does."""
    list(Harness(Dataset(KEYS, seed=1), [RawFile], tmp_path, 1).run([WORKLOADS["durable"](AMOUNTS)]))
    store = RawFile(10, 1160, durable=True)
    store.open(tmp_path)
    store.commits().put(b"k" * 16, b"v" * 100)
    put_many = store.commits().put_many
    assert put_many is not None
    put_many([(b"l" * 16, b"w" * 100), (b"k" * 16, b"x" * 100)])
    with store.reading() as session:
        assert dict(session.items()) == {b"k" * 16: b"x" * 100, b"l" * 16: b"w" * 100}
    store.close()


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[tuple[MmapkvStore, Dataset]]:
    data = Dataset(KEYS, seed=1)
    store = MmapkvStore(data.count, data.bytes_stored)
    store.open(tmp_path)
    fill(store, data)
    yield store, data
    store.close()


def test_readers_in_other_processes_are_checked(filled: tuple[MmapkvStore, Dataset], tmp_path: Path) -> None:
    """They could have opened an empty store and be fast."""
    store, data = filled
    assert Processes(AMOUNTS).run(store, Form.TWO, Operands(data.keys, data.values), tmp_path) > 0
    with pytest.raises(WrongAnswer, match=r"^mmapkv processes: key "):
        Processes(AMOUNTS).run(store, Form.ONE, Operands(data.keys, data.replacements), tmp_path)
    assert store.count() == KEYS


def test_a_killed_writer_must_have_lost_nothing(
    filled: tuple[MmapkvStore, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To open quickly and have lost the last puts would be easy."""
    store, data = filled
    assert Reopen(AMOUNTS).run(store, Form.CALL, Operands(data.keys, data.replacements), tmp_path) > 0
    with store.reading() as session:
        assert session.get(data.keys[0]) == data.replacements[0]
    monkeypatch.setattr(opening_workloads, "killed", lambda work, directory: None)
    with pytest.raises(WrongAnswer, match=r"^mmapkv reopen: key "):
        Reopen(AMOUNTS).run(store, Form.CALL, Operands(data.keys, data.values), tmp_path)


def test_a_rebuild_starts_without_an_index(filled: tuple[MmapkvStore, Dataset], tmp_path: Path) -> None:
    """Opened with the old one it would be an opening like any other."""
    store, data = filled
    operands = Operands(data.keys[:1], data.values[:1])
    before = (tmp_path / INDEX).stat()
    assert Rebuild(AMOUNTS).run(store, Form.CALL, operands, tmp_path) > 0
    assert (tmp_path / INDEX).stat().st_ctime_ns > before.st_ctime_ns
    assert store.count() == KEYS
    if not list(tmp_path.rglob("*.hint")):
        with pytest.raises(NotThere, match="hint"):
            RebuildFromHints(AMOUNTS).run(store, Form.CALL, operands, tmp_path)
    assert store.count() == KEYS


def test_low_ranks_are_drawn_as_often_as_the_distribution_says() -> None:
    """A uniform draw would show nothing of what YCSB asks."""
    count, draws = 1_000, 20_000
    zipfian = Zipfian(count, random.Random(1))
    drawn = Counter(zipfian.draw() for _ in range(draws))
    assert set(drawn) <= set(range(count))
    weights = [1 / rank**0.99 for rank in range(1, count + 1)]
    for rank in (0, 1):
        assert drawn[rank] / draws == pytest.approx(weights[rank] / sum(weights), rel=0.1)
    assert sum(drawn[rank] for rank in range(100)) / draws == pytest.approx(
        sum(weights[:100]) / sum(weights), rel=0.1
    )
    assert {Zipfian(2, random.Random(1)).draw() for _ in range(50)} <= {0, 1}


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("ycsb-a", {READ: 0.5, UPDATE: 0.5}),
        ("ycsb-b", {READ: 0.95, UPDATE: 0.05}),
        ("ycsb-c", {READ: 1.0}),
        ("ycsb-f", {READ: 0.5, MODIFY: 0.5}),
        ("ycsb-d", {READ: 0.95, INSERT: 0.05}),
        ("ycsb-e", {SCAN: 0.95, INSERT: 0.05}),
    ],
)
def test_a_mix_has_the_shares_that_ycsb_gives_it(name: str, shares: dict[int, float]) -> None:
    data = Dataset(3_000, seed=2)
    order = data.new_order()
    workload = WORKLOADS[name](Amounts(operations=3_000))
    prepared, again = workload.prepare(data, order), workload.prepare(data, order)
    assert isinstance(prepared, Operations)
    assert isinstance(again, Operations)
    assert prepared.operations == again.operations
    kinds = Counter(kind for kind, *_ in prepared.operations)
    assert set(kinds) == set(shares)
    for kind, share in shares.items():
        assert kinds[kind] / 3_000 == pytest.approx(share, abs=0.05)
    inserted = [key for kind, key, _, _ in prepared.operations if kind == INSERT]
    assert prepared.inserted == len(inserted) == len(set(inserted))
    assert set(inserted) <= set(data.absent)
    assert all(1 <= length <= 100 for *_, length in prepared.operations)


def test_read_latest_reads_what_came_in_last() -> None:
    data = Dataset(2_000, seed=3)
    prepared = WORKLOADS["ycsb-d"](Amounts(operations=2_000)).prepare(data, data.new_order())
    assert isinstance(prepared, Operations)
    newest = list(data.keys)
    ages = []
    for kind, key, _, _ in prepared.operations:
        if kind == INSERT:
            newest.append(key)
        else:
            ages.append(len(newest) - 1 - newest.index(key))
    assert sorted(ages)[len(ages) // 2] < 100


def test_the_head_of_a_data_set_is_a_part_of_it() -> None:
    data = Dataset(50, seed=1)
    head = data.head(20)
    assert (head.keys, head.absent, head.values) == (data.keys[:20], data.absent[:20], data.values[:20])
    assert head.count == 20
    assert set(head.replacements) == set(head.values)
    assert data.head(None) is data.head(50) is data
    assert dict(head.sample()).items() <= dict(zip(head.keys, head.values, strict=True)).items()


def test_batches_are_lists_and_hold_everything() -> None:
    """RocksDB's binding takes a tuple for a key."""
    batches = batches_of(tuple(range(2 * BATCH_KEYS + 1)))
    assert [len(batch) for batch in batches] == [BATCH_KEYS, BATCH_KEYS, 1]
    assert all(isinstance(batch, list) for batch in batches)
    assert [each for batch in batches for each in batch] == list(range(2 * BATCH_KEYS + 1))
