"""Dropping the oldest records, and the newest: what is left, for whom, and when it is cut short."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mmaplog import CorruptionError, FormatError, Log, LogError, TooOld
from tests.unit.mmapio.processes import in_child
from tests.unit.mmaplog.damage import patch_segment
from tests.unit.mmaplog.keeping import (
    LOST,
    answering,
    at_moment,
    content,
    fill,
    filled,
    left_over,
    lose,
    one_of,
    opened,
    payload,
    segment_starts,
)

# With twelve records in a segment: both ends of the log, of segments, and something in between.
EDGES = [0, 1, 11, 12, 13, 23, 24, 35, 36, 39, 40]


# ---- at the beginning ----


@pytest.mark.parametrize("seq", EDGES)
def test_records_below_a_number_go(tmp_path: Path, seq: int) -> None:
    """Every edge of the log and of its segments, in the handle that did it and in the next."""
    path = tmp_path / "log"
    model = filled(path)
    left = {number: model[number] for number in range(seq, 40)}
    with opened(path, "r") as reader, opened(path) as log:
        log.truncate_before(seq)
        for each in (log, reader):
            assert (each.first_seq, each.committed) == (seq, 40)
            assert content(each) == left
            if seq:
                for number in (0, seq - 1):
                    with pytest.raises(TooOld, match="truncated"):
                        each[number]
                with pytest.raises(TooOld):
                    each.replay(max(seq - 1, 1), 40) if seq > 1 else each[0]
        # Only whole segments are unlinked, never the one that is written to.
        assert segment_starts(path) == [base for base in (0, 12, 24, 36) if base + 12 > seq or base == 36]
        log.append(payload(40))
        assert reader[40].seq == 40
    left[40] = payload(40)
    with opened(path) as log:
        assert not log.recovered
        assert (log.first_seq, content(log)) == (seq, left)
    assert left_over(path) == []


@pytest.mark.parametrize("seq", EDGES)
def test_where_the_log_begins_is_known_without_control(tmp_path: Path, seq: int) -> None:
    """After a power cut MANIFEST alone says it."""
    path = tmp_path / "log"
    model = filled(path)
    with opened(path) as log:
        log.truncate_before(seq)
    lose(path, ("CONTROL",))
    with opened(path) as log:
        assert log.recovered
        assert log.first_seq == seq
        assert content(log) == {number: model[number] for number in range(seq, 40)}


@pytest.mark.parametrize("seq", EDGES)
def test_without_manifest_the_log_begins_with_a_segment(tmp_path: Path, seq: int) -> None:
    """Where in it a truncation had come to is forgotten, and nothing else."""
    path = tmp_path / "log"
    model = filled(path)
    with opened(path) as log:
        log.truncate_before(seq)
    lose(path, ("MANIFEST",))
    first = min(seq // 12 * 12, 36)
    with opened(path, "r") as reader:
        # CONTROL still says it, but a number that stands in CONTROL alone hides no record.
        assert content(reader) == {number: model[number] for number in range(first, 40)}
    with opened(path, "w") as log:
        assert (log.first_seq, len(log)) == (first, 40 - first)
        # It is made again, whichever mode it was that opened for writing.
        log.truncate_before(39)
        assert len(log) == 1


def test_truncation_goes_only_forward(tmp_path: Path) -> None:
    """A number below the first one is no error: it may have been asked for before somebody else did more."""
    path = tmp_path / "log"
    filled(path)
    with opened(path) as log:
        log.truncate_before(20)
        for seq in (-5, 0, 19, 20):
            log.truncate_before(seq)
        assert log.first_seq == 20
        for seq in (41, 1 << 63, 1 << 64, 1 << 80):
            with pytest.raises(IndexError, match="beyond the end"):
                log.truncate_before(seq)
        with pytest.raises(TypeError):
            log.truncate_before("20")  # type: ignore[arg-type]
        assert log.first_seq == 20


def test_what_goes_before_a_number_is_durable_up_to_it(tmp_path: Path) -> None:
    """A power cut could else leave a log that ends before it begins."""
    with opened(tmp_path / "log") as log:
        fill(log, 5)
        assert log.durable == 0
        log.truncate_before(3)
        assert log.durable == 5


def test_a_log_that_ends_before_it_begins_is_damaged(tmp_path: Path) -> None:
    """What was below its first number had been durable: to find less is no torn tail."""
    path = tmp_path / "log"
    filled(path, 10)
    with opened(path) as log:
        log.truncate_before(9)
    lose(path, ("CONTROL",))
    (segment,) = path.glob("*.seg")
    data = bytearray(segment.read_bytes())
    # Neither a mark nor a footer, and zeros behind the fourth record.
    data[512:4096] = bytes(4096 - 512)
    data[4096 + 4 * 5016 :] = bytes(len(data) - 4096 - 4 * 5016)
    segment.write_bytes(data)
    with pytest.raises(CorruptionError, match="began with 9"):
        opened(path)


def test_views_stay_valid(tmp_path: Path) -> None:
    """Who holds a payload holds its pages, whatever becomes of the file."""
    path = tmp_path / "log"
    model = filled(path)
    with opened(path) as log:
        held = {entry.seq: entry.payload for entry in log.replay()}
        log.truncate_before(30)
        log.truncate_after(32)
        fill(log, 30, "new")
        assert {seq: bytes(view) for seq, view in held.items()} == model


def test_a_segment_that_was_durable_when_it_was_rolled_past_may_go(tmp_path: Path) -> None:
    """The list of what to sync kept a segment whose records were all durable: once it was unlinked, every
    flush failed.
    """
    path = tmp_path / "log"
    with opened(path) as log:
        fill(log, 12)
        log.flush()
        fill(log, 1)
        assert segment_starts(path) == [0, 12]
        log.truncate_before(12)
        assert segment_starts(path) == [12]
        log.flush()
        assert log.durable == 13
        fill(log, 20)
        log.flush()
    with opened(path) as log:
        assert content(log) == {seq: payload(seq) for seq in range(12, 33)}


# ---- at the end ----


@pytest.mark.parametrize("seq", EDGES)
def test_records_from_a_number_on_go(tmp_path: Path, seq: int) -> None:
    """Their numbers are given out again, and no reader mistakes a new record for an old one."""
    path = tmp_path / "log"
    model = filled(path)
    left = {number: model[number] for number in range(seq)}
    with opened(path, "r") as reader, opened(path) as log:
        assert content(reader) == model
        before = log.epoch
        log.truncate_after(seq)
        assert (log.committed, log.durable) == (seq, seq)
        assert log.epoch == before + (seq < 40)
        for each in (log, reader):
            assert content(each) == left
            with pytest.raises(IndexError):
                each[seq]
        fill(log, 45 - seq, "new")
        left |= {number: payload(number, "new") for number in range(seq, 45)}
        assert content(log) == left
        assert content(reader) == left
    for lost in LOST:
        lose(path, lost)
        with opened(path) as log:
            assert log.recovered == ("CONTROL" in lost)
            assert content(log) == left
    assert left_over(path) == []


def test_only_numbers_of_the_log_can_be_cut_at(tmp_path: Path) -> None:
    """Anything else is an error, and changes nothing."""
    path = tmp_path / "log"
    filled(path)
    with opened(path) as log:
        log.truncate_before(20)
        epoch = log.epoch
        for seq in (-1, 0, 19, 41, 1 << 64):
            with pytest.raises(IndexError, match="holds"):
                log.truncate_after(seq)
        log.truncate_after(40)
        assert (len(log), log.epoch) == (20, epoch)


def test_both_ends_meet(tmp_path: Path) -> None:
    """A log can be emptied, at any number, and goes on from there."""
    path = tmp_path / "log"
    filled(path)
    with opened(path) as log:
        log.truncate_before(17)
        log.truncate_after(17)
        assert (log.first_seq, log.committed, len(log), content(log)) == (17, 17, 0, {})
        assert log.append(b"x") == 17
        log.truncate_before(18)
        assert (log.first_seq, log.committed, len(log)) == (18, 18, 0)
    for lost in ((), ("CONTROL",)):
        lose(path, lost)
        with opened(path) as log:
            assert (log.first_seq, log.committed) == (18, 18)
    with opened(path) as log:
        assert log.append(b"y") == 18


def test_cut_again_and_again(tmp_path: Path) -> None:
    """Each time under a higher epoch."""
    path = tmp_path / "log"
    with opened(path) as log:
        begun = log.epoch
        for turn in range(8):
            fill(log, 15, f"{turn}-")
            log.truncate_after(log.committed - 5)
            assert log.epoch == begun + turn + 1
        expected = {seq: payload(seq, f"{seq // 10}-") for seq in range(80)}
        assert content(log) == expected
    for lost in LOST:
        lose(path, lost)
        with opened(path) as log:
            assert content(log) == expected


def test_the_last_epoch_is_refused_before_anything_is_dropped(tmp_path: Path) -> None:
    """Nobody would open a segment of the one after."""
    path = tmp_path / "log"
    filled(path, 3)
    (segment,) = path.glob("*.seg")
    patch_segment(segment, 72, "<I", 0xFFFFFFFE)
    with opened(path) as log:
        with pytest.raises(FormatError, match="last epoch"):
            log.truncate_after(1)
        assert len(content(log)) == 3
        log.append(b"x")
    assert left_over(path) == []


# ---- others meanwhile ----


def test_a_follower_is_told(tmp_path: Path) -> None:
    """What it had read is not in the log any more: to go on would show a history that never was."""
    path = tmp_path / "log"
    with opened(path) as log, opened(path, "r") as reader:
        fill(log, 30)
        follower, early = reader.follow(0), reader.follow(0)
        assert [next(follower).seq for _ in range(30)] == list(range(30))
        assert [next(early).seq for _ in range(10)] == list(range(10))
        log.truncate_after(20)
        with pytest.raises(TooOld, match="follow the log anew from 20"):
            follower.poll()
        fill(log, 20, "new")
        with pytest.raises(TooOld, match="anew from 20"):
            follower.poll()
        # This one had not come so far.
        for seq in range(10, 40):
            assert bytes(next(early).payload) == payload(seq, "new" if seq >= 20 else "")


def test_a_follower_goes_on_where_nothing_it_read_was_dropped(tmp_path: Path) -> None:
    """At the cut itself, and before it."""
    path = tmp_path / "log"
    with opened(path) as log, opened(path, "r") as reader:
        fill(log, 20)
        at, before = reader.follow(0), reader.follow(0)
        assert [at.poll().seq for _ in range(20)] == list(range(20))  # type: ignore[union-attr]
        assert [before.poll().seq for _ in range(3)] == list(range(3))  # type: ignore[union-attr]
        fill(log, 10)
        log.truncate_after(20)
        assert at.poll() is None
        fill(log, 2, "new")
        assert [bytes(entry.payload) for entry in (at.poll(), at.poll()) if entry] == [
            payload(20, "new"),
            payload(21, "new"),
        ]
        assert [next(before).seq for _ in range(19)] == list(range(3, 22))


def test_a_follower_below_the_beginning_is_told(tmp_path: Path) -> None:
    """Records that it wanted are gone."""
    path = tmp_path / "log"
    with opened(path) as log, opened(path, "r") as reader:
        fill(log, 5)
        follower = reader.follow(0)
        assert next(follower).seq == 0
        fill(log, 40)
        log.truncate_before(44)
        with pytest.raises(TooOld):
            list(iter(lambda: next(follower).seq, 44))


def test_a_replay_never_mixes_two_histories(tmp_path: Path) -> None:
    """It went on from records that were dropped into others under the numbers behind them."""
    path = tmp_path / "log"
    with opened(path) as log, opened(path, "r") as reader:
        fill(log, 40)
        for each in (log, reader):
            ahead, back = each.replay(), each.replay(reverse=True)
            assert [next(ahead).seq for _ in range(9)] == list(range(9))
            assert next(back).seq == each.committed - 1
        fresh = reader.replay()
        assert next(fresh).seq == 0
        log.truncate_after(5)
        fill(log, 35, "new")
        read = []
        with pytest.raises(TooOld, match="used again"):
            read.extend(bytes(entry.payload) for entry in ahead)
        assert read == [payload(seq) for seq in range(9, 12)]
        # Of one that had not come to the cut, what comes is one history.
        try:
            found = [bytes(entry.payload) for entry in fresh]
        except TooOld:
            found = [payload(seq) for seq in range(1, 12)]
        assert found[:4] == [payload(seq) for seq in range(1, 5)]


def test_backwards_never_mixes_two_histories(tmp_path: Path) -> None:
    """The same for a replay from the last record to the first, which is read in blocks."""
    path = tmp_path / "log"
    with opened(path) as log, opened(path, "r") as reader:
        fill(log, 600, size=200)
        back = reader.replay(reverse=True)
        assert next(back).seq == 599
        log.truncate_after(100)
        fill(log, 500, "new", size=200)
        read = [599]
        with pytest.raises(TooOld, match="used again"):
            read.extend(entry.seq for entry in back)
        assert read == list(range(599, 599 - len(read), -1))


def test_a_reader_in_another_process_sees_it_at_once(tmp_path: Path) -> None:
    """Through CONTROL, and without asking anybody."""
    path = tmp_path / "log"
    filled(path)

    def look(reader: Log, _: str) -> tuple[int, int, int]:
        return reader.first_seq, reader.committed, len(content(reader))

    with answering(lambda: opened(path, "r"), look) as ask, opened(path) as log:
        assert ask("?") == (0, 40, 40)
        for first, stop in ((10, 40), (24, 40), (24, 30)):
            log.truncate_before(first)
            log.truncate_after(stop)
            assert ask("?") == (first, stop, stop - first)


def readers_meanwhile(
    path: Path, work: Callable[[Log], object], allowed: list[dict[int, bytes]], *, opening: bool
) -> int:
    """Do `work` on fresh copies of a log, and read between any two of its calls.

    By a reader that was there, and with `opening` by one that comes then, too.
    """
    finished = False
    for moment in itertools.count(1):
        copy = path.with_name(f"{path.name}-{moment}")
        shutil.copytree(path, copy)
        with opened(copy) as log, opened(copy, "r") as old:
            content(old)
            met: list[int] = []

            def look(old: Log = old, copy: Path = copy, met: list[int] = met) -> None:
                met.append(1)
                one_of(content(old), allowed)
                if opening:
                    with opened(copy, "r") as new:
                        one_of(content(new), allowed)

            with at_moment(moment, look):
                work(log)
            finished = not met
            one_of(content(old), allowed[-1:])
            fill(log, 15, "later")
            later = {seq: data for seq, data in content(log).items() if seq < log.committed - 15}
            one_of(later, allowed[-1:])
            assert content(old) == content(log)
        shutil.rmtree(copy)
        if finished:
            return moment
    return 0


def test_a_reader_between_any_two_steps_of_a_truncation(tmp_path: Path) -> None:
    """It finds the records before or after, and once it is over those after, also where it had segments
    open that went.
    """
    path = tmp_path / "log"
    model = filled(path)

    def drop(log: Log) -> None:
        log.truncate_before(26)

    def cut(log: Log) -> None:
        log.truncate_after(14)

    after = {seq: data for seq, data in model.items() if seq >= 26}
    assert readers_meanwhile(path, drop, [model, after], opening=True) > 8
    after = {seq: data for seq, data in model.items() if seq < 14}
    assert readers_meanwhile(path, cut, [model, after], opening=False) > 20


def test_a_wait_for_what_was_truncated_ends(tmp_path: Path) -> None:
    """It would never be durable, and the writer's own wait went round and round for it."""
    path = tmp_path / "log"
    with opened(path) as log, opened(path, "r") as reader:
        fill(log, 10)
        outcome: list[object] = []

        def wait() -> None:
            try:
                outcome.append(reader.wait_durable(8, timeout=30))
            except TooOld as error:
                outcome.append(type(error))

        thread = threading.Thread(target=wait)
        thread.start()
        log.truncate_after(4)
        thread.join()
        # Either it was asleep until the cut, which makes all before it durable first, or the cut was first.
        assert outcome in ([True], [TooOld])


