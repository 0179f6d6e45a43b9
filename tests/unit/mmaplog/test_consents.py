"""What was dropped because all had committed it, and a power cut that takes some of these commits back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from mmaplog import FlushPolicy, Log, TooOld, manifest
from tests.unit.mmaplog.handed_out import seqs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A directory for a log."""
    return tmp_path / "log"


def after_a_power_cut(path: Path, kept: dict[str, bytes]) -> None:
    """The places of consumers are what they were, and nobody knows what else was lost."""
    for name, data in kept.items():
        (path / name).write_bytes(data)
    (path / "CONTROL").unlink()


def places(path: Path) -> dict[str, bytes]:
    """What is in the files of consumers."""
    return {each.name: each.read_bytes() for each in path.glob("*.consumer")}


def require_to_go_on_at(path: Path, first: int) -> None:
    """Consumer and group are handed out what is left of a thousand records, and no less was done."""
    with Log.open(path) as log, log.consumer("c") as consumer, log.group("g") as member:
        for each in (consumer, member):
            assert each.committed == first
            assert seqs(each) == list(range(first, 1000))


def test_what_all_had_committed_is_not_too_old_after_a_power_cut(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Though the commits, by which it went, were not durable: none of it is to be processed again."""
    with Log.open(path, segment_bytes=1 << 16) as log:
        log.append_many([b"x" * 1000] * 1000, durable=True)
        with log.consumer("c") as consumer, log.group("g", batch=100) as member:
            for _ in range(100):
                consumer.poll()
                member.poll()
            consumer.commit(50, durable=True)
            member.commit(50, durable=True)
            kept = places(path)
            while (entry := consumer.poll()) is not None and entry.seq < 600:
                continue
            consumer.commit()
            while (entry := member.poll()) is not None and entry.seq < 700:
                continue
            member.commit()
            first = log.retain(consumers=True)
            assert 500 < first <= 601
    after_a_power_cut(path, kept)
    with caplog.at_level(logging.WARNING, "mmaplog"), Log.open(path) as log:
        assert [each.committed for each in log.consumers()] == [first, first]
        with log.consumer("c") as again, log.group("g", batch=100) as member:
            assert again.committed == member.committed == first
            assert seqs(again) == list(range(first, 1000))
            assert [each.seq for each in iter(member.poll, None)] == list(range(first, 1000))
    assert caplog.records == []


def test_what_all_had_committed_stays_so_after_another_power_cut(path: Path) -> None:
    """Also when more was dropped in between, before the consumer was there again."""
    with Log.open(path, segment_bytes=1 << 16) as log:
        log.append_many([b"x" * 1000] * 1000, durable=True)
        with log.consumer("c") as consumer, log.consumer("other") as other:
            consumer.flush()
            kept = places(path)
            for each in (consumer, other):
                seqs(each)
                each.commit(700)
            other.commit(400)
            first = log.retain(consumers=True)
            assert 300 < first <= 400
    after_a_power_cut(path, {"c.consumer": kept["c.consumer"]})
    with Log.open(path) as log:
        with log.consumer("other") as other:
            assert other.committed == 400
            seqs(other)
            other.commit(900)
        assert log.retain(consumers=True) == first
    for _ in range(2):
        after_a_power_cut(path, {"c.consumer": kept["c.consumer"]})
        with Log.open(path) as log, log.consumer("c") as consumer:
            assert consumer.committed == first
            assert seqs(consumer) == list(range(first, 1000))


@pytest.mark.parametrize("durable", [True, False])
def test_who_took_a_commit_back_is_told(path: Path, durable: bool) -> None:
    """What he had agreed to before does not count, with and without a power cut."""
    with Log.open(path, segment_bytes=1 << 16) as log:
        log.append_many([b"x" * 1000] * 1000, durable=True)
        with log.consumer("c") as consumer:
            seqs(consumer)
            consumer.commit(700)
            assert log.retain(consumers=True) > 500
            consumer.commit(10, durable=durable)
    after_a_power_cut(path, {})
    with Log.open(path) as log, log.consumer("c") as consumer:
        assert consumer.committed == 10
        with pytest.raises(TooOld):
            consumer.poll()


def test_who_came_too_late_to_agree_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer that is made while what it begins with is being dropped."""
    written = manifest.write
    with Log.open(path, segment_bytes=1 << 16) as log:
        log.append_many([b"x" * 1000] * 1000, durable=True)
        with log.consumer("c") as consumer:
            seqs(consumer)
            consumer.commit(700)

            def write(*arguments: Any) -> None:
                log.consumer("late", start=0).close()
                written(*arguments)

            monkeypatch.setattr(manifest, "write", write)
            assert log.retain(consumers=True) > 500
    after_a_power_cut(path, {})
    with Log.open(path) as log, log.consumer("late") as consumer:
        assert consumer.committed == 0
        with pytest.raises(TooOld):
            consumer.poll()


def test_what_somebody_else_dropped_is_too_old_after_a_power_cut(path: Path) -> None:
    """Not all of it had been committed when it was dropped: who had not must be told."""
    with Log.open(path, segment_bytes=1 << 16) as log:
        log.append_many([b"x" * 1000] * 1000, durable=True)
        with log.consumer("c") as consumer:
            consumer.flush()
            kept = places(path)
            seqs(consumer)
            consumer.commit(300)
            first = log.retain(consumers=True)
            assert 0 < first <= 300
            log.truncate_before(500)
    after_a_power_cut(path, kept)
    with Log.open(path) as log, log.consumer("c") as again:
        assert again.committed == first
        with pytest.raises(TooOld):
            again.poll()
    with Log.open(path) as log, log.consumer("c", too_old="skip") as again:
        assert seqs(again) == list(range(500, 1000))


def test_who_agreed_since_numbers_were_used_again_is_not_told_after_a_power_cut(path: Path) -> None:
    """All below was done, also of the numbers that were used again, though his place is from before that."""
    with Log.open(path, segment_bytes=1 << 16) as log:
        log.append_many([b"x" * 1000] * 1000, durable=True)
        with log.consumer("c") as consumer, log.group("g", batch=1000) as member:
            for each in (consumer, member):
                seqs(each, 900)
                each.commit(durable=True)
            kept = places(path)
            log.truncate_after(100)
            log.append_many([b"x" * 1000] * 900, durable=True)
            for each in (consumer, member):
                seqs(each, 700)
                each.commit()
            first = log.retain(consumers=True)
            assert 500 < first <= 800
    after_a_power_cut(path, kept)
    require_to_go_on_at(path, first)


@pytest.mark.parametrize("how", ["retain", "truncate_before"])
def test_what_was_dropped_is_not_too_old_for_who_did_it_before_it_was_durable(path: Path, how: str) -> None:
    """It was durable when it was dropped, so nothing can have come in its place."""
    with Log.open(path, segment_bytes=1 << 16, flush_policy=FlushPolicy.MANUAL) as log:
        log.append_many([b"x" * 1000] * 1000)
        with log.consumer("c") as consumer, log.group("g", batch=1000) as member:
            for each in (consumer, member):
                seqs(each)
                each.commit()
            kept = places(path)
            log.flush()
            if how == "retain":
                log.retain(consumers=True)
            else:
                log.truncate_before(950)
            first = log.first_seq
            assert first > 900
    after_a_power_cut(path, kept)
    require_to_go_on_at(path, first)


@pytest.mark.parametrize("kind", ["consumer", "group"])
def test_a_place_that_went_back_by_one_commit(path: Path, kind: str) -> None:
    """The one by which it agreed: it goes on behind what went."""
    with Log.open(path, segment_bytes=1 << 16) as log:
        log.append_many([b"x" * 1000] * 1000, durable=True)
        with log.consumer("s") if kind == "consumer" else log.group("s", batch=1000) as subscription:
            seqs(subscription)
            subscription.flush()
            kept = places(path)
            subscription.commit()
            first = log.retain(consumers=True)
            assert first > 900
    after_a_power_cut(path, kept)
    with Log.open(path) as log:
        assert [each.committed for each in log.consumers()] == [first]
        with log.consumer("s") if kind == "consumer" else log.group("s") as subscription:
            assert seqs(subscription) == list(range(first, 1000))
