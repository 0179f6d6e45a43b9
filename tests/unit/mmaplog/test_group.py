"""Groups: nobody gets what another has, nothing is lost with who dies, no kill leaves a file half done."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from mmapio import Closed
from mmaplog import FlushPolicy, GroupMember, Locked, Log, LogError, TooOld, claims
from mmaplog import bookmark_format as layout
from mmaplog.bookmark_format import NOBODY, Claim, Place
from mmaplog.consumer import slowest
from tests.unit.mmapio.async_calls import anyio, on_each_backend, run
from tests.unit.mmapio.processes import in_child, killed_after, living_child, outcome
from tests.unit.mmaplog.handed_out import DEADLINE, seqs


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


def test_one_member_gets_everything(log: Log) -> None:
    """In order, and what it committed not again."""
    with log.group("g", batch=7) as member:
        assert seqs(member) == list(range(30))
        assert (member.committed, member.lag(), member.claims) == (0, 30, [range(30)])
        member.commit(12)
        assert (member.committed, member.lag(), member.claims) == (12, 18, [range(12, 30)])
        member.commit()
        assert (member.committed, member.lag(), member.claims) == (30, 0, [])
    with log.group("g") as member:
        assert seqs(member) == []
        log.append(b"x")
        assert seqs(member) == [30]


@pytest.mark.parametrize("batch", [1, 2, 7, 30, 31])
def test_two_members_share(log: Log, batch: int) -> None:
    """Each batch goes to one of them, whatever they commit and when."""
    chance = random.Random(batch)
    with log.group("g", batch=batch) as one, log.group("g", batch=batch) as other:
        found: list[int] = []
        while len(found) < 30:
            member = chance.choice([one, other])
            got = seqs(member, 1)
            found += got
            if chance.random() < 0.3:
                member.commit(chance.choice([None, *got]))
        assert sorted(found) == list(range(30))
        assert seqs(one) == seqs(other) == []
        one.commit()
        other.commit()
        assert (one.committed, other.committed) == (30, 30)


def test_the_committed_position_is_the_lowest_that_is_not_done(log: Log) -> None:
    """Whoever is slow holds it up, for itself alone."""
    with log.group("g", batch=5) as slow, log.group("g", batch=5) as quick:
        assert seqs(slow, 2) == [0, 1]
        assert seqs(quick, 25) == list(range(5, 30))
        quick.commit()
        assert (quick.committed, slowest(log)) == (0, 0)
        slow.commit()
        assert quick.committed == 2
        assert seqs(slow) == [2, 3, 4]
        slow.commit(4)
        assert slowest(log) == 4
        slow.commit()
        assert slowest(log) == 30


def test_no_more_is_committed_than_was_handed_out(log: Log) -> None:
    """What is taken and not handed out yet is not processed."""
    with log.group("g", batch=10) as member:
        seqs(member, 3)
        with pytest.raises(ValueError, match="cannot commit 4: 'g' handed this member what is below 3"):
            member.commit(4)
        with pytest.raises(ValueError, match="cannot commit -1"):
            member.commit(-1)
        member.commit()
        assert member.claims == [range(3, 10)]
        member.commit(1)
        assert member.claims == [range(3, 10)]


def test_what_a_member_leaves_goes_to_the_next(log: Log) -> None:
    """First of all, and in pieces of a batch."""
    with log.group("g", batch=10) as one, log.group("g", batch=4) as other:
        seqs(one, 20)
        assert seqs(other, 1) == [20]
        one.commit(3)
        one.close()
        assert seqs(other) == [21, 22, 23, *range(3, 20), *range(24, 30)]
        # In the order in which it was handed out, [20, 24) came first.
        other.commit(20)
        assert other.committed == 20
        other.commit()
        assert other.committed == 30


def test_what_a_killed_member_had_goes_to_the_next(log: Log, path: Path) -> None:
    """And what another has, who lives, does not."""

    def take() -> GroupMember:
        member = Log.open(path, "r").group("g", batch=5)
        seqs(member, 5)
        return member

    with living_child(take), log.group("g", batch=5) as member:
        killed_after(take)
        assert seqs(member) == [*range(5, 30)]
        member.commit()
        assert member.committed == 0
    with log.group("g") as member:
        assert seqs(member) == [0, 1, 2, 3, 4]


def test_an_idle_member_keeps_what_it_took(log: Log) -> None:
    """However long it takes: nobody can tell slow from stuck."""
    with log.group("g", batch=30) as idle, log.group("g") as other:
        assert seqs(idle, 1) == [0]
        assert not other.wait(0.6)
        assert seqs(other) == []


def test_waiting_for_what_a_member_leaves(log: Log, path: Path) -> None:
    """Nobody tells of a death, and no record is appended after it."""

    def take() -> GroupMember:
        member = Log.open(path, "r").group("g", batch=30)
        seqs(member, 1)
        return member

    with log.group("g", batch=30) as waiting:
        with living_child(take):
            assert not waiting.wait(0.05)
        assert waiting.wait(DEADLINE)
        assert seqs(waiting) == list(range(30))


def test_many_members_of_one_process(log: Log) -> None:
    """A thread each; every record once, and all of them."""
    log.append_many([b"x"] * 2000)
    found: list[int] = []

    def work() -> None:
        with log.group("g", batch=3, timeout=0, auto_commit=True) as member:
            found.extend(entry.seq for entry in member)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(DEADLINE)
    assert sorted(found) == list(range(2030))
    assert slowest(log) == 2030


@on_each_backend
def test_a_loop_goes_on_while_another_has_the_mutex(backend: str, path: Path) -> None:
    """Whoever syncs has it for as long as the disk takes."""

    async def main() -> None:
        with Log.open(path, flush_policy=FlushPolicy.NEVER) as log:
            log.append_many([b"x"] * 4)
            held, done = threading.Event(), threading.Event()
            with log.group("g", batch=2, auto_commit=True, timeout=0.2) as member:

                def sync() -> None:
                    with log.group("g") as other, other._mutex:
                        held.set()
                        assert done.wait(DEADLINE)

                thread = threading.Thread(target=sync)
                assert (await anext(member)).seq == 0
                thread.start()
                assert held.wait(DEADLINE)
                found: list[int] = []

                async def read() -> None:
                    async for entry in member:
                        found.append(entry.seq)

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(read)
                    await anyio.sleep(0.05)
                    assert found == []
                    done.set()
                thread.join(DEADLINE)
                assert found == [1, 2, 3]

    run(backend, main)


@on_each_backend
def test_tasks_share(backend: str, path: Path) -> None:
    """A member each."""

    async def main() -> None:
        with Log.open(path, flush_policy=FlushPolicy.NEVER) as log:
            found: list[int] = []

            async def work() -> None:
                with log.group("g", batch=2, auto_commit=True) as member:
                    async for entry in member:
                        found.append(entry.seq)

            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(work)
                for _ in range(20):
                    await anyio.sleep(0.001)
                    log.append(b"x")
                while len(found) < 20:
                    await anyio.sleep(0.001)
                # Before they leave: what one has not committed goes to another, who may be about to look.
                assert sorted(found) == list(range(20))
                tasks.cancel_scope.cancel()

    run(backend, main)


def test_a_start(log: Log) -> None:
    """Of a group that is made; a member that joins has no say."""
    with log.group("g", start=28) as member, log.group("g", start=1, batch=1) as other:
        assert seqs(member, 1) == [28]
        assert seqs(other) == []


@pytest.mark.parametrize("batch", [0, -1, 1 << 64])
def test_batches_that_make_no_sense(log: Log, path: Path, batch: int) -> None:
    """Refused before a group is made."""
    with pytest.raises(ValueError, match="a batch must be from 1 to"):
        log.group("g", batch=batch)
    assert log.consumers() == []


def test_there_is_room_for_so_many_members(log: Log) -> None:
    """The next is told; when one leaves, there is room."""
    with ExitStack() as stack:
        members = [stack.enter_context(log.group("g")) for _ in range(layout.MEMBERS_MAX)]
        with pytest.raises(LogError, match=f"the group has {layout.MEMBERS_MAX} members"):
            log.group("g")
        assert log.consumers()[0].holder == f"held by {layout.MEMBERS_MAX} members of the group"
        members[5].close()
        log.group("g").close()


def test_the_table_has_room_for_so_many_claims(log: Log) -> None:
    """Two members that take turns and never commit fill it: then one of them has to."""
    log.append_many([b"x"] * 1000)
    with log.group("g", batch=1) as one, log.group("g", batch=1) as other:
        for _ in range(layout.CLAIMS_MAX // 2):
            seqs(one, 1)
            seqs(other, 1)
        with pytest.raises(
            LogError, match=f"have {layout.CLAIMS_MAX} ranges of entries that are not committed"
        ):
            one.poll()
        # What it had last is extended.
        assert seqs(other, 1) == [layout.CLAIMS_MAX]
        other.commit(0)
        with pytest.raises(LogError, match="ranges"):
            one.poll()
        one.commit()
        assert seqs(one, 1) == [layout.CLAIMS_MAX + 1]
        other.commit()
        assert len(other.claims) == 0


def test_removing(log: Log, path: Path) -> None:
    """Not while somebody is in it."""
    with log.group("g") as member:
        seqs(member, 1)
        with pytest.raises(Locked, match="'g' is held by 1 member of the group; close it there first"):
            log.remove_consumer("g")
    log.remove_consumer("g")
    assert list(path.glob("*.consumer")) == []
    with log.group("g") as member:
        assert seqs(member, 1) == [0]


def test_an_inherited_one_is_of_no_use(log: Log) -> None:
    """A child that goes on would hand out the same; and its life must not keep the parent's claims."""
    members = [log.group("g", batch=10)]
    seqs(members[0], 1)

    def use() -> list[tuple[str, str]]:
        (member,) = members
        calls: list[Callable[[], object]] = [
            member.poll,
            member.wait,
            member.commit,
            member.flush,
            member.lag,
            member.__enter__,
            partial(getattr, member, "claims"),
            partial(getattr, member, "committed"),
        ]
        found = [outcome(call) for call in calls]
        member.close()
        return found

    for kind, text in in_child(use):
        assert kind == "Closed"
        assert "inherited by fork" in text
    assert seqs(members[0], 1) == [1]
    with living_child(lambda: None):
        members.clear()
        with log.group("g") as other:
            assert seqs(other, 1) == [0]


