"""Readers in other processes: they see each commit at once, whatever the writer's index goes through."""

from __future__ import annotations

import errno
import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmapkv import KVStore, StoreError, attach
from mmaplog import recovery
from tests.unit.mmapio.processes import TIMEOUT_SECONDS, killed_after
from tests.unit.mmapkv.colliding_keys import HashInverter, seed_of
from tests.unit.mmapkv.stores import agreeing, contents, lose, opened


@pytest.fixture
def readers() -> Iterator[list[Reader]]:
    """Those that a test starts, stopped at its end."""
    started: list[Reader] = []
    yield started
    for reader in started:
        reader.stop()


class Reader:
    """A reader in a forked process, which answers one question at a time."""

    def __init__(self, path: Path, started: list[Reader]) -> None:
        question, answer = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            signal.alarm(TIMEOUT_SECONDS)
            try:
                os.close(question[1])
                for other in started:
                    other.to.close()
                _serve(path, question[0], answer[1])
            finally:
                os._exit(1)
        os.close(question[0])
        os.close(answer[1])
        started.append(self)
        self.to, self.back = os.fdopen(question[1], "wb"), os.fdopen(answer[0], "rb")

    def ask(self, name: str, *arguments: object) -> Any:
        """Have the reader's store answer to a method; `list` and `agreeing` are functions over it."""
        pickle.dump((name, arguments), self.to)
        self.to.flush()
        return pickle.load(self.back)

    def stop(self) -> None:
        """Let it close its store and go."""
        self.to.close()
        self.back.close()
        if self.pid:
            pid, self.pid = self.pid, 0
            assert os.waitpid(pid, 0)[1] == 0


def _serve(path: Path, question: int, answer: int) -> None:
    with os.fdopen(question, "rb") as asked, os.fdopen(answer, "wb") as told, opened(path, "r") as kv:
        while True:
            try:
                name, arguments = pickle.load(asked)
            except EOFError:
                break
            work = {"agreeing": agreeing, "list": list}.get(name)
            pickle.dump(work(kv) if work else getattr(kv, name)(*arguments), told)
            told.flush()
    os._exit(0)


def test_a_reader_sees_each_change_at_once(tmp_path: Path, readers: list[Reader]) -> None:
    """Put, overwrite, delete, and the count with them."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        reader = Reader(path, readers)
        assert reader.ask("__len__") == 0
        for number in range(50):
            kv[b"k"] = b"%d" % number
            assert reader.ask("get", b"k") == b"%d" % number
        assert reader.ask("__len__") == 1
        del kv[b"k"]
        assert reader.ask("get", b"k", b"none") == b"none"
        assert reader.ask("agreeing") == {}
        kv[b"k"] = b"back"
        assert reader.ask("agreeing") == {b"k": b"back"}


def test_a_reader_follows_splits_and_rolls(tmp_path: Path, readers: list[Reader]) -> None:
    """The directory doubles, segments are used again, the log goes on in new files, the index file grows."""
    path = tmp_path / "kv"
    expected: dict[bytes, bytes] = {}
    with opened(path) as kv:
        reader = Reader(path, readers)
        for round_ in range(20):
            for number in range(round_ * 1000, (round_ + 1) * 1000):
                kv[b"%d" % number] = expected[b"%d" % number] = b"%d" % round_ * (number % 40)
            for number in range(0, round_ * 1000, 37):
                kv[b"%d" % number] = expected[b"%d" % number] = b"again %d" % round_
            assert reader.ask("__len__") == len(expected)
            for number in (0, round_ * 500, round_ * 1000 + 999):
                assert reader.ask("get", b"%d" % number) == expected[b"%d" % number]
        figures = kv.stats()
        assert figures["segments"] > 10
        assert figures["index_segments"] > 4
        assert reader.ask("agreeing") == expected


def test_a_reader_follows_to_a_new_index(tmp_path: Path, readers: list[Reader]) -> None:
    """The file it has mapped is no longer the index; what it says must not be believed for a moment."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv[b"old"] = b"1"
        for _ in range(3):
            Reader(path, readers)
        assert [reader.ask("get", b"old") for reader in readers] == [b"1"] * 3
        for round_ in range(3):
            before = seed_of(path)
            twins = list(HashInverter(before).twins(round_ + 1, 24, 5, 64))
            for key in twins:
                kv[key] = b"twin"
            assert seed_of(path) != before
            kv[b"old"] = b"%d" % round_
            for reader in readers:
                assert reader.ask("get", b"old") == b"%d" % round_
                assert reader.ask("get", twins[-1]) == b"twin"
                assert reader.ask("__contains__", b"never") is False
                assert reader.ask("__len__") == len(kv)
        assert readers[0].ask("agreeing") == agreeing(kv)


