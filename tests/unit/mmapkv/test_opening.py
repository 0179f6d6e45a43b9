"""Opening a store: the modes of dbm, wrong arguments, spoilt files, permissions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmapio import FlushPolicy, InvalidMode
from mmapkv import FormatError, KVStore
from mmaplog import Log
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapio.processes import outcome, unprivileged
from tests.unit.mmapkv.stores import contents, lose, opened
from tests.unit.mmaplog.damage import DAMAGES, SEGMENT_DAMAGES, Damage

CONTENT = {b"%d" % number: b"%d" % number * 40 for number in range(300)}


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A store of two segments that was closed cleanly."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        for key in CONTENT:
            kv[key] = b"x" * 150
        kv.update(CONTENT)
    assert len(list(path.glob("*.seg"))) == 2
    return path


@pytest.mark.parametrize("mode", ["r", "w"])
def test_r_and_w_open_only_what_exists(tmp_path: Path, mode: str) -> None:
    """A typing error in a path must not create a store there."""
    (tmp_path / "empty").mkdir()
    with unchanged(tmp_path):
        for path in (tmp_path / "missing", tmp_path / "missing" / "deeper", tmp_path / "empty"):
            with pytest.raises(FileNotFoundError, match="use 'c'") as raised:
                opened(path, mode)
            assert raised.value.filename == str(path)


@pytest.mark.parametrize("mode", ["c", "n"])
def test_c_and_n_create(tmp_path: Path, mode: str) -> None:
    """A new directory, or one that is empty; not its parents."""
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "missing", tmp_path / "empty"):
        with opened(path, mode) as kv:
            assert len(kv) == 0
            kv[b"a"] = b"1"
        assert contents(path) == {b"a": b"1"}
    with unchanged(tmp_path), pytest.raises(FileNotFoundError):
        opened(tmp_path / "not" / "there", mode)


def test_the_default_is_c(tmp_path: Path) -> None:
    """The shortest program is one that makes a store, and opens it the next time."""
    for number in range(3):
        with KVStore.open(tmp_path / "kv") as kv:
            assert len(kv) == number
            kv[b"%d" % number] = b"x"


def test_r_reads_and_refuses_every_change(tmp_path: Path, closed: Path) -> None:
    """A reader must never be taken for a writer."""
    with opened(closed, "r") as kv:
        assert dict(kv) == CONTENT
        for change in (
            lambda: kv.put(b"a", b"1"),
            lambda: kv.put(b"a", b"1", durable=True),
            lambda: kv.__setitem__(b"0", b"1"),
            lambda: kv.__delitem__(b"0"),
            lambda: kv.pop(b"0"),
            lambda: kv.update(a=b"1"),
            lambda: kv.setdefault(b"new", b"1"),
            kv.popitem,
            kv.clear,
            kv.flush,
        ):
            with pytest.raises(InvalidMode, match="mode 'w' or 'c'"):
                change()
        # shelve asks for it whenever it closes.
        kv.sync()
        assert kv.setdefault(b"0", b"1") == CONTENT[b"0"]
        assert dict(kv) == CONTENT
    assert contents(closed) == CONTENT


@pytest.mark.parametrize("mode", ["w", "c"])
def test_w_and_c_open_what_is_there(closed: Path, mode: str) -> None:
    """And write behind it."""
    with opened(closed, mode) as kv:
        assert dict(kv) == CONTENT
        kv[b"more"] = b"1"
    assert contents(closed) == {**CONTENT, b"more": b"1"}


def test_n_starts_anew(closed: Path) -> None:
    """Nothing of the old store may shine through, not even after everything was rebuilt."""
    with opened(closed, "n") as kv:
        assert len(kv) == 0
        assert b"0" not in kv
        kv[b"new"] = b"1"
    lose(closed, "CONTROL", "INDEX")
    assert contents(closed, "w") == {b"new": b"1"}


@pytest.mark.parametrize("mode", ["", "x", "rw", "R", "cn", None, 0, b"r"])
def test_another_mode_is_refused(tmp_path: Path, mode: object) -> None:
    """Before anything is created."""
    with unchanged(tmp_path), pytest.raises(ValueError, match="r, w, c, n"):
        KVStore.open(tmp_path / "kv", mode)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"flush_policy": None}, TypeError),
        ({"flush_policy": "always"}, TypeError),
        ({"segment_bytes": 0}, ValueError),
        ({"segment_bytes": 1 << 40}, ValueError),
        ({"segment_bytes": 100_000.5}, TypeError),
        ({"segment_bytes": "100000"}, TypeError),
        ({"unknown": 1}, TypeError),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused(
    tmp_path: Path, keywords: dict[str, object], error: type[Exception]
) -> None:
    """Before anything is created."""
    with unchanged(tmp_path), pytest.raises(error):
        KVStore.open(tmp_path / "kv", **keywords)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [5, None, 1.5])
def test_a_path_that_is_none_is_a_type_error(wrong: object) -> None:
    """A number would be taken for a descriptor by some functions of the system."""
    with pytest.raises(TypeError):
        KVStore.open(wrong)  # type: ignore[arg-type]


def test_every_kind_of_path_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """str, bytes, PathLike, names that are not UTF-8, relative ones whatever the working directory later."""
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "a", str(tmp_path / "b"), os.fsencode(tmp_path / "c"), b"\xff\xfe", "relative"):
        with KVStore.open(path, flush_policy=FlushPolicy.MANUAL, segment_bytes=64 << 10) as kv:
            monkeypatch.chdir("/")
            for number in range(1500):
                kv[b"%d" % number] = b"x" * 60
            kv.flush()
            assert kv.stats()["segments"] > 1
            monkeypatch.chdir(tmp_path)
        with KVStore.open(path, "r") as kv:
            assert len(list(kv.items())) == 1500


@pytest.mark.parametrize("mode", ["r", "w", "c", "n"])
def test_a_path_to_something_else_is_refused(tmp_path: Path, mode: str) -> None:
    """A FIFO must not block the caller."""
    (tmp_path / "file").write_bytes(b"precious")
    os.mkfifo(tmp_path / "fifo")
    with unchanged(tmp_path):
        for name in ("file", "fifo"):
            with pytest.raises(NotADirectoryError, match="directory") as raised:
                opened(tmp_path / name, mode)
            assert raised.value.filename == str(tmp_path / name)


@pytest.mark.parametrize("mode", ["c", "n"])
@pytest.mark.parametrize(
    "names",
    [["setup.py", "MANIFEST"], ["INDEX", "book.txt"], ["film.seg"], ["data.mdb", "lock.mdb"], ["a.tmp"]],
)
def test_a_directory_of_someone_else_is_left_alone(tmp_path: Path, mode: str, names: list[str]) -> None:
    """Creating a store between somebody's files, or deleting them as left-overs, loses what is not ours."""
    for name in names:
        (tmp_path / name).write_bytes(b"precious")
    with unchanged(tmp_path), pytest.raises(FormatError) as raised:
        opened(tmp_path, mode)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("mode", ["r", "w", "c"])