# ---- from within ----


def test_a_truncation_from_within_one_is_refused(tmp_path: Path) -> None:
    """As a signal handler or a destructor may ask for it; it would wait for itself."""
    path = tmp_path / "log"
    filled(path)
    with opened(path) as log:
        refused: list[str] = []

        def again() -> None:
            for act in (
                lambda: log.truncate_before(1),
                lambda: log.truncate_after(39),
                log.compact,
                log.close,
            ):
                try:
                    act()
                except LogError as error:
                    refused.append(error.strerror or "")

        with at_moment(2, again):
            log.truncate_before(20)
        assert len(refused) == 4
        assert all("destructor or signal handler" in text for text in refused)
        assert log.first_seq == 20


def test_readers_may_not(tmp_path: Path) -> None:
    """Nor whoever closed the log, or inherited it."""
    path = tmp_path / "log"
    filled(path)
    with opened(path, "r") as reader:
        for act in (
            lambda: reader.truncate_before(5),
            lambda: reader.truncate_after(5),
            lambda: reader.retain(max_records=1),
        ):
            with pytest.raises(OSError, match="open for reading"):
                act()
        with pytest.raises(OSError, match="open for reading"):
            reader.compact()
    log = opened(path)

    def inherited() -> str:
        try:
            log.truncate_after(3)
        except OSError as error:
            return error.strerror or ""
        return ""

    assert "belongs to the parent" in in_child(inherited)
    log.close()
    with pytest.raises(OSError, match="closed"):
        log.truncate_before(3)
