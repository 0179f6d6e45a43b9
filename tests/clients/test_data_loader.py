"""Workers that load samples as PyTorch's DataLoader has them do it: an imitation of it, without torch.

What matters is kept: the data set is one object that holds the open store and is handed to every worker,
pickled where workers are spawned and inherited where they are forked. Each worker is asked for batches of
indices, in an order that the parent chose, and sends them back; the store is being written meanwhile.
"""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmapkv.codecs import Json
from tests.unit.mmapkv.stores import opened

SAMPLES = 300
BATCH = 16
ORDER = random.Random(7).sample(range(SAMPLES), SAMPLES)


class Samples:
    """A data set of the map style: `__len__` and `__getitem__` by number."""

    def __init__(self, mapping: Any) -> None:
        self.mapping = mapping

    def __len__(self) -> int:
        return len(self.mapping)

    def __getitem__(self, index: int) -> Any:
        return self.mapping[b"%06d" % index]


worker_samples: list[Samples] = []


def begin_worker(samples: Samples) -> None:
    """What runs in a worker first: it keeps the data set that it was given."""
    worker_samples[:] = [samples]


def fetch(indices: list[int]) -> list[Any]:
    """What runs in a worker for each batch."""
    samples = worker_samples[0]
    assert len(samples) == SAMPLES
    return [samples[index] for index in indices]


def load(samples: Samples, method: str, workers: int = 2) -> Iterator[list[Any]]:
    """Shuffled batches, loaded by workers, in the order that was asked for."""
    batches = [ORDER[start : start + BATCH] for start in range(0, SAMPLES, BATCH)]
    # A forked worker gets its arguments as they are, a spawned one pickled.
    with multiprocessing.get_context(method).Pool(workers, begin_worker, (samples,)) as pool:
        yield from pool.imap(fetch, batches)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed store of samples that are JSON."""
    with opened(tmp_path / "kv") as kv:
        kv.update({b"%06d" % number: b'["%d"]' % number for number in range(SAMPLES)})
    return tmp_path / "kv"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_reader_is_handed_over(path: Path, method: str) -> None:
    """Every sample comes once, in the order asked for, in each of two epochs; a writer goes on meanwhile."""
    with opened(path) as writer, opened(path, "r") as kv:
        for _ in range(2):
            found = []
            for batch in load(Samples(kv), method):
                found += batch
                # The store is written meanwhile, and its log grows.
                writer[b"%06d" % ORDER[0]] = writer[b"%06d" % ORDER[0]]
            assert found == [b'["%d"]' % number for number in ORDER]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_objects_are_handed_over(path: Path, method: str) -> None:
    """A view goes with its codec."""
    with opened(path, "r") as kv:
        found = [sample for batch in load(Samples(kv.typed(Json())), method) for sample in batch]
    assert found == [[str(number)] for number in ORDER]


def test_a_writer_is_handed_to_spawned_workers(path: Path) -> None:
    """They read; the parent goes on writing."""
    with opened(path) as kv:
        found = [sample for batch in load(Samples(kv), "spawn") for sample in batch]
        assert found == [b'["%d"]' % number for number in ORDER]
        kv[b"end"] = b"1"
