"""A damaged store becomes one that opens again, and what is lost is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mmapkv import FormatError, KVStore, Locked, repair, verify
from tests.support.plain_reader import check_store
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapio.processes import killed_after
from tests.unit.mmapkv.index_words import IndexWords
from tests.unit.mmapkv.stores import agreeing, contents, opened
from tests.unit.mmaplog.damage import overwrite, replace_by_directory
from tests.unit.mmaplog.segment_file import SegmentFile, segment_paths

CONTENT = {b"key %d" % number: b"%d" % number * 20 for number in range(3000)}


def fill(path: Path) -> KVStore:
    """Three segments; a key that comes and goes and comes again."""
    kv = opened(path)
    kv[b"twice"] = b"once"
    del kv[b"twice"]
    kv.update(CONTENT)
    kv[b"twice"] = b"again"
    return kv


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A store that was closed cleanly."""
    fill(tmp_path / "kv").close()
    return tmp_path / "kv"


def test_a_store_in_order_is_left_alone(closed: Path) -> None:
    """And so is one whose writer was killed."""
    with unchanged(closed, ignoring=("LOCK",)):
        found = repair(closed)
    assert (found.changed, found.index, found.log.lost) == (False, None, ())
    with opened(closed, "r"), pytest.raises(Locked):
        repair(closed)


@pytest.mark.parametrize("shared", [False, True])
def test_a_store_that_was_about_to_be_written_is_left_alone(closed: Path, shared: bool) -> None:
    # `mmapkv del` of what was not there left a mark with MARK_OPENED, and that bit went into the offset that
    # repair compared: it set a sound segment aside.
    with KVStore.open(closed, "w", shared=shared) as kv:
        assert kv.pop("nothing", None) is None
    found = repair(closed, dry_run=True)
    assert (found.changed, found.log.problems) == (False, ())


def no_index(path: Path) -> None:
    (path / "INDEX").unlink()


def foreign(path: Path) -> None:
    overwrite(path / "INDEX", b"\x7fELF\2\1\1\0")


INDEXES: dict[str, tuple[Callable[[Path], object], str, str | None]] = {
    "missing": (no_index, "there is no index", None),
    "damaged": (lambda p: overwrite(p / "INDEX", b"\x77", IndexWords(p).segments[0] + 99), "checksum", None),
    "its header damaged": (lambda p: overwrite(p / "INDEX", b"\x77", 45), "header", None),
    "foreign": (foreign, "not an index", "INDEX.bad"),
    "a directory": (lambda p: replace_by_directory(p / "INDEX"), "directory", "INDEX.bad"),
}


@pytest.mark.parametrize(("spoil", "reason", "aside"), INDEXES.values(), ids=INDEXES.keys())
def test_an_index_is_built_anew(
    closed: Path, spoil: Callable[[Path], object], reason: str, aside: str | None
) -> None:
    """Nothing is lost. A dry run says the same, and changes nothing."""
    spoil(closed)
    with unchanged(closed, ignoring=("LOCK",)):
        planned = repair(closed, dry_run=True)
    assert reason in str(planned.index)
    assert (planned.changed, planned.keys, planned.dry_run) == (True, None, True)
    found = repair(closed)
    assert reason in str(found.index)
    assert (found.keys, found.log.lost, found.set_aside) == (len(CONTENT) + 1, (), aside)
    assert (aside is None) or (closed / aside).exists()
    assert verify(closed).damages == ()
    assert verify(closed).note is None
    assert contents(closed) == {**CONTENT, b"twice": b"again"}
    assert repair(closed).changed is False


def test_an_index_that_no_checksum_protects(tmp_path: Path) -> None:
    """After a kill: only a look at every entry finds what is wrong."""
    path = tmp_path / "kv"
    killed_after(lambda: fill(path))
    words = IndexWords(path)
    at = next(at for _, _, at in words.entries())
    overwrite(path / "INDEX", bytes(8), at)
    assert repair(path).keys == len(CONTENT) + 1
    assert contents(path) == {**CONTENT, b"twice": b"again"}


@pytest.mark.parametrize("numbers", [(0,), (1,), (1500,), (0, 1), (3002,)], ids=str)
def test_lost_records_are_told_and_the_rest_is_counted_right(closed: Path, numbers: tuple[int, ...]) -> None:
    """Whatever those that are left say of those that are gone: of a key's birth, or of its death."""
    for path in segment_paths(closed):
        segment = SegmentFile(path)
        for record in segment.records():
            if record.seq in numbers:
                overwrite(path, b"\xff" * 4, record.offset + 24)
    assert verify(closed).damages
    found = repair(closed)
    lost = {number for each in found.log.lost for number in range(each.start, each.stop or each.start)}
    assert lost >= set(numbers)
    expected = check_store_without(lost)
    assert contents(closed) == expected
    assert found.keys == len(expected)
    assert verify(closed).damages == ()
    with opened(closed) as kv:
        walk = iter(kv.items())
        first = next(walk)
        kv[b"twice"] = b"more"
        kv.pop(b"key 1501", None)
        assert dict([first, *walk]) == expected
        expected[b"twice"] = b"more"
        expected.pop(b"key 1501", None)
        assert agreeing(kv) == expected
    assert verify(closed).damages == ()


def check_store_without(lost: set[int]) -> dict[bytes, bytes]:
    """What the changes that are left make."""
    changes = [(b"twice", b"once"), (b"twice", None), *CONTENT.items(), (b"twice", b"again")]
    made: dict[bytes, bytes] = {}
    for number, (key, value) in enumerate(changes):
        if number in lost:
            continue
        made.pop(key, None)
        if value is not None:
            made[key] = value
    return made


def test_a_log_that_is_no_store_is_left_alone(tmp_path: Path) -> None:
    """Its records are somebody's."""
    from mmaplog import Log

    with Log.open(tmp_path / "log") as log:
        log.append(b"\xffsomething else")
    with unchanged(tmp_path / "log", ignoring=("LOCK",)), pytest.raises(FormatError):
        repair(tmp_path / "log")
    with pytest.raises(FileNotFoundError):
        repair(tmp_path / "nothing")


def test_the_plain_reader_agrees(closed: Path) -> None:
    """After a repair of the index alone."""
    no_index(closed)
    repair(closed)
    assert check_store(closed) == contents(closed)
