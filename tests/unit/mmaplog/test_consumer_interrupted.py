"""A consumer or member whose call ended before any line of it: nothing is left out, and commits are what they
say.
"""

from __future__ import annotations

import linecache
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from mmaplog import FlushPolicy, Log, bookmark, claims, consumer, group
from mmaplog import bookmark_format as layout
from mmaplog.consumer import Consumer
from mmaplog.group import GroupMember
from tests.unit.mmapio.processes import in_child
from tests.unit.mmaplog.handed_out import seqs

#: Whose lines are interrupted.
FILES = {str(each.__file__) for each in (bookmark, claims, consumer, group)}
#: More than any of these calls has.
LINES_MAX = 400


@pytest.fixture
def tmp_path(memory_path: Path) -> Path:
    """In memory: there are hundreds of logs."""
    return memory_path


class Interrupted(BaseException):
    """As a signal's handler raises."""


def interrupted(call: Callable[[], object], line: int, *, keep: bool = False) -> bool:
    """Call it, and raise before the line with this number, of those that are run. False when there are fewer.

    The exception is raised where it is to be kept.
    Not where a ``with`` begins or ends: there no signal comes between, and a line seems to.
    """
    left = line

    def at_line(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and not text.lstrip().startswith("with "):
            left -= 1
            if left == 0:
                raise Interrupted
        return at_line

    def at_call(frame: FrameType, _: str, __: object) -> Any:
        return at_line if frame.f_code.co_filename in FILES else None

    sys.settrace(at_call)
    try:
        call()
    except Interrupted:
        if keep:
            raise
        return True
    finally:
        sys.settrace(None)
    return False


def each_line(tmp_path: Path, count: int = 20) -> Iterator[tuple[int, Log]]:
    """A log of its own for each line of a call, until one is told that there are no more."""
    for line in range(1, LINES_MAX):
        with Log.open(tmp_path / str(line), flush_policy=FlushPolicy.NEVER) as log:
            log.append_many([b"old"] * count)
            yield line, log
    raise AssertionError(f"no call has {LINES_MAX} lines")


def opened(log: Log, kind: str) -> Consumer | GroupMember:
    """A consumer, or the member of a group."""
    return log.consumer("s") if kind == "consumer" else log.group("s", batch=4)


KINDS = pytest.mark.parametrize("kind", ["consumer", "group"])


@KINDS
@pytest.mark.parametrize("cut", [False, True])
def test_no_entry_is_left_out(tmp_path: Path, kind: str, cut: bool) -> None:
    """What was being fetched comes the next time; whoever was cut off meanwhile goes back all the same."""
    for line, log in each_line(tmp_path):
        with opened(log, kind) as subscription:
            assert seqs(subscription, 6) == list(range(6))
            if cut:
                log.truncate_after(5)
                log.append_many([b"new"] * 15)
            more = interrupted(subscription.poll, line)
            if isinstance(subscription, Consumer):
                following, epoch = subscription.position, subscription._place.epoch
            else:
                following, epoch = max(each.given for each in subscription._hands), subscription._epoch
            # What it says was handed out does not come again, though the caller has not got it.
            following = following if epoch == log.epoch else 5
            assert 6 - cut <= following <= 7 - cut
            entries = list(iter(subscription.poll, None))
            assert [each.seq for each in entries] == list(range(following, 20))
            assert all(bytes(each.payload) == (b"new" if cut else b"old") for each in entries)
            subscription.commit()
        with opened(log, kind) as subscription:
            assert subscription.committed == 20
        if not more:
            return


@KINDS
@pytest.mark.parametrize("durable", [False, True])
def test_a_commit_is_done_or_not(tmp_path: Path, kind: str, durable: bool) -> None:
    """And the next one counts, whatever became of this one; also one that takes back."""
    for line, log in each_line(tmp_path):
        with opened(log, kind) as subscription:
            seqs(subscription, 10)
            more = interrupted(lambda: subscription.commit(durable=durable), line)
            if isinstance(subscription, Consumer):
                subscription.commit(5, durable=True)
                expected = 5
            else:
                seqs(subscription, 4)
                subscription.commit(durable=True)
                expected = 14
            assert subscription.committed == expected
        with opened(log, kind) as subscription:
            assert subscription.committed == expected
        if not more:
            return


def test_what_was_not_synced_is_not_taken_for_it(tmp_path: Path) -> None:
    """A flush after a commit that was cut short has something to sync."""
    for line, log in each_line(tmp_path):
        log.flush()
        with log.consumer("c") as subscription:
            seqs(subscription, 5)
            subscription.commit(durable=True)
            seqs(subscription, 5)
            more = interrupted(subscription.commit, line)
            reached = subscription.committed
            subscription.flush()
            copies = [subscription._mark._copy(at) for at in range(layout.COPIES)]
            durable = max((each for each in copies[layout.LIVE_COPIES :] if each), key=lambda each: each.turn)
            assert (durable.seq, subscription._mark.load().seq) == (reached, reached)
        if not more:
            return


@KINDS
def test_closing_once_more_lets_go_of_the_name(tmp_path: Path, kind: str) -> None:
    """It was closed by then, and held for as long as anybody had it."""
    for line, log in each_line(tmp_path):
        subscription = opened(log, kind)
        seqs(subscription, 10)
        subscription.commit()
        more = interrupted(subscription.close, line)
        subscription.close()
        with opened(log, kind) as again:
            assert again.committed == 10
            assert seqs(again) == list(range(10, 20))
        if not more:
            return


def test_a_seek_is_done_or_not(tmp_path: Path) -> None:
    """What comes next is what it says comes next."""
    for line, log in each_line(tmp_path):
        with log.consumer("c") as subscription:
            seqs(subscription, 10)
            more = interrupted(lambda: subscription.seek(2), line)
            position = subscription.position
            assert position in (2, 10)
            assert seqs(subscription, 1) == [position]
        if not more:
            return


def test_no_entry_goes_to_two_members(tmp_path: Path) -> None:
    """One that was cut short while it went back in a log that was cut does not hand out what others take."""
    for line, log in each_line(tmp_path):
        with log.group("g", batch=20) as first, log.group("g", batch=20) as second:
            seqs(first, 3)
            log.truncate_after(5)
            log.append_many([b"new"] * 15)
            more = interrupted(first.poll, line)
            others = {each.seq for each in iter(second.poll, None)}
            mine = {each.seq for each in iter(first.poll, None)}
            assert not others & mine
            assert set(range(5, 20)) <= others | mine
        if not more:
            return


@KINDS
def test_no_entry_is_left_out_where_a_signal_comes(tmp_path: Path, kind: str) -> None:
    """Its handler runs where a call ends, also the last one of a poll: what was not returned comes next."""

    class Alarm(Exception):
        pass

    def read() -> tuple[bool, int]:
        armed = False

        def ring(*_: object) -> None:
            if armed:
                raise Alarm

        signal.signal(signal.SIGALRM, ring)
        rung, found, count = 0, 0, 50_000
        with Log.open(tmp_path / "log", flush_policy=FlushPolicy.NEVER) as log:
            log.append_many([b"x"] * count)
            with log.consumer("s") if kind == "consumer" else log.group("s", batch=count) as subscription:
                signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
                while rung < 400 and found < count:
                    try:
                        armed = True
                        entry = subscription.poll()
                        armed = False
                    except Alarm:
                        armed = False
                        rung += 1
                        continue
                    if entry is None or entry.seq != found:
                        return False, found
                    found += 1
                signal.setitimer(signal.ITIMER_REAL, 0)
        return True, found

    whole, found = in_child(read)
    assert whole, f"record {found} was left out"


def test_a_commit_that_takes_back_after_one_that_was_cut_short_is_stored(tmp_path: Path) -> None:
    """It looked as if the file said so already."""
    for line, log in each_line(tmp_path):
        with log.consumer("c") as subscription:
            seqs(subscription, 5)
            subscription.commit()
            seqs(subscription, 5)
            more = interrupted(subscription.commit, line)
            subscription.commit(5)
            assert (subscription.committed, subscription._mark.load().seq) == (5, 5)
        if not more:
            return


def test_a_name_is_let_go_of_though_the_exception_is_kept(tmp_path: Path) -> None:
    """It refers to all that the call that was cut short had in hand."""
    for line, log in each_line(tmp_path):
        subscription = log.consumer("c")
        more = False
        try:
            more = interrupted(subscription.close, line, keep=True)
        except Interrupted as error:
            subscription.close()
            log.consumer("c").close()
            assert error.__traceback__ is not None
            more = True
        if not more:
            return


@pytest.mark.parametrize("ask", ["poll", "wait"])
def test_what_was_taken_by_a_call_that_was_cut_short_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    """All there was had been taken: the next call found no more to take, and said that there was none."""
    with Log.open(tmp_path / "log", flush_policy=FlushPolicy.NEVER) as log:
        log.append_many([b"x"] * 10)
        with log.group("g", batch=100) as member:
            store = type(member._mark).store

            def cut_short(mark: bookmark.Bookmark, place: layout.Place) -> None:
                store(mark, place)
                raise KeyboardInterrupt

            with monkeypatch.context() as patched:
                patched.setattr(type(member._mark), "store", cut_short)
                with pytest.raises(KeyboardInterrupt):
                    member.poll()
            if ask == "wait":
                assert member.wait(0)
            assert [entry.seq for entry in iter(member.poll, None)] == list(range(10))