def test_a_closed_one_says_so(log: Log) -> None:
    """In every call that needs it open."""
    member = log.group("g")
    member.close()
    member.close()
    for name in ("poll", "wait", "commit", "flush", "lag", "__enter__"):
        with pytest.raises(Closed, match="'g' is closed"):
            getattr(member, name)()


def test_closing_after_the_log(path: Path) -> None:
    """What was not committed is released all the same."""
    log = Log.open(path, flush_policy=FlushPolicy.NEVER)
    log.append_many([b"x"] * 10)
    member = log.group("g")
    seqs(member, 5)
    member.commit(3)
    log.close()
    with pytest.raises(Closed):
        member.poll()
    member.close()
    with Log.open(path) as log, log.group("g") as member:
        assert seqs(member) == list(range(3, 10))


def test_a_change_that_is_interrupted_after_it_was_stored(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ctrl-C: the file says that the member has entries that it does not know of, and nobody else gets."""
    with log.group("g", batch=10) as member:
        seqs(member, 2)
        original = GroupMember._match
        calls = 0

        def match(self: GroupMember, place: Place) -> None:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise KeyboardInterrupt
            original(self, place)

        seqs(member, 8)
        for action in (partial(seqs, member, 1), member.commit):
            calls = 0
            with monkeypatch.context() as patch:
                patch.setattr(GroupMember, "_match", match)
                with pytest.raises(KeyboardInterrupt):
                    action()
        assert member.committed == 10
        assert seqs(member) == list(range(10, 30))


# The log loses records, at either end.


def test_records_that_were_dropped_before_they_were_read(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    """As of a consumer; who has the option passes them over for the group."""
    with log.group("g", batch=3) as strict, log.group("g", batch=5, too_old="skip") as lax:
        assert seqs(strict, 1) == [0]
        assert seqs(lax, 1) == [3]
        log.truncate_before(12)
        assert seqs(strict, 2) == [1, 2], "what it reads already, it has"
        with pytest.raises(TooOld, match="record 8 was dropped from the log before the group read it"):
            strict.poll()
        with caplog.at_level(logging.WARNING, "mmaplog"):
            assert seqs(lax) == [4, 5, 6, 7, *range(12, 30)]
        assert "'g' goes on at record 12: records from 8 on were dropped" in caplog.text
        assert seqs(strict) == []
        lax.commit()
        strict.commit()
        assert strict.committed == 30


def test_a_claim_whose_records_were_dropped(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    """Taken, not read, and its owner gone: whoever takes over passes over what is not there."""
    with log.group("g", batch=20) as one:
        seqs(one, 1)
    log.truncate_before(12)
    with log.group("g", batch=20) as strict, pytest.raises(TooOld, match="record 0 was dropped"):
        strict.poll()
    with log.group("g", batch=20, too_old="skip") as lax, caplog.at_level(logging.WARNING, "mmaplog"):
        assert seqs(lax) == list(range(12, 30))
        lax.commit()
        assert lax.committed == 30
    assert "'g' goes on at record 12: records from 0 on" in caplog.text


def test_a_log_that_was_recovered(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was not durable may have been lost: all of it comes again, and claims of lost numbers go."""
    with Log.open(path, flush_policy=FlushPolicy.MANUAL) as log:
        log.append_many([b"%d" % number for number in range(5)], durable=True)
        log.append_many([b"%d" % number for number in range(5, 10)])
        member = log.group("g", batch=3)
        seqs(member, 8)
        member.commit()
        del member
    (path / "CONTROL").unlink()
    with Log.open(path) as log:
        with caplog.at_level(logging.WARNING, "mmaplog"), log.group("g", batch=3) as member:
            assert member.committed == 5
            assert seqs(member) == list(range(5, 10))
            member.commit()
        assert "goes on at record 5 instead of 9" in caplog.text
        with log.group("g") as member:
            assert member.committed == 10


def test_the_durable_commit_of_a_recovered_log(path: Path) -> None:
    """Nothing comes again of what was committed durably."""
    with Log.open(path, flush_policy=FlushPolicy.MANUAL) as log:
        log.append_many([b"%d" % number for number in range(10)])
        member = log.group("g", batch=3)
        seqs(member, 8)
        member.commit(durable=True)
        del member
    (path / "CONTROL").unlink()
    with Log.open(path) as log, log.group("g", batch=3) as member:
        assert member.committed == 8
        assert seqs(member) == [8, 9]


@pytest.mark.parametrize("appended", [0, 3, 40])
def test_a_log_that_is_cut_behind_it(log: Log, caplog: pytest.LogCaptureFixture, appended: int) -> None:
    """Claims of numbers that are used again go; who had them is told, and commits nothing of them."""
    with log.group("g", batch=8) as one, log.group("g", batch=8) as other:
        assert seqs(one, 8) == list(range(8))
        assert seqs(other, 4) == [8, 9, 10, 11]
        log.truncate_after(10)
        log.append_many([b"new"] * appended)
        assert slowest(log) == 0
        with caplog.at_level(logging.WARNING, "mmaplog"):
            found = seqs(one)
        assert "'g' goes on at record 10 instead of 16" in caplog.text
        assert found == list(range(10, 10 + appended))
        assert seqs(other) == []
        other.commit()
        one.commit()
        assert one.committed == 10 + appended
        assert one.claims == other.claims == []


def test_a_cut_that_leaves_the_same_range(log: Log) -> None:
    """What read the old records of these numbers must not be gone on with."""
    with log.group("g", batch=8) as member:
        assert seqs(member, 4) == [0, 1, 2, 3]
        log.truncate_after(4)
        log.append_many([b"new"] * 4)
        found = [member.poll() for _ in range(5)]
        assert [(each.seq, bytes(each.payload)) for each in found if each] == [
            (seq, b"new") for seq in range(4, 8)
        ]


# The table of claims, by itself.


def everything(place: Place) -> set[int]:
    """The numbers below `next` that are not done. No two claims may have one in common."""
    numbers = [number for each in place.claims for number in range(each.at, each.stop)]
    assert len(numbers) == len(set(numbers))
    assert all(number < place.next for number in numbers)
    return set(numbers)


@pytest.mark.parametrize("seed", range(30))
def test_the_table_of_claims_against_a_model(seed: int) -> None:
    """Each number is with one member, free, done, or not handed out yet; and a copy of it says the same."""
    chance = random.Random(seed)
    place = Place(1, 0, 0, 0, 0, 0, [])
    open_by: dict[int, int] = {}
    done: set[int] = set()
    end = 0
    for turn in range(300):
        member, batch = chance.randrange(6), chance.randint(1, 9)
        end += chance.randrange(4)
        action = chance.randrange(5)
        if action < 2:
            free = {number for number, owner in open_by.items() if owner == NOBODY}
            before = {number for number, owner in open_by.items() if owner == member}
            if claims.take_over(place, member, batch, lambda each: each == NOBODY):
                assert free
            else:
                assert not free
                claims.take_next(place, member, batch, end)
            now = {n for each in place.claims if each.member == member for n in range(each.at, each.stop)}
            assert before <= now
            assert not now & done
            open_by |= dict.fromkeys(now, member)
        elif action == 2:
            for claim in place.claims:
                if claim.member == member and chance.random() < 0.8:
                    reach = chance.randint(claim.at, claim.stop)
                    for number in range(claim.at, reach):
                        del open_by[number]
                        done.add(number)
                    claim.at = reach
        elif action == 3:
            claims.release(place, member)
            open_by = {n: NOBODY if owner == member else owner for n, owner in open_by.items()}
        elif chance.random() < 0.1:
            cut = chance.randint(0, place.next)
            claims.cut(place, cut)
            open_by = {number: owner for number, owner in open_by.items() if number < cut}
            done = {number for number in done if number < cut}
            end = cut
        claims.settle(place)
        assert everything(place) == set(open_by)
        assert {n: each.member for each in place.claims for n in range(each.at, each.stop)} == open_by
        assert place.seq == min([place.next, *open_by])
        assert set(range(place.next)) == set(open_by) | done
        assert layout.unpack_copy(layout.pack_copy(place, turn), turn) == place


def test_a_full_table() -> None:
    """It is refused, and nothing changed; what is taken over is not split."""
    full = [Claim(10 * each, 10 * each + 5, each % 3) for each in range(layout.CLAIMS_MAX)]
    place = Place(1, 0, 10 * layout.CLAIMS_MAX, 0, 0, 0, full)
    with pytest.raises(OverflowError):
        claims.take_next(place, 7, 1, 1 << 40)
    assert (place.next, len(place.claims)) == (10 * layout.CLAIMS_MAX, layout.CLAIMS_MAX)
    assert claims.take_over(place, 7, 2, lambda each: each == 1)
    assert [each for each in place.claims if each.member == 7] == [Claim(10, 15, 7)]
    assert len(layout.pack_copy(place, 0)) <= layout.GROUP_COPY_SIZE
