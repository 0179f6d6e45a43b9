"""Opening: the four modes of dbm, and arguments that make no sense."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmapio import InvalidMode
from mmaplog import FlushPolicy, FormatError, Log
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapio.processes import outcome, unprivileged
from tests.unit.mmaplog.segment_file import segment_paths

MANUAL = FlushPolicy.MANUAL


def make(path: Path, *records: bytes) -> Path:
    """A closed log that holds some records."""
    with Log.open(path, flush_policy=MANUAL) as log:
        for record in records:
            log.append(record)
    return path


def records(path: Path, mode: str = "r") -> list[bytes]:
    """What a log holds."""
    with Log.open(path, mode, flush_policy=MANUAL) as log:
        return [bytes(entry.payload) for entry in log.replay()]


@pytest.mark.parametrize("mode", ["r", "w"])
def test_r_and_w_open_only_what_exists(tmp_path: Path, mode: str) -> None:
    """A typing error in a path must not create a log there."""
    (tmp_path / "empty").mkdir()
    with unchanged(tmp_path):
        for path in (tmp_path / "missing", tmp_path / "missing" / "deeper", tmp_path / "empty"):
            with pytest.raises(FileNotFoundError, match="use 'c'") as raised:
                Log.open(path, mode)
            assert raised.value.filename == os.fspath(path)


@pytest.mark.parametrize("mode", ["c", "n"])
def test_c_and_n_create(tmp_path: Path, mode: str) -> None:
    """In a new directory, or in one that is empty."""
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "missing", tmp_path / "empty"):
        with Log.open(path, mode, flush_policy=MANUAL) as log:
            log.append(b"x")
        assert records(path) == [b"x"]


@pytest.mark.parametrize("mode", ["c", "n"])
def test_the_parent_must_exist(tmp_path: Path, mode: str) -> None:
    """Making directories at will hides typing errors."""
    with unchanged(tmp_path), pytest.raises(FileNotFoundError) as raised:
        Log.open(tmp_path / "missing" / "log", mode)
    assert str(tmp_path / "missing") in str(raised.value)


def test_r_reads_and_refuses_every_change(tmp_path: Path) -> None:
    """A reader must never be taken for a writer."""
    path = make(tmp_path / "log", b"one")
    with Log.open(path, "r") as log:
        assert not log.writable
        assert [bytes(entry.payload) for entry in log.replay()] == [b"one"]
        for change in (lambda: log.append(b"x"), lambda: log.append(b"x", durable=True), log.flush):
            with pytest.raises(InvalidMode, match="mode 'w' or 'c'"):
                change()
    assert records(path) == [b"one"]


@pytest.mark.parametrize("mode", ["w", "c"])
def test_w_and_c_go_on_where_the_log_ended(tmp_path: Path, mode: str) -> None:
    """And not at its beginning."""
    path = make(tmp_path / "log", b"one", b"two")
    with Log.open(path, mode, flush_policy=MANUAL) as log:
        assert log.append(b"three") == 2
    assert records(path) == [b"one", b"two", b"three"]


def test_n_starts_anew(tmp_path: Path) -> None:
    """Nothing of the old log may shine through, not even after recovery."""
    path = make(tmp_path / "log", *[b"old"] * 100)
    with Log.open(path, "n", flush_policy=MANUAL) as log:
        assert len(log) == 0
        assert log.append(b"new") == 0
    (path / "CONTROL").unlink()
    assert records(path, "w") == [b"new"]
    assert len(segment_paths(path)) == 1


@pytest.mark.parametrize("mode", ["", "x", "rw", "R", "cn", None, 0, b"r"])
def test_another_mode_is_refused(tmp_path: Path, mode: object) -> None:
    """Before anything is created."""
    with unchanged(tmp_path), pytest.raises(ValueError, match="r, w, c, n"):
        Log.open(tmp_path / "log", mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, -1, (64 << 10) - 1, (512 << 20) + 1, 2**64])
def test_a_segment_size_outside_the_format_is_refused(tmp_path: Path, size: int) -> None:
    """Offsets are kept in a fixed number of bits."""
    with unchanged(tmp_path), pytest.raises(ValueError, match=f"not {size}"):
        Log.open(tmp_path / "log", segment_bytes=size)


@pytest.mark.parametrize("wrong", ["1000000", 100_000.5, None])
def test_a_segment_size_that_is_no_integer_is_refused(tmp_path: Path, wrong: object) -> None:
    """Before anything is created."""
    with unchanged(tmp_path), pytest.raises(TypeError):
        Log.open(tmp_path / "log", segment_bytes=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [None, "always", 5, FlushPolicy])
def test_a_flush_policy_that_is_none_is_refused(tmp_path: Path, wrong: object) -> None:
    """A policy that is not understood would be no policy."""
    with unchanged(tmp_path), pytest.raises(TypeError, match="FlushPolicy"):
        Log.open(tmp_path / "log", flush_policy=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [5, None, 1.5])
def test_a_path_that_is_none_is_a_type_error(wrong: object) -> None:
    """A number would be taken for a descriptor by some functions of the system."""
    with pytest.raises(TypeError):
        Log.open(wrong)  # type: ignore[arg-type]


def test_every_kind_of_path_is_taken(tmp_path: Path) -> None:
    """str, bytes, PathLike, and names that are not UTF-8."""
    for number, path in enumerate(
        (
            tmp_path / "a",
            str(tmp_path / "b"),
            os.fsencode(tmp_path / "c"),
            os.fsencode(tmp_path) + b"/\xff\xfe",
        )
    ):
        with Log.open(path, flush_policy=MANUAL) as log:
            log.append(b"%d" % number)
        with Log.open(path, "r") as log:
            assert len(log) == 1


def test_a_relative_path_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And does not depend on the working directory once it is open."""
    monkeypatch.chdir(tmp_path)
    with Log.open("log", flush_policy=MANUAL, segment_bytes=64 << 10) as log:
        monkeypatch.chdir("/")
        for _ in range(2000):
            log.append(b"x" * 100)
        log.flush()
    assert len(records(tmp_path / "log")) == 2000


