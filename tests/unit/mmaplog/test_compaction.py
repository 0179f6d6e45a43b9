"""Rewriting full segments without the records that nobody wants: what stays, under which numbers, and for
whom.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mmaplog import Compaction, CorruptionError, Entry, Log, LogError, TooOld
from tests.unit.mmapio.processes import in_child, killed_after
from tests.unit.mmaplog.keeping import (
    SEGMENT,
    answering,
    at_moment,
    content,
    died_at,
    failing_at,
    fill,
    filled,
    left_over,
    one_of,
    opened,
    payload,
    segment_starts,
)


def even(entry: Entry) -> bool:
    """Every other record stays."""
    return entry.seq % 2 == 0


def listed(path: Path) -> list[list[object]]:
    """The compacted segments that MANIFEST lists, without their ids."""
    body = json.loads((path / "MANIFEST").read_bytes().split(b"\n")[1])
    return [fields[1:] for fields in body.get("compacted", [])]


# ---- what stays ----


KEPT: dict[str, Callable[[int], bool]] = {
    "all": lambda seq: True,
    "none": lambda seq: False,
    "even": lambda seq: seq % 2 == 0,
    "odd": lambda seq: seq % 2 == 1,
    "first of each segment": lambda seq: seq % 12 == 0,
    "last of each segment": lambda seq: seq % 12 == 11,
    "but the first of each": lambda seq: seq % 12 != 0,
    "but the last of each": lambda seq: seq % 12 != 11,
    "the first segment": lambda seq: seq < 12,
    "not the first segment": lambda seq: seq >= 12,
    "not the second segment": lambda seq: not 12 <= seq < 24,
    "one alone": lambda seq: seq == 17,
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept_stays_under_its_number(tmp_path: Path, name: str) -> None:
    """Whatever the gaps, at the ends of segments and over whole ones, and every way of reading passes over
    them.
    """
    path, keep = tmp_path / "log", KEPT[name]
    model = filled(path, timestamps=True)
    left = {seq: data for seq, data in model.items() if keep(seq) or seq >= 36}
    with opened(path, "r") as reader, opened(path, timestamps=True) as log:
        times = {entry.seq: entry.timestamp for entry in log.replay()}
        done = log.compact(lambda entry: keep(entry.seq))
        assert done.records_removed == 40 - len(left)
        for each in (log, reader):
            assert content(each) == left
            assert (each.first_seq, each.committed) == (0, 40)
            assert {entry.seq: entry.timestamp for entry in each.replay()} == {
                seq: times[seq] for seq in left
            }
            for seq in model.keys() - left.keys():
                with pytest.raises(IndexError, match="removed by a compaction") as raised:
                    each[seq]
                assert not isinstance(raised.value, TooOld)
            assert each.stats()["records"] == len(left)
            if left:
                assert [entry.seq for entry in each.read_many(reversed(left))] == list(reversed(left))
        for start, stop in itertools.product((0, 1, 5, 11, 12, 13, 24, 35, 40), repeat=2):
            if start <= stop:
                expected = [seq for seq in left if start <= seq < stop]
                assert [entry.seq for entry in log.replay(start, stop)] == expected or start == 0
                assert [entry.seq for entry in log.replay(start, stop, reverse=True)] == expected[
                    ::-1
                ] or start == 0
        for seq in left:
            assert log.seek_time(times[seq] or 0) <= seq
            assert times[log.seek_time(times[seq] or 0)] == times[seq]
        fill(log, 10)
    left |= {seq: payload(seq) for seq in range(40, 50)}
    for lost in ((), ("CONTROL",), ("MANIFEST",), ("CONTROL", "MANIFEST")):
        for each_lost in lost:
            (path / each_lost).unlink()
        with opened(path, "r") as reader:
            assert content(reader) == left
        with opened(path) as log:
            assert content(log) == left
    assert left_over(path) == []


def test_only_the_newest_of_each_key_stays(tmp_path: Path) -> None:
    """Or all whose key is None; a newer one in the segment being written counts, and is left alone."""
    path = tmp_path / "log"
    with opened(path) as log:
        for seq in range(40):
            log.append(b"%d" % (seq % 5) + bytes(5000))

        def key(entry: Entry) -> bytes | None:
            name = bytes(entry.payload[:1])
            return None if name == b"4" else name

        newest = {35, 36, 37, 38}
        done = log.compact(key=key)
        stays = {seq for seq in range(40) if seq >= 36 or seq in newest or seq % 5 == 4}
        assert {entry.seq for entry in log.replay()} == stays
        assert done.records_removed == 40 - len(stays)
        assert len(log) == len(stays)
        # With both, an entry must pass both.
        log.compact(lambda entry: entry.seq != 4, key=key)
        assert {entry.seq for entry in log.replay()} == stays - {4}


def test_what_is_said_to_be_done(tmp_path: Path) -> None:
    """The numbers that come back are those of the directory."""
    path = tmp_path / "log"
    filled(path)
    with opened(path) as log:
        before = log.disk_usage()
        done = log.compact(even)
        assert done == Compaction(3, 2, 18, done.bytes_freed)
        assert done.bytes_freed > 0
        assert abs(before - log.disk_usage() - done.bytes_freed) <= 8192
        assert listed(path) == [[0, 24, 12], [24, 36, 6]]
        assert segment_starts(path) == [0, 24, 36]
        # There is nothing left to do, and nothing is done.
        names = sorted(path.iterdir())
        assert log.compact(even) == Compaction(0, 0, 0, 0)
        assert sorted(path.iterdir()) == names


def test_small_neighbours_become_one(tmp_path: Path) -> None:
    """Without a predicate all that is done is to put together what fits."""
    path = tmp_path / "log"
    with opened(path) as log:
        for _ in range(4):
            fill(log, 12)
        log.compact(lambda entry: entry.seq % 6 == 0)
        assert listed(path) == [[0, 36, 6]]
        fill(log, 24)
        log.compact(lambda entry: entry.seq < 36 or entry.seq % 6 == 0)
        assert listed(path) == [[0, 60, 10]]
        assert [entry.seq for entry in log.replay(0, 60)] == list(range(0, 60, 6))
        assert log.verify().damages == ()


def test_a_segment_that_holds_nothing_any_more(tmp_path: Path) -> None:
    """Its numbers are a gap; so may be all of the log but for its last segment."""
    path = tmp_path / "log"
    filled(path)
    with opened(path) as log:
        log.compact(lambda entry: False)
        assert listed(path) == [[0, 36, 0]]
        assert [entry.seq for entry in log.follow(0, timeout=0)] == [36, 37, 38, 39]
        log.truncate_before(20)
        assert (log.first_seq, len(log)) == (20, 4)
        log.truncate_after(30)
        assert (log.first_seq, log.committed, len(log), content(log)) == (20, 30, 0, {})
        assert log.append(b"x") == 30
        assert log.verify().damages == ()
    for lost in ((), ("CONTROL",), ("MANIFEST",)):
        for name in lost:
            (path / name).unlink()
        with opened(path) as log:
            assert list(content(log)) == [30]


@pytest.mark.parametrize("seq", [0, 1, 2, 5, 6, 12, 23, 24, 25, 35, 36, 37])
def test_truncation_through_gaps(tmp_path: Path, seq: int) -> None:
    """Both ends, in a gap and at a record, in the middle of a segment and at its ends."""
    path = tmp_path / "log"
    model = filled(path)
    left = {number: data for number, data in model.items() if number % 3 == 1 or number >= 36}
    for end in ("before", "after"):
        copy = tmp_path / end
        shutil.copytree(path, copy)
        with opened(copy, "r") as reader, opened(copy) as log:
            log.compact(lambda entry: entry.seq % 3 == 1)
            assert content(reader) == left
            getattr(log, f"truncate_{end}")(seq)
            expected = {number: data for number, data in left.items() if (number >= seq) == (end == "before")}
            assert content(log) == content(reader) == expected
            fill(log, 30, "new")
            stop = 40 if end == "before" else seq
            expected |= {number: payload(number, "new") for number in range(stop, stop + 30)}
            assert content(log) == content(reader) == expected
            # And again, over what is new.
            log.compact(lambda entry: entry.seq % 2 == 0)
            rest = content(log)
            assert content(reader) == rest
            assert rest.items() <= expected.items()
            assert {number for number in expected if number % 2 == 0} <= rest.keys()
        for lost in ("CONTROL", "MANIFEST"):
            (copy / lost).unlink()
            with opened(copy) as log:
                found = content(log)
                if lost == "MANIFEST":
                    # What was dropped of a segment's beginning is there again.
                    found = {number: data for number, data in found.items() if number in rest}
                assert found == rest


def test_epochs_are_not_put_together(tmp_path: Path) -> None:
    """Where one begins tells whose numbers were given out again."""
    path = tmp_path / "log"
    with opened(path) as log:
        begun = log.epoch
        fill(log, 20)
        log.truncate_after(15)
        fill(log, 20, "new")
        log.truncate_after(30)
        fill(log, 30, "newer")
        log.compact(lambda entry: entry.seq % 4 == 0)
        assert [fields[:2] for fields in listed(path)] == [[0, 15], [15, 30], [30, 54]]
        assert [log.resume(begun + epoch, 40) for epoch in (0, 1, 2)] == [15, 30, 40]
        assert content(log).keys() >= {0, 4, 8, 12, 16, 20, 24, 28}
    (path / "MANIFEST").unlink()
    with opened(path) as log:
        assert [log.resume(begun + epoch, 40) for epoch in (0, 1, 2)] == [15, 30, 40]


def test_large_records_and_batches(tmp_path: Path) -> None:
    """A record larger than a segment has one of its own; a batch is no batch any more once part of it is
    gone.
    """
    path = tmp_path / "log"
    sizes = [10, 3 * SEGMENT, 100, SEGMENT - 5000, 2 * SEGMENT, 0, 7]
    with opened(path) as log:
        for turn in range(3):
            for seq, size in enumerate(sizes):
                log.append(payload(7 * turn + seq, size=size))
            with log.batch() as batch:
                for number in range(5):
                    batch.append(b"batch %d" % number * 100)
        log.append(bytes(SEGMENT))
        before = content(log)
        log.compact(lambda entry: entry.seq % 12 not in (4, 8))
        expected = {seq: data for seq, data in before.items() if seq % 12 not in (4, 8) or seq == 36}
        assert content(log) == expected
    for name in ("CONTROL", "MANIFEST"):
        (path / name).unlink()
        with opened(path) as log:
            assert content(log) == expected


def test_many_records_between_known_positions(tmp_path: Path) -> None:
    """Where records are is remembered for some of them, which gaps must not confuse."""
    path = tmp_path / "log"
    with opened(path) as log:
        log.append_many([b"%d" % seq for seq in range(12_000)])
        log.flush()
        chance = random.Random(5)
        stays = sorted(chance.sample(range(9_000), 3_000))
        wanted = set(stays)
        log.compact(lambda entry: entry.seq in wanted or entry.seq >= 9_000)
        sealed = segment_starts(path)[-1]
        left = [seq for seq in range(12_000) if seq in wanted or seq >= min(9_000, sealed)]
        with opened(path, "r") as reader:
            for seq in chance.sample(left, 500):
                assert reader[seq].payload == b"%d" % seq
            for seq in chance.sample(range(1, 12_000), 300):
                expected = [number for number in left if seq <= number < seq + 50]
                assert [entry.seq for entry in reader.replay(seq, min(seq + 50, 12_000))] == expected
        assert [entry.seq for entry in log.replay()] == left


def test_the_age_of_records_is_not_that_of_the_compaction(tmp_path: Path) -> None:
    """A segment's time was when it was written anew, so that compaction kept old records from being dropped
    for their age.
    """
    path = tmp_path / "log"
    filled(path)
    before = times_of(path)
    with opened(path) as log:
        log.compact(even)
    after = times_of(path)
    assert after == {base: before[base] for base in (0, 24, 36)}


def times_of(path: Path) -> dict[int, int]:
    """When the segments were made, by their base numbers."""
    return {
        int(name.name[:20]): int.from_bytes(name.read_bytes()[56:64], "little") for name in path.glob("*.seg")
    }


def test_a_segment_that_nobody_sealed_is_no_end_of_it(tmp_path: Path) -> None:
    """A writer killed between its sync and the footer left a segment before which every later compaction
    stopped.
    """
    path = tmp_path / "log"
    filled(path)
    segment = sorted(path.glob("*.seg"))[0]
    data = bytearray(segment.read_bytes())
    data[1536:2560] = bytes(1024)
    segment.write_bytes(data)
    with opened(path) as log:
        assert log.compact(even).segments_replaced == 3
        assert list(content(log)) == [*range(0, 36, 2), 36, 37, 38, 39]


# ---- what callers do ----


def test_what_the_predicate_raises_comes_out(tmp_path: Path) -> None:
    """What was not reached stays as it is, and nothing is left over."""
    path = tmp_path / "log"
    model = filled(path)
    for at in (0, 20, 35):

        def keep(entry: Entry, at: int = at) -> bool:
            if entry.seq == at:
                raise ZeroDivisionError
            return True

        with opened(path) as log:
            with pytest.raises(ZeroDivisionError):
                log.compact(keep)
            with pytest.raises(ZeroDivisionError):
                log.compact(key=keep)
            assert content(log) == model
            assert log.append(b"x") == len(model)
            model[len(model)] = b"x"
        assert left_over(path) == []


def test_a_predicate_may_append(tmp_path: Path) -> None:
    """As anybody else may meanwhile."""
    path = tmp_path / "log"
    model = filled(path)
    with opened(path) as log:

        def keep(entry: Entry) -> bool:
            log.append(payload(log.committed), durable=entry.seq % 7 == 0)
            return even(entry)

        log.compact(keep)
        assert content(log) == {
            seq: payload(seq) for seq in range(76) if seq % 2 == 0 or seq >= 36 or seq not in model
        }


def test_a_predicate_may_not_compact_truncate_or_close(tmp_path: Path) -> None:
    """The log was closed, and MANIFEST written by one who had no lock any more."""
    path = tmp_path / "log"
    filled(path)
    with opened(path) as log:
        acts: list[Callable[[], object]] = [
            log.compact,
            lambda: log.truncate_before(3),
            lambda: log.truncate_after(3),
            lambda: log.retain(max_records=1),
            log.close,
        ]
        refused: list[int] = []

        def keep(entry: Entry) -> bool:
            if entry.seq < len(acts):
                with pytest.raises(LogError, match="interrupted another one"):
                    acts[entry.seq]()
                refused.append(entry.seq)
            return even(entry)

        log.compact(keep)
        assert refused == list(range(len(acts)))
        assert not log.closed
        assert len(content(log)) == 22


def test_a_thread_that_closes_waits(tmp_path: Path) -> None:
    """It closes once the compaction is through."""
    path = tmp_path / "log"
    filled(path)
    log = opened(path)
    closing = threading.Thread(target=log.close)

    def keep(entry: Entry) -> bool:
        if entry.seq == 3:
            closing.start()
        return even(entry)

    log.compact(keep)
    closing.join()
    assert log.closed
    with opened(path) as log:
        assert len(content(log)) == 22


def test_a_signal_handler_that_closes_is_refused(tmp_path: Path) -> None:
    """It runs in the middle of the compaction, in its thread, and would wait for it."""
    path = tmp_path / "log"
    filled(path)

    def work() -> list[str]:
        log = opened(path)
        said: list[str] = []

        def handler(*_: object) -> None:
            try:
                log.close()
            except LogError as error:
                said.append(error.strerror or "")

        signal.signal(signal.SIGUSR1, handler)

        def keep(entry: Entry) -> bool:
            if entry.seq == 3:
                os.kill(os.getpid(), signal.SIGUSR1)
            return even(entry)

        log.compact(keep)
        assert len(content(log)) == 22
        return said

    assert len(in_child(work)) == 1


# ---- others meanwhile ----


def test_readers_between_any_two_steps(memory_path: Path) -> None:
    """Whoever had the log open, and whoever opens it then, has the records before or after, each of them
    readable.
    """
    path = memory_path / "log"
    model = filled(path)
    after = {seq: data for seq, data in model.items() if seq % 2 == 0 or seq >= 36}
    half = {seq: data for seq, data in model.items() if seq % 2 == 0 or seq >= 24}
    for moment in itertools.count(1):
        copy = memory_path / str(moment)
        shutil.copytree(path, copy)
        met: list[int] = []
        with opened(copy) as log, opened(copy, "r") as old, opened(copy, "r") as cold:
            content(old)
            begun, follower = old.replay(), old.follow(0, timeout=0)
            first = [next(begun).seq for _ in range(5)]
            next(follower)

            def look(copy: Path = copy, old: Log = old, met: list[int] = met) -> None:
                met.append(1)
                one_of(content(old), [model, half, after])
                with opened(copy, "r") as new:
                    one_of(content(new), [model, half, after])

            with at_moment(moment, look):
                log.compact(even)
            rest = [entry.seq for entry in begun]
            assert set(range(0, 36, 2)) | {36, 37, 38, 39} <= {*first, *rest}
            assert rest == sorted(rest)
            assert {entry.seq for entry in follower} >= {*range(2, 36, 2), 36, 37, 38, 39}
            for each in (log, old, cold):
                assert content(each) == after
        shutil.rmtree(copy)
        if not met:
            break
    assert moment > 15


def test_another_process_reads_on(tmp_path: Path) -> None:
    """It is told through CONTROL that what it knew of the directory is out of date."""
    path = tmp_path / "log"
    model = filled(path)

    def look(reader: Log, _: str) -> list[int]:
        return list(content(reader))

    with answering(lambda: opened(path, "r"), look) as ask, opened(path) as log:
        assert ask("?") == list(model)
        for step in (2, 3, 5):
            log.compact(lambda entry, step=step: entry.seq % step == 0)  # type: ignore[misc]
            assert ask("?") == list(content(log))


# ---- cut short ----


@pytest.mark.parametrize("lost", [(), ("CONTROL",), ("MANIFEST",), ("CONTROL", "MANIFEST")], ids=str)
def test_killed_at_any_call(memory_path: Path, lost: tuple[str, ...]) -> None:
    """Each group of segments is as it was or as it becomes, also when MANIFEST is lost at the same time."""
    model = filled(memory_path / "log")
    after = {seq: data for seq, data in model.items() if seq % 2 == 0 or seq >= 36}
    half = {seq: data for seq, data in model.items() if seq % 2 == 0 or seq >= 24}
    for moment in itertools.count(1):
        path = memory_path / str(moment)
        shutil.copytree(memory_path / "log", path)
        killed_after(lambda path=path: opened(path))  # type: ignore[misc]
        died = died_at(moment, lambda path=path: opened(path).compact(even))  # type: ignore[misc]
        for name in lost:
            (path / name).unlink()
        if moment % 2:
            with opened(path, "r") as reader:
                one_of(content(reader), [model, half, after])
        with opened(path) as log:
            one_of(content(log), [model, half, after])
            assert len(list(path.glob("*.seg"))) == len(log.segments.listing())
            log.compact(even)
            fill(log, 15, "later")
            found = content(log)
            assert {seq: data for seq, data in found.items() if seq < 40} == after
        assert left_over(path) == []
        with opened(path) as log:
            assert content(log) == found
        shutil.rmtree(path)
        if not died:
            break
    assert moment > 20


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_call_that_fails(memory_path: Path, number: int) -> None:
    """The error comes out, nothing is lost, and it can be done again."""
    model = filled(memory_path / "log")
    after = {seq: data for seq, data in model.items() if seq % 2 == 0 or seq >= 36}
    half = {seq: data for seq, data in model.items() if seq % 2 == 0 or seq >= 24}
    for moment in itertools.count(1):
        path = memory_path / str(moment)
        shutil.copytree(memory_path / "log", path)
        reached: list[int] = []
        with opened(path) as log, opened(path, "r") as reader:
            failed = False
            try:
                with failing_at(moment, number, reached):
                    log.compact(even)
            except OSError as error:
                failed = True
                assert error.errno == number
            assert failed == (reached[0] >= moment)
            assert log.stats()["poison"] == 0
            one_of(content(log), [model, half, after])
            one_of(content(reader), [model, half, after])
            log.append(b"x")
            log.compact(even)
            assert {seq: data for seq, data in content(log).items() if seq < 40} == after
            assert content(reader) == content(log)
            assert len(list(path.glob("*.seg"))) == len(log.segments.listing())
        shutil.rmtree(path)
        if not failed:
            break
    assert moment > 10


def test_damage_is_not_compacted_away(tmp_path: Path) -> None:
    """A record that does not verify is an error, before anything is removed; and so is a compacted segment
    that is damaged.
    """
    path = tmp_path / "log"
    filled(path)
    segment = sorted(path.glob("*.seg"))[1]
    data = bytearray(segment.read_bytes())
    data[4096 + 3 * 5016 + 100] ^= 1
    segment.write_bytes(data)
    with opened(path) as log:
        with pytest.raises(CorruptionError, match="record 15"):
            log.compact(even)
        assert len(log) == 40
    data[4096 + 3 * 5016 + 100] ^= 1
    segment.write_bytes(data)
    with opened(path) as log:
        log.compact(even)
    compacted = sorted(path.glob("*.compact.seg"))[0]
    data = bytearray(compacted.read_bytes())
    data[4096 + 3 * 5016 + 100] ^= 1
    compacted.write_bytes(data)
    with opened(path) as log:
        assert [damage.seq for damage in log.verify().damages] == [5]
        with pytest.raises(CorruptionError, match="offset"):
            log[6]
