"""A directory with a plain log is no store: it is told apart, and not made into one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmapkv import FormatError, KVStore, dbm, repair, verify
from mmaplog import Log
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapkv.stores import contents, lose, opened
from tests.unit.mmaplog.damage import overwrite
from tests.unit.mmaplog.segment_file import SegmentFile, segment_paths


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A log of two lines."""
    with Log.open(tmp_path / "log") as log:
        log.append_many([b"the first line", b"x"])
    return tmp_path / "log"


USES: dict[str, Callable[[Path], object]] = {
    "r": lambda path: opened(path, "r"),
    "w": lambda path: opened(path, "w"),
    "c": opened,
    "n": lambda path: opened(path, "n"),
    "shared": lambda path: KVStore.open(path, shared=True),
    "dbm": lambda path: dbm.open(path, "n"),
    "verify": verify,
    "quick": lambda path: verify(path, full=False),
    "repair": repair,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_a_plain_log_is_no_store(plain: Path, use: Callable[[Path], object]) -> None:
    """It was emptied by "n", left with half an index by the others, and verify said to drop its records."""
    with unchanged(plain, ignoring=("LOCK", "CONTROL")), pytest.raises(FormatError) as raised:
        use(plain)
    assert "holds a plain log of 2 records, and no store: record 0 is " in str(raised.value)
    assert str(plain) == raised.value.filename
    assert not list(plain.glob("INDEX*"))
    with Log.open(plain) as log:
        assert log.append(b"more") == 2


def test_a_plain_log_without_records_may_become_a_store(tmp_path: Path) -> None:
    """Nothing is lost by that."""
    for mode in ("c", "n"):
        Log.open(tmp_path / mode).close()
        with opened(tmp_path / mode, mode) as kv:
            kv["a"] = "b"
        assert contents(tmp_path / mode) == {b"a": b"b"}


@pytest.mark.parametrize("mode", ["r", "w", "n"])
def test_a_store_without_its_index_is_one(tmp_path: Path, mode: Any) -> None:
    """The index can be deleted at any time."""
    with opened(tmp_path / "kv") as kv:
        kv["a"] = "b"
    lose(tmp_path / "kv", "INDEX")
    with opened(tmp_path / "kv", mode) as kv:
        assert dict(kv) == ({} if mode == "n" else {b"a": b"b"})


def test_a_store_without_its_index_may_be_damaged(tmp_path: Path) -> None:
    """Whether it opens, and what is said of it, does not hang on the one record by which it is told."""
    with opened(tmp_path / "kv") as kv:
        kv["a"], kv["b"] = "1", "2"
    lose(tmp_path / "kv", "INDEX")
    segment = SegmentFile(*segment_paths(tmp_path / "kv"))
    overwrite(segment.path, b"\xff", next(segment.records()).offset + 20)
    (damage,) = verify(tmp_path / "kv").damages
    assert damage.path == str(segment.path)
    assert repair(tmp_path / "kv").keys == 1


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    """Where there is no store "n" refuses them, and where there is one it replaces nothing but that."""
    (tmp_path / "kv").mkdir()
    (tmp_path / "kv" / "notes.txt").write_text("mine")
    with unchanged(tmp_path / "kv"), pytest.raises(FormatError, match="holds no store but other files"):
        opened(tmp_path / "kv", "n")
    (tmp_path / "kv" / "notes.txt").rename(tmp_path / "notes.txt")
    with opened(tmp_path / "kv") as kv:
        kv["a"] = "b"
    (tmp_path / "notes.txt").rename(tmp_path / "kv" / "notes.txt")
    with opened(tmp_path / "kv", "n") as kv:
        assert not kv
    assert (tmp_path / "kv" / "notes.txt").read_text() == "mine"


def test_nor_is_a_store_made_into_a_plain_log(tmp_path: Path) -> None:
    """Its records were gone, and its index stayed, which nobody would look for in a log."""
    with opened(tmp_path / "kv") as kv:
        kv["key"] = "value"
    with pytest.raises(FormatError, match="holds a store, which"):
        Log.open(tmp_path / "kv", "n")
    assert contents(tmp_path / "kv") == {b"key": b"value"}
