"""Names of consumers, and what is made, left and removed in the directory of their log."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mmapio import _os
from mmaplog import FlushPolicy, Locked, Log, LogError, bookmark
from mmaplog.consumer import slowest
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapio.processes import outcome, unprivileged
from tests.unit.mmaplog.handed_out import DEADLINE, seqs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A directory for a log."""
    return tmp_path / "log"


@pytest.fixture
def log(path: Path) -> Iterator[Log]:
    """A log of ten records that is written, without a thread of its own."""
    with Log.open(path, flush_policy=FlushPolicy.NEVER) as made:
        made.append_many([b"%d" % number for number in range(10)])
        yield made


@pytest.mark.parametrize("name", ["a", "_", "0", "A-b.c_9", "x" * 100, "a.consumer", "x.consumer.tmp"])
def test_names(log: Log, path: Path, name: str) -> None:
    """Whatever is no danger to a directory."""
    log.consumer(name).close()
    assert (path / f"{name}.consumer").stat().st_mode & 0o777 == 0o600
    assert [each.name for each in log.consumers()] == [name]
    assert not list(path.glob("*.tmp"))
    log.remove_consumer(name)
    assert log.consumers() == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x" * 101,
        ".",
        "..",
        ".a",
        "-a",
        "a/b",
        "/a",
        "a\0",
        "a\n",
        "a b",
        "\u00e9",
        "a\\b",
        "a:b",
        "\ud800",
    ],
)
def test_names_that_are_none(log: Log, path: Path, name: str) -> None:
    """Refused before anything is made, opened or removed."""
    with unchanged(path):
        for call in (log.consumer, log.group, log.remove_consumer):
            with pytest.raises(ValueError, match="cannot name a consumer"):
                call(name)


@pytest.mark.parametrize("name", [b"a", None, 1, Path("a")])
def test_names_that_are_no_text(log: Log, name: object) -> None:
    """As above."""
    for call in (log.consumer, log.group, log.remove_consumer):
        with pytest.raises(TypeError, match="must be a str, not"):
            call(name)  # type: ignore[arg-type]


def test_options_that_make_no_sense(log: Log, path: Path) -> None:
    """Refused before anything is made."""
    with unchanged(path):
        with pytest.raises(ValueError, match="too_old must be 'raise' or 'skip', not 'ignore'"):
            log.consumer("c", too_old="ignore")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            log.consumer("c", start="1")  # type: ignore[arg-type]


def test_removing(log: Log) -> None:
    """It begins anew, and one that is not there cannot be removed."""
    with log.consumer("c") as consumer:
        seqs(consumer)
        consumer.commit()
    log.remove_consumer("c")
    assert log.consumers() == []
    assert slowest(log) is None
    with pytest.raises(FileNotFoundError):
        log.remove_consumer("c")
    with log.consumer("c") as consumer:
        assert consumer.position == 0


def test_a_name_is_of_one_kind(log: Log) -> None:
    """A group's file says something else."""
    log.consumer("c").close()
    log.group("g").close()
    with pytest.raises(LogError, match="'c' is a consumer of this log, not a group; use another name"):
        log.group("c")
    with pytest.raises(LogError, match="'g' is a group of this log, not a consumer; use another name"):
        log.consumer("g")
    assert [(each.name, each.kind, each.holder) for each in log.consumers()] == [
        ("c", "consumer", None),
        ("g", "group", None),
    ]


def test_a_new_log_has_no_consumers(path: Path) -> None:
    """Positions of the old one mean nothing in it, and a consumer that was half made goes too."""
    with Log.open(path) as log:
        log.append_many([b"x"] * 5)
        for name in ("a", "b"):
            log.consumer(name).close()
        log.group("g").close()
    (path / "c.consumer.tmp").write_bytes(b"half")
    (path / "c.consumer.bak").write_bytes(b"mine")
    with Log.open(path, "n") as log:
        assert log.consumers() == []
        assert sorted(each.name for each in path.glob("*consumer*")) == ["c.consumer.bak"]


def test_many_make_one_at_the_same_time(log: Log, path: Path) -> None:
    """One of them gets it, the others are told who; and one file is made."""
    ready = threading.Barrier(8)

    def make(results: list[str]) -> None:
        with Log.open(path, "r") as reader:
            ready.wait(DEADLINE)
            try:
                made = reader.consumer("c")
            except Locked:
                results.append("Locked")
            else:
                results.append("made")
                done.wait(DEADLINE)
                made.close()

    results: list[str] = []
    done = threading.Event()
    threads = [threading.Thread(target=make, args=(results,)) for _ in range(8)]
    for each in threads:
        each.start()
    while len(results) < 8:
        threads[0].join(0.01)
    done.set()
    for each in threads:
        each.join(DEADLINE)
    assert sorted(results) == ["Locked"] * 7 + ["made"]
    assert [each.name for each in path.glob("*.consumer*")] == ["c.consumer"]


