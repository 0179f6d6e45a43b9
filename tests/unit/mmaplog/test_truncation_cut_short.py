"""A truncation that is killed, or fails, at any call to the system: all of it has happened, or nothing."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mmapio import _os
from mmaplog import Poisoned
from tests.unit.mmapio.processes import in_child, killed_after
from tests.unit.mmaplog.keeping import (
    LOST,
    content,
    died_at,
    failing_at,
    fill,
    filled,
    left_over,
    lose,
    one_of,
    opened,
    segment_starts,
)


@pytest.fixture
def tmp_path(memory_path: Path) -> Path:
    """In memory: there are thousands of syncs, and none of them matters to what is looked for."""
    return memory_path


# With twelve records in a segment: both ends of the log, of segments, and something in between.
# ---- cut short ----


@pytest.mark.parametrize("lost", LOST, ids=str)
@pytest.mark.parametrize("end", ["before", "after"])
def test_killed_at_any_call(tmp_path: Path, end: str, lost: tuple[str, ...]) -> None:
    """The records are those before it or those after it, whatever else is lost, and the log goes on."""
    model = filled(tmp_path / "log")
    seq = 26 if end == "before" else 14
    after = {number: data for number, data in model.items() if (number >= seq) == (end == "before")}
    # Without MANIFEST, a truncation of the beginning is known as far as segments were unlinked.
    partly = [{number: data for number, data in model.items() if number >= base} for base in (12, 24)]
    allowed = [model, after, *(partly if "MANIFEST" in lost and end == "before" else [])]

    def work(path: Path) -> None:
        log = opened(path)
        (log.truncate_before if end == "before" else log.truncate_after)(seq)

    for moment in itertools.count(1):
        path = tmp_path / str(moment)
        shutil.copytree(tmp_path / "log", path)
        # As it is while a writer is at work.
        killed_after(lambda path=path: opened(path))  # type: ignore[misc]
        died = died_at(moment, lambda path=path: work(path))  # type: ignore[misc]
        lose(path, lost)
        if moment % 2:
            with opened(path, "r") as reader:
                one_of(content(reader), allowed)
        with opened(path) as log:
            found = content(log)
            one_of(found, allowed)
            fill(log, 15, "later")
        assert left_over(path) == []
        with opened(path) as log:
            assert {number: data for number, data in content(log).items() if number in found} == found
            assert len(log) == len(found) + 15
        shutil.rmtree(path)
        if not died:
            break
    assert moment > 10
    one_of(found, allowed[1:])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("end", ["before", "after"])
def test_a_call_that_fails(tmp_path: Path, end: str, number: int) -> None:
    """The error comes out. Nothing was dropped, or all: what could not be finished is refused to be built
    on, until it is.
    """
    model = filled(tmp_path / "log")
    seq = 26 if end == "before" else 14
    after = {each: data for each, data in model.items() if (each >= seq) == (end == "before")}
    poisoned = 0
    for moment in itertools.count(1):
        path = tmp_path / str(moment)
        shutil.copytree(tmp_path / "log", path)
        reached: list[int] = []
        with opened(path) as log:
            try:
                with failing_at(moment, number, reached):
                    (log.truncate_before if end == "before" else log.truncate_after)(seq)
            except OSError as error:
                assert error.errno == (errno.EIO if log.stats()["poison"] else number)
                if log.stats()["poison"]:
                    poisoned += 1
                    with pytest.raises(Poisoned):
                        log.append(b"lost")
                    with pytest.raises(Poisoned):
                        log.truncate_after(3)
                else:
                    one_of(content(log), [model, after])
                    log.append(b"x")
                    (log.truncate_before if end == "before" else log.truncate_after)(seq)
                    if end == "before":
                        log.truncate_after(40)
                    one_of(content(log), [after])
            else:
                # Where there is no room for a segment of some size, there may be for its header.
                assert reached[0] < moment or (end, number) == ("after", errno.ENOSPC)
        with opened(path) as log:
            one_of(content(log), [after, model])
        shutil.rmtree(path)
        if reached[0] < moment:
            break
    assert moment > 5
    assert (poisoned > 0) == (end == "after")


def test_strays_go_only_once_manifest_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer killed between replacing MANIFEST and syncing the directory left files that the next one
    unlinked at once: after a power cut the old MANIFEST was back, and they were not.
    """
    path = tmp_path / "log"
    filled(path)
    calls: list[str] = []

    def truncate() -> None:
        log = opened(path)
        real = _os.replace_file

        def replace(directory: _os.Descriptor, old: str, new: str) -> None:
            real(directory, old, new)
            if new == "MANIFEST":
                os.kill(os.getpid(), 9)

        vars(_os)["replace_file"] = replace
        log.truncate_before(30)

    with pytest.raises(AssertionError, match="-9"):
        in_child(truncate)
    assert segment_starts(path) == [0, 12, 24, 36]
    for name in ("sync", "remove_file"):
        real = vars(_os)[name]

        def noted(*arguments: object, name: str = name, real: Callable[..., object] = real) -> object:
            calls.append(name)
            return real(*arguments)

        monkeypatch.setattr(_os, name, noted)
    opened(path).close()
    assert segment_starts(path) == [24, 36]
    assert calls.index("sync") < calls.index("remove_file")
