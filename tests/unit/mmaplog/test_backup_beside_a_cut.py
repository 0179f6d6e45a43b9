"""A backup by a reader at each step of dropping the end: of the log before, or of the log after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmapio import FlushPolicy, _os
from mmaplog import Log, backup
from mmaplog.errors import LogError
from tests.unit.mmaplog.keeping import content

RECORDS = 40
STEPS = ("sync", "write_at", "replace_file", "remove_file")


def filled(path: Path, *, compacted: bool) -> Log:
    """A log of several segments, with a batch here and there."""
    log = Log.open(path, segment_bytes=65536, flush_policy=FlushPolicy.MANUAL)
    for number in range(RECORDS):
        if number % 4 == 3:
            with log.batch() as batch:
                for _ in range(3):
                    batch.append(b"%d" % number * 1000)
        else:
            log.append(b"%d" % number * 3000)
    log.flush()
    if compacted:
        log.compact(lambda entry: entry.seq % 5 != 1)
    return log


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("seq", [17, 43])
def test_a_backup_at_any_step_of_a_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seq: int, compacted: bool
) -> None:
    """Until CONTROL is set back all of it is there; then it is waited for."""
    made: list[Path] = []
    put_off = 0
    monkeypatch.setattr(backup, "ATTEMPTS", 2)
    with filled(tmp_path / "log", compacted=compacted) as log, Log.open(tmp_path / "log", "r") as reader:
        before = content(log)
        after = {number: payload for number, payload in before.items() if number < seq}

        def back_up() -> None:
            nonlocal put_off, back_up_now
            # It makes such calls itself.
            back_up_now = False
            path = tmp_path / f"{len(made) + put_off}"
            try:
                reader.backup(path)
                made.append(path)
            except LogError:
                put_off += 1
            back_up_now = True

        def around(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **others: Any) -> Any:
                if not back_up_now:
                    return real(*arguments, **others)
                back_up()
                answer = real(*arguments, **others)
                back_up()
                return answer

            return call

        back_up_now = True
        with monkeypatch.context() as patch:
            for name in STEPS:
                patch.setattr(_os, name, around(getattr(_os, name)))
            log.truncate_after(seq)
        assert content(reader) == after
    found = []
    for path in made:
        with Log.open(path, flush_policy=FlushPolicy.NEVER) as copy:
            found.append(content(copy))
            assert copy.verify().damages == ()
            assert copy.append(b"next") == copy.committed - 1
        (path / "CONTROL").unlink()
        with Log.open(path, "r") as copy:
            assert content(copy) == found[-1] | {copy.committed - 1: b"next"}
    assert [each for each in found if each not in (before, after)] == []
    assert before in found
    assert put_off
