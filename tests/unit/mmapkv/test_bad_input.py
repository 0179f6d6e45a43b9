"""Some of every way in which a file of a store can be wrong; ``tests.unit.mmapkv.matrix`` has them all."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from mmapkv import KVStore
from tests.unit.mmapio.processes import in_child
from tests.unit.mmapkv import matrix
from tests.unit.mmapkv.matrix import FILES, STATES, SUBJECT, content_after, ground
from tests.unit.mmaplog import damage
from tests.unit.mmaplog import matrix as matrix_of_logs
from tests.unit.mmaplog.matrix import COUNT, Case, Ground
from tests.unit.mmaplog.segment_file import SegmentFile


@pytest.fixture
def tmp_path(memory_path: Path) -> Path:
    """In memory: there are thousands of syncs, and none of them matters to what is looked for."""
    return memory_path


#: Of lengths and bits, one in so many; coprime to 8, so that every bit of a byte has its turn. And of all
#: cases that this leaves, one in so many, beginning elsewhere for each state.
STRIDE, STEP = 283, 41


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Each case would be logged."""
    loggers = [logging.getLogger(name) for name in ("mmapkv", "mmaplog")]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    yield
    for each, level in zip(loggers, before, strict=True):
        each.setLevel(level)


@pytest.mark.parametrize("state", STATES)
def test_some_of_everything(tmp_path: Path, state: str) -> None:
    """In a process of its own, which must end by itself."""

    def some(spoilt: Ground, other: Ground, which: str, stride: int) -> Iterator[Case]:
        return islice(matrix.cases(spoilt, other, which, stride), STATES.index(state), None, STEP)

    # Made once: they are put back after each case.
    subject = replace(SUBJECT, ground=cache(ground), cases=some)
    try:
        found = in_child(
            lambda: [matrix_of_logs.run(tmp_path, state, which, STRIDE, subject) for which in FILES]
        )
    except AssertionError as error:
        raise AssertionError(f"{error}\nin {(tmp_path / 'case').read_text().strip()}") from None
    assert [wrong for _, each in found for wrong in each] == []
    assert all(count >= 2 for count, _ in found)


@pytest.mark.parametrize("state", STATES)
def test_the_ground_is_what_it_seems(tmp_path: Path, state: str) -> None:
    """Put back as it was, it is the same store, with an index that needs no building."""
    made = ground(tmp_path / "kv", state)
    for name in ("tail", "INDEX", "MANIFEST"):
        damage.overwrite_whole(made.file(name), b"\xff" * 5000)
        made.restore()
        inode = (made.path / "INDEX").stat().st_ino
        with KVStore.open(made.path, "r") as kv:
            assert dict(kv.items()) == content_after(COUNT)
            assert kv.stats()["records"] == COUNT
        assert (made.path / "INDEX").stat().st_ino == inode
        made.restore()


class Blind:
    """Opens stores without verifying: the control."""

    @staticmethod
    def open(path: Path, mode: Any, **options: Any) -> KVStore:
        """Open a store."""
        return KVStore.open(path, mode, verify=False, **options)


def test_a_store_that_is_not_careful_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that is not what was written."""
    made = ground(tmp_path / "kv", "known")
    segment = SegmentFile(made.file("first"))
    at = segment.data.index(b"yellow")
    case = matrix.Case("a bit of a value", lambda path: damage.overwrite(made.file("first"), b"R", at))
    case.inflict(made.path)
    assert list(matrix.violations(made, case, "r")) == []
    monkeypatch.setattr(matrix, "KVStore", Blind)
    segment = SegmentFile(made.file("tail"))
    made.restore()
    at = segment.data.index(b"brown")
    damage.overwrite(made.file("tail"), b"B", at)
    assert any("Brown" in each for each in matrix.violations(made, case, "r"))
