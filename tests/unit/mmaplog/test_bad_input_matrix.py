"""Some of every way in which a file of a log can be wrong; ``tests.unit.mmaplog.matrix`` has them all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmaplog import CorruptionError, FlushPolicy, Locked, Log
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapio.processes import ROOT, in_child
from tests.unit.mmaplog import damage, matrix
from tests.unit.mmaplog.matrix import COUNT, FILES, MODES, STATES, Ground, payload
from tests.unit.mmaplog.segment_file import SegmentFile, segment_paths


@pytest.fixture
def tmp_path(memory_path: Path) -> Path:
    """In memory: there are thousands of syncs, and none of them matters to what is looked for."""
    return memory_path


MANUAL = FlushPolicy.MANUAL
#: Of lengths and bits, one in so many; coprime to 8, so that every bit of a byte has its turn.
STRIDE = 83


@pytest.mark.parametrize("which", FILES)
@pytest.mark.parametrize("state", STATES)
def test_some_of_everything(tmp_path: Path, state: str, which: str) -> None:
    """In a process of its own, which must end by itself."""
    try:
        count, found = in_child(lambda: matrix.run(tmp_path, state, which, STRIDE))
    except AssertionError as error:
        raise AssertionError(f"{error}\nin {(tmp_path / 'case').read_text().strip()}") from None
    assert found == []
    assert count >= 10


class Glib:
    """Opens what Log refuses, without what is damaged: the control."""

    @staticmethod
    def open(path: Path, mode: Any, **options: Any) -> Log:
        """Open a log, cutting the last segment if need be."""
        try:
            return Log.open(path, mode, **options)
        except CorruptionError:
            last = SegmentFile(segment_paths(path)[-1])
            last.drop_mark()
            last.data[4096:] = b""
            last.save()
            (path / "CONTROL").unlink(missing_ok=True)
            return Log.open(path, mode, **options)


class Blind:
    """Reads without verifying: the other control."""

    def __init__(self, log: Log) -> None:
        self._log = log

    @classmethod
    def open(cls, path: Path, mode: Any, **options: Any) -> Blind:
        """Open a log."""
        return cls(Log.open(path, mode, **options))

    def replay(self) -> Iterator[Any]:
        """All entries, as they stand there."""
        return self._log.replay(verify=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def __enter__(self) -> Blind:
        return self

    def __exit__(self, *exc: object) -> None:
        self._log.close()

    def __getitem__(self, seq: int) -> Any:
        return self._log[seq]


@pytest.mark.parametrize(
    ("opener", "which", "complaint"),
    [(Glib, "tail", "missing and nobody complains"), (Blind, "middle", "record 4 is")],
)
def test_a_log_that_is_not_careful_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opener: type, which: str, complaint: str
) -> None:
    """Records that are gone, and records that are not what was written."""
    monkeypatch.setattr(matrix, "Log", opener)
    _, found = in_child(lambda: _run_with_whole_logs(tmp_path, opener, which))
    assert any(complaint in each for each in found), found[:5]


def _run_with_whole_logs(tmp_path: Path, opener: type, which: str) -> tuple[int, list[str]]:
    # The logs are made by the real one.
    vars(matrix)["Log"] = Log
    made = Ground(tmp_path / "log", "closed"), Ground(tmp_path / "other", "closed")
    vars(matrix)["Log"] = opener
    logs = iter(made)
    vars(matrix)["Ground"] = lambda *_: next(logs)
    return matrix.run(tmp_path, "closed", which, STRIDE)


def test_the_ground_is_what_it_seems(tmp_path: Path) -> None:
    """Three small segments, put back as they were, with a CONTROL that is believed where it is to be."""
    for state in STATES:
        ground = Ground(tmp_path / state / "log", state)
        for _ in range(2):
            damage.overwrite(ground.file("tail"), b"\xff" * 4096)
            ground.file("CONTROL").unlink(missing_ok=True)
            ground.restore()
            assert sum(len(each) for name, each in ground.contents.items() if name.endswith(".seg")) < 16_000
            with Log.open(ground.path, "r") as log:
                assert log.recovered is (state != "known")
                assert [bytes(entry.payload) for entry in log.replay()] == [
                    payload(each) for each in sorted(ground.numbers)
                ]
            ground.restore()


def test_the_documented_limit(tmp_path: Path) -> None:
    """The last group has no witness: without mark and CONTROL, damage there is taken for a torn tail."""
    ground = Ground(tmp_path / "log", "in use")
    records = list(SegmentFile(ground.file("tail")).records())
    outcomes = []
    for record in records:
        damage.overwrite(ground.file("tail"), b"\xff", record.offset + 20)
        try:
            with Log.open(ground.path, "w", flush_policy=MANUAL) as log:
                outcomes.append(log.committed)
        except CorruptionError:
            outcomes.append(-1)
        ground.restore()
        (ground.path / "CONTROL").unlink(missing_ok=True)
    assert outcomes == [-1, -1, -1, COUNT - 1]


@pytest.mark.parametrize("mode", MODES)
def test_a_directory_that_may_not_be_written(tmp_path: Path, mode: Any) -> None:
    """As nobody: a reader finds the end for himself, a writer is told; nothing is changed."""
    if os.geteuid() != 0:
        pytest.skip("not root: NOT TESTED that a log which may not be written is read")
    for state in STATES:
        ground = Ground(tmp_path / state / "log", state)
        for each in (ground.path, *ground.path.iterdir()):
            each.chmod(0o755 if each.is_dir() else 0o644)
        code = (
            "import os, sys\n"
            "from mmaplog import Log, FlushPolicy\n"
            # By its name alone: the directories above may be closed to others.
            "os.chdir(sys.argv[1]); os.setgid(65534); os.setuid(65534)\n"
            "try:\n"
            f"    with Log.open('log', {mode!r}, flush_policy=FlushPolicy.MANUAL) as log:\n"
            "        print(len(list(log.replay())), log.verify().damages)\n"
            "except PermissionError as error:\n"
            "    print('PermissionError', 'log' in str(error))\n"
        )
        with unchanged(ground.path):
            command = [sys.executable, "-c", code, str(ground.path.parent)]
            told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        assert told.stdout.strip() == (f"{len(ground.numbers)} ()" if mode == "r" else "PermissionError True")


@pytest.mark.parametrize("which", [None, *FILES])
def test_a_second_writer_is_refused_whatever_is_wrong(tmp_path: Path, which: str | None) -> None:
    """It must not mend what the first one is working with."""
    ground = Ground(tmp_path / "log", "known")
    with Log.open(ground.path, "w", flush_policy=MANUAL) as log:
        if which not in (None, "LOCK", "MANIFEST"):
            damage.overwrite(ground.file(which), b"\xff" * 90)
        if which == "MANIFEST":
            ground.file(which).unlink()
        if which == "LOCK":
            damage.overwrite_whole(ground.file(which), b"process 1" * 100)
        with unchanged(ground.path, ignoring=("LOCK",)), pytest.raises(Locked):
            Log.open(ground.path, "w", flush_policy=MANUAL)
        if which != "CONTROL":
            assert log.append(b"goes on") == COUNT


def test_a_copy_in_which_everything_is_wrong(tmp_path: Path) -> None:
    """Ends with an error like any other."""
    ground = Ground(tmp_path / "log", "closed")
    for each in list(ground.path.iterdir()):
        damage.overwrite_whole(each, b"\xff" * 5000)
    for mode in MODES:
        with pytest.raises(OSError, match="log"):
            Log.open(ground.path, mode, flush_policy=MANUAL)
    shutil.rmtree(ground.path)