def test_a_plain_log_is_no_store(tmp_path: Path, mode: str) -> None:
    """Its records are no keys and values, and opening it must not make it one."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=FlushPolicy.MANUAL) as log:
        for number in range(10):
            log.append(b"%d" % number)
    for _ in range(2):
        with pytest.raises(FormatError, match="plain log"):
            opened(path, mode)
    assert not (path / "INDEX").exists()
    with Log.open(path, "w", flush_policy=FlushPolicy.MANUAL) as log:
        assert [bytes(entry.payload) for entry in log.replay()] == [b"%d" % number for number in range(10)]


@pytest.mark.parametrize(
    ("damage", "index"),
    [*((damage, True) for damage in DAMAGES), *((damage, False) for damage in SEGMENT_DAMAGES)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_spoilt_file_of_the_log_is_refused(closed: Path, damage: Damage, index: bool) -> None:
    """The log is the truth: with it damaged there is no store, whatever the index says. Nothing changes."""
    damage.inflict(closed)
    if not index:
        lose(closed, "INDEX", "CONTROL")
    with unchanged(closed, ignoring=("LOCK",)):
        for mode in ("r", "w"):
            with pytest.raises(OSError, match=damage.word) as raised:
                opened(closed, mode)
            assert type(raised.value).__name__ == damage.error


@pytest.mark.parametrize("mode", ["r", "w", "c"])
def test_without_permission_nothing_happens(closed: Path, mode: str) -> None:
    """The error is the system's own and names the place."""
    closed.chmod(0)
    kind, text = unprivileged(lambda: outcome(lambda: opened(closed, mode)))
    closed.chmod(0o700)
    assert kind == "PermissionError"
    assert str(closed) in text
    assert contents(closed) == CONTENT


@pytest.mark.parametrize("lost", [[], ["INDEX"], ["CONTROL"], ["CONTROL", "INDEX"]], ids=str)
def test_who_may_only_read_can_read(closed: Path, lost: list[str]) -> None:
    """Even where the derived files are missing and must not be made; and cannot write."""
    lose(closed, *lost)
    for file in closed.iterdir():
        file.chmod(0o400)
    closed.chmod(0o500)
    with unchanged(closed):
        assert unprivileged(lambda: contents(closed)) == CONTENT
        for mode in ("w", "c", "n"):
            kind, text = unprivileged(lambda mode=mode: outcome(lambda: opened(closed, mode)))
            assert kind == "PermissionError"
            assert str(closed) in text


def test_a_new_store_is_small_and_private(tmp_path: Path) -> None:
    """Who has a thousand of them has not a thousand megabytes less; and others have no business in it."""
    previous = os.umask(0o022)
    try:
        with KVStore.open(tmp_path / "kv", flush_policy=FlushPolicy.MANUAL):
            pass
    finally:
        os.umask(previous)
    assert sum(file.stat().st_blocks * 512 for file in (tmp_path / "kv").iterdir()) <= 1 << 20
    assert (tmp_path / "kv").stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "kv").iterdir()} == {0o600}
