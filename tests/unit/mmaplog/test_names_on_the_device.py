"""The order in which names reach the device: what a record depends on is there before it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mmapio import FlushPolicy, _os
from mmaplog import Log


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was synced, renamed and removed from now on, in order: (function, file name)."""
    seen: list[tuple[str, str]] = []

    def watched(name: str, shown: Callable[..., object]) -> Callable[..., object]:
        real: Callable[..., object] = vars(_os)[name]

        def call(*arguments: object, **named: object) -> object:
            result = real(*arguments, **named)
            seen.append((name, Path(str(shown(*arguments))).name))
            return result

        return call

    monkeypatch.setattr(_os, "sync", watched("sync", lambda opened, *_: opened.path))
    monkeypatch.setattr(_os, "replace_file", watched("replace_file", lambda directory, old, new: new))
    monkeypatch.setattr(_os, "remove_file", watched("remove_file", lambda directory, name: name))
    return seen


def test_a_segment_is_removed_only_once_its_successor_has_a_durable_name(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    """The first record was larger than a segment, which got it one of its own in place of the empty one.

    The old name was removed before the new one was durable. Of these two a power cut could keep the removal
    alone, and the log never opened again: no segment began with its first record.
    """
    with Log.open(tmp_path / "log", segment_bytes=65536, flush_policy=FlushPolicy.MANUAL) as log:
        calls.clear()
        log.append(bytes(100_000))
        (published,) = (at for at, call in enumerate(calls) if call[0] == "replace_file")
        (removed,) = (at for at, call in enumerate(calls) if call[0] == "remove_file")
        assert ("sync", "log") in calls[published:removed]


def test_the_name_of_the_directory_is_durable_whoever_made_it(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    """A process was killed after it had made the directory. The next one synced only what is in it.

    Everything that was appended durably was in a directory which a power cut could take away.
    """
    (tmp_path / "log").mkdir()
    with Log.open(tmp_path / "log", flush_policy=FlushPolicy.MANUAL):
        assert ("sync", tmp_path.name) in calls[: calls.index(("replace_file", "MANIFEST"))]
    calls.clear()
    with Log.open(tmp_path / "log", flush_policy=FlushPolicy.MANUAL):
        assert ("sync", tmp_path.name) not in calls


@pytest.mark.parametrize("cleanly", [False, True])
def test_who_comes_after_a_roll_makes_its_name_durable(
    tmp_path: Path, calls: list[tuple[str, str]], cleanly: bool
) -> None:
    """Everything was durable when the log rolled, and then its writer was gone.

    The next one took all names for durable. The first record of the new segment was acknowledged as durable,
    in a file whose name a power cut could take away.
    """
    log = Log.open(tmp_path / "log", flush_policy=FlushPolicy.MANUAL)
    log.append(b"first", durable=True)
    log.roll_tail()
    if cleanly:
        log.close()
    del log
    with Log.open(tmp_path / "log", flush_policy=FlushPolicy.MANUAL) as log:
        calls.clear()
        log.append(b"second", durable=True)
        assert ("sync", "log") in calls
        calls.clear()
        log.append(b"third", durable=True)
        assert ("sync", "log") not in calls


def test_a_segment_is_sealed_only_once_its_successor_has_a_durable_name(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    """A compaction rolled when everything was durable, so that there was nothing to flush, and sealed.

    A footer says what comes next. A power cut could leave it without the name of that, and the log never
    opened again.
    """
    with Log.open(tmp_path / "log", flush_policy=FlushPolicy.MANUAL) as log:
        log.append(b"first", durable=True)
        log.roll_tail()
        calls.clear()
        log.compact(lambda entry: True)
        assert ("sync", "log") in calls
