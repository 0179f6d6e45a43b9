"""Members that die at any instruction: nothing is stuck, nothing lost, and nobody gets what another has."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmaplog import FlushPolicy, GroupMember, Log, bookmark, claims
from mmaplog import bookmark_format as layout
from mmaplog.bookmark_format import Place
from tests.unit.mmapio.processes import killed_after
from tests.unit.mmaplog.group_crew import judge, storm
from tests.unit.mmaplog.handed_out import seqs


@pytest.fixture
def tmp_path(memory_path: Path) -> Path:
    """In memory: there are thousands of syncs, and none of them matters to what is looked for."""
    return memory_path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A directory for a log."""
    return tmp_path / "log"


@pytest.fixture
def log(path: Path) -> Iterator[Log]:
    """A log of thirty records that is written, without a thread of its own."""
    with Log.open(path, flush_policy=FlushPolicy.NEVER) as made:
        made.append_many([b"%d" % number for number in range(30)])
        yield made


@pytest.mark.parametrize("action", ["take", "commit", "leave", "durable"])
def test_a_change_that_is_cut_short_anywhere(log: Log, path: Path, action: str) -> None:
    """Killed in the middle of storing, mutex in hand: it happened or it did not, and nothing is stuck."""
    for written in [0, 1, 8, 9, 20, 55, 63, 64, 70, 87, 88, 100, 111, 112]:
        name = f"{action}{written}"

        def die(name: str = name, written: int = written) -> None:
            member = Log.open(path, "r").group(name, batch=5)
            seqs(member, 5)
            member.commit(2)
            original = bookmark.Bookmark._write

            def torn(mark: bookmark.Bookmark, at: int, place: Place) -> None:
                data = layout.pack_copy(place, mark._header.file_id ^ at)
                mark.file.update_region(mark._offset(at), data[:written])
                if written >= len(data):
                    original(mark, at, place)
                os.kill(os.getpid(), signal.SIGKILL)

            bookmark.Bookmark._write = torn  # type: ignore[method-assign]
            if action == "take":
                seqs(member, 1)
            elif action == "commit":
                member.commit(4)
            elif action == "durable":
                member.commit(4, durable=True)
            else:
                member.close()

        killed_after(die)
        with log.group(name, batch=50) as member:
            found = seqs(member)
            allowed = [list(range(2, 30))]
            if action in ("commit", "durable"):
                allowed.append(list(range(4, 30)))
            assert found in allowed
            member.commit(durable=True)
            assert member.committed == 30


def test_an_owner_that_died_before_its_sync(log: Log, path: Path) -> None:
    """What it left is synced before the copy beside it is replaced."""

    def die() -> None:
        member = Log.open(path, "r").group("g", batch=5)
        seqs(member, 5)
        member.commit(durable=True)
        seqs(member, 5)
        file = type(member._mark.file)
        file.flush = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign,assignment]
        member.commit(durable=True)

    killed_after(die)
    with log.group("g") as member:
        assert member._mark._settled, "who finds out, syncs"
        assert not member._mutex.owner_died
        assert member.committed == 10


@pytest.mark.parametrize("seed", range(3))
def test_members_that_are_killed(tmp_path: Path, seed: int) -> None:
    """At moments of chance: every entry is processed, none by two who live, none again that was committed."""
    assert storm(tmp_path, seed, count=1500, kills=25) == []


def everybody_is_gone() -> None:
    """Claims of the living are taken over."""
    GroupMember._is_gone = lambda *_: True  # type: ignore[method-assign]


def no_mutex() -> None:
    """Changes are made at the same time."""

    class Nothing:
        owner_died = False

        def __init__(self, *_: object) -> None:
            pass

        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            pass

    from mmaplog import group

    vars(group)["SharedMutex"] = Nothing


def committed_too_early() -> None:
    """What is taken is committed before it is handed out."""
    original = claims.take_next

    def take(place: Place, member: int, count: int, end: int) -> bool:
        found = original(place, member, count, end)
        for claim in place.claims:
            if claim.member == member and claim.stop - claim.at > 1:
                claim.at = claim.stop - 1
        return found

    claims.take_next = take


@pytest.mark.parametrize("defect", [everybody_is_gone, no_mutex, committed_too_early])
def test_a_defect_is_caught(tmp_path: Path, defect: Callable[[], object]) -> None:
    """Control: a storm that finds nothing wrong with these would find nothing at all."""
    for seed in range(5):
        directory = tmp_path / str(seed)
        directory.mkdir()
        if storm(directory, seed, count=600, kills=10, defect=defect):
            return
    raise AssertionError("not caught")


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["1 given 0", "1 committed 0 1"], None),
        (["1 given 0", "1 killed", "2 given 0"], None),
        (["1.0 given 0", "1 killed", "2 given 0"], None),
        (["1.0 given 0", "1.0 killed", "1.1 given 0"], None),
        (["1.1 given 0", "1.0 killed", "2.0 given 0"], "record 0 was given to 2.0, and to 1.1, who lived"),
        (["1 given 0", "2 given 0"], "record 0 was given to 2, and to 1, who lived"),
        (["1 given 0", "1 given 0"], "record 0 was given to 1, and to 1, who lived"),
        (["1 given 0", "1 committed 0 1", "1 killed", "2 given 0"], "after 1 had committed it"),
        ([], "record 0 was given to nobody"),
        (["1 given 0", "1 failed oh"], "1 failed oh"),
    ],
)
def test_the_judge(lines: list[str], complaint: str | None) -> None:
    """Control: of what the storms are judged by."""
    found = judge(lines, 1)
    assert found == [] if complaint is None else any(complaint in each for each in found)
