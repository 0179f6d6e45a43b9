"""A log cut in the middle of a batch, and then a power cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmapio import FlushPolicy
from mmaplog import Log
from tests.unit.mmaplog.segment_file import segment_paths

FOOTERS = slice(1536, 2560)


@pytest.mark.parametrize("seq", [3, 4, 5, 6])
@pytest.mark.parametrize("rolled", [False, True])
def test_what_stays_of_a_batch_stays(tmp_path: Path, rolled: bool, seq: int) -> None:
    """The footer of a full segment is not synced when it is written.

    `truncate_after` left one that it found as it was: it spoke of records that were gone, and a power cut
    could take it away. Then what was left of a batch looked like a batch without an end, and recovery dropped
    what had been durable.
    """
    path = tmp_path / "log"
    with Log.open(path, segment_bytes=65536, flush_policy=FlushPolicy.MANUAL) as log:
        log.append_many([b"a", b"b", b"c"])
        log.append_many([b"d", b"e", b"f", b"g"], atomic=True)
        if rolled:
            log.append(bytes(60_000))
            log.append(bytes(60_000))
        log.flush()
        log.truncate_after(seq)
        footers = segment_paths(path)[0].read_bytes()[FOOTERS]
    # As after a power cut: nothing says where the log ends but the segments, and of these only what was
    # synced.
    (path / "CONTROL").unlink()
    with Log.open(path, "w") as log:
        assert b"".join(bytes(entry.payload) for entry in log.replay()) == b"abcdefg"[:seq]
        assert log.committed == seq
    # What the footer says is what is left.
    assert int.from_bytes(footers[:8], "little") == seq
    assert int.from_bytes(footers[16:24], "little") == seq
