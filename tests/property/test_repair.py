"""Random damage to a log: after a repair it opens, and every record is there byte for byte, or in the report.

``HYPOTHESIS_PROFILE=long pytest tests/property/test_repair.py`` searches for longer.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mmaplog
from mmaplog import FlushPolicy, FormatError, Log, Repaired
from tests.support.plain_log import read_log
from tests.unit.mmapio.footprint import unchanged

MANUAL = FlushPolicy.MANUAL
COUNT = 1500
KINDS = ["flip", "flip", "flip in front", "cut", "remove", "swap", "zero"]


def payload(number: int) -> bytes:
    """What record `number` holds."""
    return b"%d." % number * (number * 7 % 40 + 1)


@pytest.fixture(scope="module", params=["dense", "with gaps"])
def pristine(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory with a closed log in it, of several segments, with batches, flushed now and then.

    The one with gaps was compacted twice, cut at its end and at its front.
    """
    directory = Path(tempfile.mkdtemp(prefix="repair-"))
    with Log.open(directory / "log", flush_policy=MANUAL, segment_bytes=64 << 10) as log:
        while log.committed < COUNT:
            first = log.committed
            size = 10 if first % 50 == 0 else 1
            log.append_many([payload(number) for number in range(first, first + size)], atomic=True)
            if first % 97 == 0:
                log.flush()
            if request.param == "with gaps" and first == 1000:
                log.compact(lambda entry: bool(entry.seq % 5))
                log.truncate_after(990)
                log.append_many([payload(number) for number in range(990, 1001)])
            if request.param == "with gaps" and first == 1400:
                log.compact(lambda entry: bool(entry.seq % 7))
                log.truncate_before(100)
    yield directory
    shutil.rmtree(directory)


def spoil(path: Path, rng: random.Random) -> None:
    """Damage one to three files at random."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        files = sorted(each for each in path.iterdir() if each.is_file())
        target, kind = rng.choice(files), rng.choice(KINDS)
        size = target.stat().st_size
        if kind == "cut":
            os.truncate(target, rng.randrange(size + 1))
        elif kind == "remove":
            target.unlink()
        elif kind == "swap":
            other = rng.choice(files)
            contents = target.read_bytes(), other.read_bytes()
            target.write_bytes(contents[1])
            other.write_bytes(contents[0])
        elif size:
            within = min(size, 4096) if kind == "flip in front" else size
            for _ in range(rng.choice([1, 1, 5])):
                offset = rng.randrange(within)
                with target.open("r+b") as file:
                    file.seek(offset)
                    old = file.read(1 if kind != "zero" else rng.randrange(2000))
                    file.seek(offset)
                    flipped = bytes([old[0] ^ 1 << rng.randrange(8)])
                    file.write(bytes(len(old)) if kind == "zero" else flipped)


def records_of(path: Path) -> dict[int, bytes]:
    """What a log holds."""
    with Log.open(path, "r") as log:
        return {entry.seq: bytes(entry.payload) for entry in log.replay()}


def check(path: Path, report: Repaired, before: set[int]) -> None:
    """The log is sound and as the report says, and what is not in it was lost by the report."""
    gaps = bool(list(path.glob("*.compact.seg")))
    plain = None if gaps else {record.seq: record.payload for record in read_log(path).records}
    with Log.open(path, "w", flush_policy=MANUAL) as log:
        assert log.verify().damages == ()
        found = {entry.seq: bytes(entry.payload) for entry in log.replay()}
        stats = log.stats()
        following = log.append(b"goes on")
    assert plain in (None, found)
    assert (stats["first_seq"], stats["committed"]) == (report.first_seq, report.committed)
    assert following == report.committed
    for number, content in found.items():
        # That a truncation dropped the first records of a segment, only the manifest knew.
        was_dropped = number < min(before) and "MANIFEST" in dict(report.problems)
        assert number in before or was_dropped, f"record {number} never was"
        assert content == payload(number), f"record {number} is another"
    lost: set[int] = set()
    for each in report.lost:
        lost |= set(range(each.start, COUNT if each.stop is None else each.stop))
    assert not lost & found.keys()
    missing = before - found.keys() - lost
    # The documented limit: where nothing vouches for the end, damage there looks like a torn tail.
    assert not missing or min(missing) >= (COUNT if report.torn is None else report.torn)


def damaged_and_repaired(pristine: Path, seed: int, *, in_place: bool) -> Repaired | None:
    """What a repair says of the damage that `seed` makes; None where it looks like a newer version."""
    rng = random.Random(seed)
    path = pristine.parent / f"{pristine.name}-damaged" / "log"
    shutil.rmtree(path.parent, ignore_errors=True)
    shutil.copytree(pristine, path.parent)
    if in_place:
        # CONTROL is then of this page cache, and knows how much there was.
        with Log.open(path, "w", flush_policy=MANUAL):
            pass
    before = set(records_of(pristine / "log"))
    spoil(path, rng)
    try:
        try:
            with unchanged(path):
                dry = mmaplog.repair(path, dry_run=True)
        except FormatError as error:
            assert "upgrade" in str(error)
            with pytest.raises(FormatError):
                mmaplog.repair(path)
            return None
        except FileNotFoundError:
            assert not list(path.glob("*.seg"))
            return None
        report = mmaplog.repair(path)
        # A log whose every name is gone gets a new one, at random.
        assert replace(dry, dry_run=False, log_uuid=report.log_uuid) == report
        check(path, report, before)
        again = mmaplog.repair(path, dry_run=True)
        assert not again.changed
        return report
    finally:
        shutil.rmtree(path.parent)


@given(seed=st.integers(0, 1 << 32), in_place=st.booleans())
def test_after_any_damage(pristine: Path, seed: int, in_place: bool) -> None:
    damaged_and_repaired(pristine, seed, in_place=in_place)


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_after_chosen_damage(pristine: Path, first: int) -> None:
    """Seeds that are the same in every run."""
    seeds = range(first, first + 20)
    reports = [damaged_and_repaired(pristine, seed, in_place=bool(seed % 2)) for seed in seeds]
    assert any(report is not None and report.lost for report in reports), "the damage does none"


def test_a_repair_that_keeps_silent_is_caught(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a report that leaves out what is lost."""
    real = mmaplog.repair
    monkeypatch.setattr(mmaplog, "repair", lambda *args, **options: replace(real(*args, **options), lost=()))
    with pytest.raises(AssertionError):
        for seed in range(40):
            damaged_and_repaired(pristine, seed, in_place=False)