@pytest.mark.parametrize("mode", ["r", "w", "c", "n"])
def test_a_path_to_something_else_is_refused(tmp_path: Path, mode: str) -> None:
    """A FIFO must not block the caller."""
    (tmp_path / "file").write_bytes(b"precious")
    os.mkfifo(tmp_path / "fifo")
    with unchanged(tmp_path):
        for name in ("file", "fifo"):
            with pytest.raises(NotADirectoryError, match="directory") as raised:
                Log.open(tmp_path / name, mode)
            assert raised.value.filename == str(tmp_path / name)


FOREIGN: dict[str, dict[str, bytes]] = {
    "a program's source": {"setup.py": b"", "MANIFEST": b"include README\n"},
    "another store": {
        "MANIFEST-000004": b"x",
        "CURRENT": b"MANIFEST-000004\n",
        "LOCK": b"",
        "000003.log": b"",
    },
    "films": {"holiday.seg": b"x", "notes.txt": b"x"},
    "only a temporary file": {"thesis.tmp": b"x"},
    "a manifest's name with something else in it": {"MANIFEST": b"Manifest-Version: 1.0\n", "old.bad": b"x"},
}


@pytest.mark.parametrize("mode", ["c", "n"])
@pytest.mark.parametrize("names", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_directory_of_someone_else_is_left_alone(
    tmp_path: Path, mode: str, names: dict[str, bytes]
) -> None:
    """Creating a log between somebody's files, or deleting them as left-overs, loses what is not ours."""
    for name, content in names.items():
        (tmp_path / name).write_bytes(content)
    with unchanged(tmp_path), pytest.raises((FormatError, FileExistsError, OSError)) as raised:
        Log.open(tmp_path, mode)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("mode", ["r", "w", "c"])
def test_a_segments_name_with_something_else_in_it(tmp_path: Path, mode: str) -> None:
    """It is not ours by its name alone."""
    (tmp_path / f"{0:020}-{1:016x}.seg").write_bytes(b"not a segment" * 1000)
    (tmp_path / "LOCK").touch()
    with unchanged(tmp_path, ignoring=("LOCK",)), pytest.raises(FormatError, match="not a segment"):
        Log.open(tmp_path, mode)


def test_files_of_someone_else_inside_a_log_survive(tmp_path: Path) -> None:
    """What lies beside the segments and is not ours is not cleaned up either."""
    path = make(tmp_path / "log", b"one")
    for name in ("notes.tmp", "notes.bad", "film.seg", "readme", "CONTROL.bak", ".hidden.tmp"):
        (path / name).write_bytes(b"mine")
    (path / "CONTROL").unlink()
    assert records(path, "w") == [b"one"]
    with Log.open(path, "n", flush_policy=MANUAL) as log:
        assert len(log) == 0
    for name in ("notes.tmp", "notes.bad", "film.seg", "readme", "CONTROL.bak", ".hidden.tmp"):
        assert (path / name).read_bytes() == b"mine"


def test_creation_that_was_cut_short_is_taken_up(tmp_path: Path) -> None:
    """A power cut between the first segment and the manifest must not leave what nobody can open."""
    path = make(tmp_path / "log")
    (path / "MANIFEST").unlink()
    (path / "CONTROL").unlink()
    (path / "MANIFEST.tmp").write_bytes(b"mmaplog-man")
    with Log.open(path, flush_policy=MANUAL) as log:
        log.append(b"x")
    assert (path / "MANIFEST").exists()
    assert not (path / "MANIFEST.tmp").exists()
    assert records(path) == [b"x"]


@pytest.mark.parametrize(
    "left", [[], ["LOCK"], ["LOCK", "CONTROL.tmp"], ["LOCK", "MANIFEST.tmp"], ["LOCK", "CONTROL"]]
)
def test_a_directory_with_only_our_own_left_overs_is_empty(tmp_path: Path, left: list[str]) -> None:
    """Killed at its very beginning, a creation has left these."""
    for name in left:
        (tmp_path / name).write_bytes(b"")
    with Log.open(tmp_path, flush_policy=MANUAL) as log:
        log.append(b"x")
    assert records(tmp_path) == [b"x"]


def test_a_lost_manifest_is_known_from_the_segments(tmp_path: Path) -> None:
    """They carry the same facts."""
    path = make(tmp_path / "log", b"one", b"two")
    (path / "MANIFEST").unlink()
    for mode in ("r", "w", "c"):
        assert records(path, mode) == [b"one", b"two"]


@pytest.mark.parametrize("mode", ["r", "w", "c", "n"])
def test_without_permission_nothing_happens(tmp_path: Path, mode: str) -> None:
    """The error is the system's own and names the place."""
    path = make(tmp_path / "log", b"one")
    path.chmod(0)
    (tmp_path / "sealed").mkdir(mode=0o500)
    (tmp_path / "sealed" / "empty").mkdir(mode=0o500)

    def attempts() -> list[tuple[str, str]]:
        return [
            outcome(lambda: Log.open(path, mode)),
            outcome(lambda: Log.open(tmp_path / "sealed" / "new", mode))
            if mode in "cn"
            else ("PermissionError", str(path)),
            outcome(lambda: Log.open(tmp_path / "sealed" / "empty", mode))
            if mode in "cn"
            else ("PermissionError", str(path)),
        ]

    found = unprivileged(attempts)
    path.chmod(0o700)
    for kind, text in found:
        assert kind == "PermissionError"
        assert str(tmp_path) in text
    assert records(path) == [b"one"]


@pytest.mark.parametrize("mode", ["w", "c", "n"])
def test_who_may_only_read_cannot_write(tmp_path: Path, mode: str) -> None:
    """And is told where it lacks the permission."""
    path = make(tmp_path / "log", b"one")
    lock_down(path)
    with unchanged(path):
        kind, text = unprivileged(lambda: outcome(lambda: Log.open(path, mode)))
    assert kind == "PermissionError"
    assert str(path) in text


@pytest.mark.parametrize("control", [True, False], ids=["with CONTROL", "without CONTROL"])
def test_who_may_only_read_can_read(tmp_path: Path, control: bool) -> None:
    """Even where CONTROL is missing and must not be made."""
    path = make(tmp_path / "log", b"one", b"two")
    if not control:
        (path / "CONTROL").unlink()
    lock_down(path)
    with unchanged(path):
        assert unprivileged(lambda: records(path)) == [b"one", b"two"]


def lock_down(path: Path) -> None:
    """Take every right to write away."""
    for file in path.iterdir():
        file.chmod(0o400)
    path.chmod(0o500)
