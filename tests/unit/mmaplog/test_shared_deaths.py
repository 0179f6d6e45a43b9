"""One of several writers dies, or removes records, and the others go on."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import shutil
import signal
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mmapio import _os
from mmaplog import Log, Poisoned
from tests.crash.ack_page import AckPage
from tests.crash.child import Child
from tests.support.waiting import PATIENCE_SECONDS
from tests.unit.mmapio.processes import killed_after, outcome
from tests.unit.mmaplog.keeping import (
    content,
    died_at,
    failing_at,
    fill,
    left_over,
    one_of,
    opened,
    payload,
    shared,
)


@pytest.fixture
def tmp_path(memory_path: Path) -> Path:
    """In memory: there are thousands of syncs, and none of them matters to what is looked for."""
    return memory_path


# ---- somebody dies ----


def test_killed_at_any_call_of_a_roll(tmp_path: Path) -> None:
    """A segment that was made, and not gone on with, stayed in the way of the others: they looked for
    records in it that were elsewhere.
    """
    for moment in itertools.count(1):
        path = tmp_path / str(moment)
        with shared(path) as log, shared(path) as other, opened(path, "r") as reader:
            fill(log, 11)
            other.append(payload(11))
            died = died_at(
                moment, lambda path=path: shared(path).append_many([payload(seq) for seq in range(12, 25)])
            )  # type: ignore[misc]
            begun = log.committed
            assert log.append(b"small") == begun
            fill(other, 30)
            model = {seq: payload(seq) for seq in range(begun + 31)} | {begun: b"small"}
            for each in (log, other, reader):
                one_of(content(each), [model])
            other.flush()
        (path / "CONTROL").unlink()
        with opened(path) as log:
            one_of(content(log), [model])
        assert left_over(path) == []
        if not died:
            break
    assert moment > 6


def die_holding(log: Log, path: Path, garbage: bytes) -> None:
    """Die with the mutex in hand, some bytes behind the end of the log, as in the middle of an append of so
    many.
    """
    log.control.mutexes()[0].acquire()
    segment_id, _ = log.end_of_tail
    _, _, end, _ = log.control.tail
    (tail,) = path.glob(f"*-{segment_id:016x}.seg")
    with (path / "CONTROL").open("r+b") as control:
        control.seek(4096 + 56)
        control.write(struct.pack("<Q", end + len(garbage)))
    with tail.open("r+b") as file:
        file.seek(end)
        file.write(garbage)
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_was_half_written_is_zeroed(tmp_path: Path) -> None:
    """Also where the dead one had grown the file beyond what the others know of it: those bytes stayed, to
    be mixed with later ones by a power cut.
    """
    path = tmp_path / "log"
    with shared(path, segment_bytes=1 << 20) as log:
        log.append(b"x")

        def die() -> None:
            mine = shared(path)
            fill(mine, 100)
            die_holding(mine, path, b"\xab" * 3000)

        killed_after(die)
        assert log.append(b"y") == 101
        assert log.append(b"z") == 102
        (segment,) = path.glob("*.seg")
        assert b"\xab" * 50 not in segment.read_bytes()
        assert len(content(log)) == 103
    (path / "CONTROL").unlink()
    with opened(path) as log:
        assert len(content(log)) == 103


@pytest.mark.parametrize("kept", [True, False])
def test_killed_at_any_call_of_a_truncation(tmp_path: Path, kept: bool) -> None:
    """MANIFEST said already that the end was to be dropped, and the others appended to it: the next opening
    dropped that too.
    """
    for moment in itertools.count(1):
        path = tmp_path / str(moment)
        with shared(path) as log, shared(path) as other, opened(path, "r") as reader:
            fill(log, 40)
            assert len(content(other)) == len(content(reader)) == 40
            epoch = log.epoch
            died = died_at(moment, lambda path=path: shared(path).truncate_after(14))  # type: ignore[misc]
            one_of(content(reader), [{seq: payload(seq) for seq in range(stop)} for stop in (14, 40)])
            begun = other.append(b"after") if kept else 0
            if kept:
                assert begun in (14, 40)
            else:
                # The other ends are in its way, too.
                log.truncate_before(3)
                log.compact(lambda entry: entry.seq != 5)
                begun = log.append(b"after")
            fill(log, 20, "new")
            model = {seq: payload(seq) for seq in range(begun)} | {begun: b"after"}
            model |= {seq: payload(seq, "new") for seq in range(begun + 1, begun + 21)}
            if not kept:
                for seq in (0, 1, 2, 5):
                    del model[seq]
            for each in (log, other, reader):
                one_of(content(each), [model])
            log.flush()
        with opened(path) as log:
            one_of(content(log), [model])
            assert log.epoch == epoch + (begun == 14)
        (path / "CONTROL").unlink()
        with opened(path) as log:
            one_of(content(log), [model])
        assert left_over(path) == []
        shutil.rmtree(path)
        if not died:
            break
    assert moment > 20


@pytest.mark.parametrize("work", ["compact", "truncate"])
def test_killed_at_any_call_of_removing_records(tmp_path: Path, work: str) -> None:
    """The others go on, and may do the same, or something else, at once."""
    for moment in itertools.count(1):
        path = tmp_path / str(moment)
        with shared(path) as log, shared(path) as other, opened(path, "r") as reader:
            fill(log, 40)
            log.flush()
            before = content(other)

            def remove(path: Path = path) -> None:
                mine = shared(path)
                if work == "compact":
                    mine.compact(lambda entry: entry.seq % 2 == 0)
                else:
                    mine.truncate_before(26)

            died = died_at(moment, remove)
            for each in (reader, other):
                found = content(each)
                assert found.items() <= before.items()
            fill(other, 5)
            if moment % 2:
                log.truncate_before(3)
                assert log.first_seq in (3, 26)
            log.compact(lambda entry: entry.seq % 2 == 0)
            first = log.first_seq
            other.truncate_before(15)
            assert other.first_seq == max(first, 15)
            found = content(log)
            assert content(other) == content(reader) == found
            assert len(list(path.glob("*.seg"))) == len(log.segments.listing())
        with opened(path) as log:
            assert content(log) == found
        shutil.rmtree(path)
        if not died:
            break
    assert moment > 8


def test_killed_at_random(tmp_path: Path) -> None:
    """At any instruction: what was acknowledged is there, once, each batch whole or not at all, and the
    rest of them go on.
    """
    path = tmp_path / "log"
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    pages = [AckPage() for _ in range(3)]

    def write(name: int, page: AckPage) -> None:
        with shared(path, segment_bytes=1 << 20) as log:
            while True:
                number = page.words[0]
                if number % 3 == 2:
                    log.append_many([b"%d:%d:%d" % (name, number, part) for part in range(200)], atomic=True)
                else:
                    log.append(
                        b"%d:%d:" % (name, number) + bytes(number * 37 % 9000), durable=number % 16 == 0
                    )
                page.words[0] = number + 1

    def start(name: int) -> Child:
        return Child(lambda _: write(name, pages[name]))

    with shared(path, segment_bytes=1 << 20) as log:
        children = [start(name) for name in range(3)]
        for _ in range(25):
            time.sleep(chance.random() * 0.05)
            victim = chance.randrange(3)
            assert children[victim].kill() == "", f"seed {seed}"
            log.append(b"parent")
            children[victim] = start(victim)
        for child in children:
            assert child.kill() == "", f"seed {seed}"
        log.append(b"parent")
        found: dict[tuple[int, int], list[int]] = {}
        for entry in log.replay():
            if entry.payload != b"parent":
                fields = bytes(entry.payload[:30]).split(b":")
                part = int(fields[2]) if fields[2].isdigit() else -1
                found.setdefault((int(fields[0]), int(fields[1])), []).append(part)
        for name, page in enumerate(pages):
            acknowledged = page.words[0]
            for number in range(acknowledged):
                assert (name, number) in found, f"seed {seed}: {name} lost {number} of {acknowledged}"
        # One whose writer died before it could say so may be there twice: it was done again.
        for (name, number), parts in found.items():
            whole = list(range(200)) if number % 3 == 2 else [-1]
            assert parts in (whole, whole * 2, sorted(whole * 2)) or len(parts) % len(whole) == 0, (
                f"seed {seed}: {name} {number}"
            )
        assert log.verify().damages == ()
        total = len(log)
    with opened(path) as log:
        assert len(log) == total
        assert log.verify().damages == ()
    (path / "CONTROL").unlink()
    with opened(path) as log:
        assert len(log) == total


def test_all_of_them_die(tmp_path: Path) -> None:
    """Who comes then settles what the last one left, sharing or not."""
    for mode in ("shared", "alone"):
        path = tmp_path / mode

        def die(path: Path = path) -> None:
            log = shared(path)
            fill(log, 20)
            die_holding(log, path, b"\xcd" * 100)

        killed_after(die)
        with (shared if mode == "shared" else opened)(path) as log:
            assert not log.recovered
            assert log.append(b"x") == 20
            assert len(content(log)) == 21
        with shared(path) as log:
            assert log.append(b"y") == 21
            assert len(content(log)) == 22


# ---- removing while others append ----


def test_removing_records_while_others_append(tmp_path: Path) -> None:
    """By one of them, while another does the same; readers see nothing that never was."""
    path = tmp_path / "log"
    page = AckPage()

    def write(_: object) -> None:
        with shared(path) as log:
            while True:
                log.append(b"%d/" % page.words[0] + bytes(4000))
                page.words[0] += 1
                # Not faster than anybody can remove.
                time.sleep(0.001)

    def remove(_: object) -> None:
        with shared(path) as log:
            for turn in itertools.count():
                if turn % 2:
                    log.compact(lambda entry: entry.seq % 5 != 0)
                else:
                    log.retain(max_records=60)
                page.words[1] += 1

    shared(path).close()
    children = [Child(write), Child(remove), Child(remove)]
    try:
        with shared(path) as log, opened(path, "r") as reader:
            deadline = time.monotonic() + PATIENCE_SECONDS
            last = -1
            while page.words[1] < 30 and time.monotonic() < deadline:
                try:
                    numbers = [
                        (entry.seq, int(bytes(entry.payload[:12]).split(b"/")[0]))
                        for entry in reader.replay()
                    ]
                except IndexError:
                    # What it was at is gone.
                    continue
                assert all(seq == number for seq, number in numbers)
                if numbers:
                    assert numbers[-1][0] >= last
                    last = numbers[-1][0]
                log.verify()
            assert page.words[1] > 0
    finally:
        said = [child.kill() for child in children]
    assert said == ["", "", ""]
    with opened(path) as log:
        content(log)


def test_a_truncation_that_fails_stops_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that had waited for the mutex meanwhile appended to what was being dropped."""
    path = tmp_path / "log"
    stopped = 0
    for moment in itertools.count(1):
        with shared(path) as log, shared(path) as other:
            log.truncate_after(log.first_seq)
            fill(log, 30)
            said: list[str] = []
            thread = threading.Thread(
                target=lambda other=other, said=said: said.append(outcome(lambda: other.append(b"x"))[0])
            )  # type: ignore[misc]

            reached: list[int] = []
            grow = _os.grow

            def begin(*arguments: Any, grow: Any = grow, thread: threading.Thread = thread) -> None:
                # The new segment is made with the mutex in hand.
                if thread.ident is None:
                    thread.start()
                grow(*arguments)

            with monkeypatch.context() as patched, contextlib.suppress(OSError):
                patched.setattr(_os, "grow", begin)
                with failing_at(moment, errno.EIO, reached):
                    log.truncate_after(14)
            if thread.ident is None:
                thread.start()
            thread.join()
            poisoned = log.stats()["poison"] != 0
            stopped += poisoned
            # The call that fails may be one of the append that follows.
            assert said in ([["Poisoned"]] if poisoned else [[""], ["OSError"]])
            if poisoned:
                with pytest.raises(Poisoned):
                    other.append(b"y")
            else:
                assert len(content(other)) in (14, 15, 30, 31)
            begun = b'"cut"' in (path / "MANIFEST").read_bytes()
        with opened(path) as log:
            if poisoned:
                # A sync that fails before MANIFEST says that it has begun stops the others, too.
                assert len(content(log)) in ((14,) if begun else (14, 30))
        if reached[0] < moment:
            break
    assert stopped > 0