@pytest.mark.parametrize("look", ["__len__", "list", "agreeing"])
def test_a_reader_that_only_counts_follows_too(tmp_path: Path, readers: list[Reader], look: str) -> None:
    """Not every use goes through the index's directory, where the notice hangs that it was replaced."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv[b"old"] = b"1"
        reader = Reader(path, readers)
        assert len(reader.ask("agreeing")) == 1
        for key in HashInverter(seed_of(path)).twins(9, 24, 5, 64):
            kv[key] = b"twin"
        found = reader.ask(look)
        assert (found if isinstance(found, int) else len(found)) == 65
        kv[b"new"] = b"2"
        found = reader.ask(look)
        assert (found if isinstance(found, int) else len(found)) == 66


def test_a_reader_outlives_writers(tmp_path: Path, readers: list[Reader]) -> None:
    """Closed or killed, and the next one goes on."""
    path = tmp_path / "kv"
    opened(path).close()
    reader = Reader(path, readers)
    expected = {}
    for number in range(6):
        expected[b"%d" % number] = b"x"

        def write(number: int = number) -> KVStore:
            kv = opened(path, "w")
            kv[b"%d" % number] = b"x"
            return kv

        if number % 2:
            killed_after(write)
        else:
            write().close()
        assert reader.ask("agreeing") == expected
    assert contents(path) == expected


def test_a_reader_that_comes_before_the_index(tmp_path: Path, readers: list[Reader]) -> None:
    """After a power cut the first one rebuilds, even if it only wants to read; the others find it done."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv.update({b"%d" % number: b"x" for number in range(5000)})
    for name in ("CONTROL", "INDEX"):
        (path / name).unlink()
    for _ in range(4):
        Reader(path, readers)
    assert [reader.ask("__len__") for reader in readers] == [5000] * 4
    with opened(path, "w") as kv:
        kv[b"new"] = b"1"
        assert [reader.ask("get", b"new") for reader in readers] == [b"1"] * 4


def test_a_reader_does_not_wait_for_ever_where_control_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opens the log takes CONTROL for wrong: each had an index built for his own."""
    monkeypatch.setattr(recovery, "confirm", lambda segments, control: False)
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv["a"] = "1"
    lose(path, "INDEX")
    with opened(path, "r") as reader:
        assert agreeing(reader) == {b"a": b"1"}
        monkeypatch.setattr(attach, "WAIT_SECONDS_MAX", 0.05)
        with opened(path, "w"), pytest.raises(StoreError, match="open it again") as raised:
            len(reader)
        assert raised.value.errno == errno.ETIMEDOUT


def test_a_readers_iteration_is_of_one_moment(tmp_path: Path) -> None:
    """The writer goes on meanwhile."""
    path = tmp_path / "kv"
    expected = {b"%d" % number: b"%d" % number for number in range(2000)}
    with opened(path) as kv:
        kv.update(expected)
        with opened(path, "r") as reader:
            walk = iter(reader.items())
            found = [next(walk) for _ in range(500)]
            kv.clear()
            kv.update({b"%d" % number: b"later" for number in range(4000)})
            assert dict([*found, *walk]) == expected
            assert len(reader) == 4000
