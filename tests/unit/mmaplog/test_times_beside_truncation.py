"""Who joins a log learns its last time by reading back; meanwhile another writer may drop the beginning."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmapio import FlushPolicy, _os
from mmaplog import Log

CUT = 17


@pytest.mark.parametrize("kept", [CUT - 1, CUT])
def test_the_beginning_is_dropped_while_the_last_time_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """TooOld came out of opening, though nothing was wrong."""
    path = tmp_path / "log"
    with Log.open(path, segment_bytes=65536, timestamps=True, flush_policy=FlushPolicy.MANUAL) as log:
        log.append_many([b"%d" % number * 5_000 for number in range(30)])
        # So that CONTROL does not say where the last record is.
        log.truncate_after(CUT)
        times = [entry.timestamp for entry in log.replay()]
    real = _os.open_file
    dropped: list[str] = []

    def open_file(name: str, *arguments: bool, **named: object) -> _os.Descriptor:
        if name.startswith(f"{0:020}-") and not dropped:
            dropped.append(name)
            first.truncate_before(kept)
        return real(name, *arguments, **named)  # type: ignore[arg-type]

    with Log.open(path, "w", shared=True, timestamps=True, flush_policy=FlushPolicy.MANUAL) as first:
        monkeypatch.setattr(_os, "open_file", open_file)
        with Log.open(path, "w", shared=True, timestamps=True, flush_policy=FlushPolicy.MANUAL) as second:
            assert dropped
            assert second.append(b"next") == CUT
            times = [*times[kept:], second[CUT].timestamp]
            assert [entry.timestamp for entry in second.replay()] == times
            assert times == sorted(times)