def test_one_that_is_removed_while_it_is_opened(
    log: Log, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between finding the file and holding it: what is held must be what others find by the name."""
    log.consumer("c").close()
    original = bookmark.hold
    removed: list[Path] = []

    def hold(*arguments: Any, **options: Any) -> None:
        if not removed:
            removed.append(path / "c.consumer")
            removed[0].unlink()
        original(*arguments, **options)

    monkeypatch.setattr(bookmark, "hold", hold)
    with log.consumer("c") as consumer:
        seqs(consumer, 3)
        consumer.commit()
        with pytest.raises(Locked):
            log.consumer("c")
    assert [each.committed for each in log.consumers()] == [3]


def test_what_a_killed_maker_left(log: Log, path: Path) -> None:
    """A file that has not its name yet is none: the next one makes it."""
    for left in (b"", b"x" * 100, bytes(5000)):
        (path / "c.consumer.tmp").write_bytes(left)
        with log.consumer("c") as consumer:
            assert seqs(consumer, 1) == [0]
        assert not (path / "c.consumer.tmp").exists()
        log.remove_consumer("c")


def test_making_one_is_synced_before_it_has_its_name(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name without content would be damage after a power cut."""
    done: list[str] = []

    class Recorded:
        def __getattr__(self, name: str) -> object:
            found = getattr(_os, name)
            if name not in ("sync", "replace_file", "write_at", "grow"):
                return found

            def call(*arguments: object) -> object:
                done.append(name)
                return found(*arguments)

            return call

    monkeypatch.setattr(bookmark, "_os", Recorded())
    log.consumer("c").close()
    assert done == ["grow", "write_at", "write_at", "write_at", "sync", "replace_file", "sync"]


def test_where_nothing_may_be_written(path: Path) -> None:
    """A consumer cannot be made there; one that may be written can be used."""
    with Log.open(path) as log:
        log.append_many([b"x"] * 5)
        log.consumer("old").close()
        log.consumer("mine").close()
    (path / "old.consumer").chmod(0o400)
    path.chmod(0o500)

    def use() -> list[tuple[str, str]]:
        with Log.open(path, "r") as reader:
            found = [outcome(partial(reader.consumer, each)) for each in ("new", "old")]
            with reader.consumer("mine") as consumer:
                seqs(consumer, 3)
                consumer.commit()
            assert [(each.name, each.committed) for each in reader.consumers()] == [("mine", 3), ("old", 0)]
            found.append(outcome(lambda: reader.remove_consumer("mine")))
        return found

    try:
        assert [kind for kind, _ in unprivileged(use)] == ["PermissionError"] * 3
    finally:
        path.chmod(0o700)


def test_a_reader_that_is_alone_with_what_it_found(path: Path) -> None:
    """It sees nothing that comes, and what it says of the log is nobody else's truth."""
    with Log.open(path) as log:
        log.append_many([b"x"] * 5)
    (path / "CONTROL").unlink()
    path.chmod(0o500)

    def use() -> list[tuple[str, str]]:
        with Log.open(path, "r") as reader:
            # What is there it does see, without waiting for more.
            assert [entry.seq for entry in reader.follow(0, timeout=0)] == list(range(5))
            return [
                outcome(lambda: reader.consumer("c")),
                outcome(lambda: reader.group("g")),
                outcome(lambda: next(reader.follow())),
                outcome(lambda: reader.follow().wait(timeout=0.01)),
            ]

    try:
        found = unprivileged(use)
        assert len(found) == 4
        for kind, text in found:
            assert kind == "LogError"
            assert "this reader may not write" in text
    finally:
        path.chmod(0o700)


def test_one_that_could_not_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk had its half of the file, until somebody made one of the same name."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Log.open(tmp_path / "log", flush_policy=FlushPolicy.MANUAL) as log:
        monkeypatch.setattr(_os, "grow", full)
        with pytest.raises(OSError, match="No space"):
            log.consumer("mailer")
        assert not list((tmp_path / "log").glob("*mailer*"))
        monkeypatch.undo()
        assert log.stats()["consumers"] == 0
        log.consumer("mailer").close()
        assert log.stats()["consumers"] == 1
