"""Where somebody goes on who had read the log up to a number, when numbers are used again."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmaplog import FormatError
from mmaplog.manifest import BEGAN_MAX
from tests.unit.mmaplog.damage import patch_segment, rewrite_manifest
from tests.unit.mmaplog.keeping import content, fill, opened


def test_resume_tells_from_where_on_numbers_were_used_again(tmp_path: Path) -> None:
    """Who had read so far under some epoch goes on there, or where his history ends."""
    path = tmp_path / "log"
    with opened(path) as log:
        begun = log.epoch
        fill(log, 30)
        log.truncate_after(20)
        fill(log, 10)
        log.truncate_after(25)
        fill(log, 10)
        with opened(path, "r") as reader:
            for each in (log, reader):
                assert [each.resume(begun, seq) for seq in (0, 5, 20, 21, 30, 99)] == [
                    0,
                    5,
                    20,
                    20,
                    20,
                    20,
                ]
                assert [each.resume(begun + 1, seq) for seq in (20, 25, 26, 30)] == [20, 25, 25, 25]
                assert [each.resume(begun + 2, seq) for seq in (20, 25, 26, 35, 36, 1 << 70)] == [
                    20,
                    25,
                    26,
                    35,
                    35,
                    35,
                ]
                assert each.resume(99, 30) == 30
                assert each.resume(-1, 30) == 0
            log.truncate_before(22)
            for each in (log, reader):
                assert [each.resume(begun, 30), each.resume(begun + 2, 3)] == [20, 3]


def test_resume_knows_of_epochs_that_began_where_the_log_has_nothing_any_more(tmp_path: Path) -> None:
    """Also when no segment is left of them: who missed what was dropped is told, and nobody else."""
    path = tmp_path / "log"
    with opened(path) as log:
        begun = log.epoch
        fill(log, 30)
        for seq in (10, 20, 40):
            log.truncate_after(seq)
            fill(log, 30)
        # Where a segment begins.
        log.truncate_before(40)
    for mode in ("w", "r"):
        with opened(path, mode) as log:
            assert log.first_seq == 40
            assert [log.resume(begun, seq) for seq in (9, 10, 11, 30)] == [9, 10, 10, 10]
            assert [log.resume(begun + 1, seq) for seq in (10, 20, 21, 39, 40)] == [10, 20, 20, 20, 20]
            # Whose records are all there: the newest epoch began with the first of them.
            assert [log.resume(begun + 2, seq) for seq in (20, 39, 40, 50)] == [20, 39, 40, 40]
            assert [log.resume(begun + 3, seq) for seq in (40, 50, 70, 71)] == [40, 50, 70, 70]
    with opened(path) as log:
        log.truncate_before(41)
        assert [log.resume(begun + epoch, 50) for epoch in range(4)] == [10, 20, 40, 50]


def test_of_very_many_epochs_the_oldest_become_one(tmp_path: Path) -> None:
    """The manifest stays small; who stands in one of those is sent back further than he must be."""
    path = tmp_path / "log"
    with opened(path) as log:
        begun = log.epoch
        for epoch in range(BEGAN_MAX + 10):
            fill(log, 2)
            log.truncate_after(epoch)
            log.append(b"x")
            if epoch % 3 == 2:
                log.truncate_before(epoch + 1)
        kept = log.segments.manifest.began
        assert len(kept) == BEGAN_MAX
        last = epoch // 3 * 3 + 2
        for each in range(epoch - 1):
            expected = each if begun + each >= kept[0].epoch else 0
            assert log.resume(begun + each, last) == expected


def test_resume_without_a_manifest_trusts_nobody_of_an_older_epoch(tmp_path: Path) -> None:
    """It knew where an epoch began of which the beginning is gone; the segments do not."""
    path = tmp_path / "log"
    with opened(path) as log:
        begun = log.epoch
        fill(log, 30)
        for seq in (20, 40):
            log.truncate_after(seq)
            fill(log, 30)
        log.truncate_before(40)
    (path / "MANIFEST").unlink()
    with opened(path) as log:
        assert [log.resume(begun + epoch, 60) for epoch in range(3)] == [0, 0, 60]


@pytest.mark.parametrize(
    "began",
    ["[[1, 5]]", "[[0, 1]]", "[[1, 3], [2, 2]]", "[[2, 1], [2, 2]]", "[[1, -1]]", "[[4294967296, 1]]"],
)
def test_epochs_that_cannot_be_are_refused(tmp_path: Path, began: str) -> None:
    """Each was below the log, and they came one after another."""
    path = tmp_path / "log"
    with opened(path) as log:
        fill(log, 30)
        log.truncate_before(5)
    rewrite_manifest(path, lambda body: body[:-1] + f', "began": {began}}}'.encode())
    with pytest.raises(FormatError, match=r"Began.* is not in order"):
        opened(path)
    rewrite_manifest(path, lambda body: body.replace(began.encode(), b"[[1, 3], [3, 3]]"))
    with opened(path) as log:
        assert log.resume(0, 30) == 30


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_dropped_may_be_damaged(tmp_path: Path, which: int) -> None:
    """To drop it is what is left to do; of which epoch it was nobody can say, so nobody is spared."""
    path = tmp_path / "log"
    with opened(path) as log:
        begun = log.epoch
        fill(log, 24)
        log.truncate_after(10)
        fill(log, 26)
        assert [entry[0] for entry in log.segments.listing()] == [0, 10, 22, 34]
    damaged = sorted(path.glob("*.seg"))[which]
    patch_segment(damaged, 72, "<I", 7, seal=False)
    with opened(path) as log:
        log.truncate_before(22)
        assert (log.first_seq, len(content(log))) == (22, 14)
        assert [log.resume(begun + each, 24) for each in range(2)] == [10 * which, 24]
