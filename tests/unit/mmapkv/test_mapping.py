"""A store is a mapping like any other, as CPython's own tests of mappings understand it."""

from __future__ import annotations

import tempfile
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest

from mmapkv import KVStore
from tests.unit.mmapkv.stores import agreeing, contents, opened

mapping_tests = pytest.importorskip(
    "test.mapping_tests",
    reason="this Python lacks its test package: NOT TESTED against CPython's mapping protocol",
)


class TestProtocol(mapping_tests.BasicTestMappingProtocol):  # type: ignore[misc,name-defined]
    """CPython's tests of the protocol; keys and values are bytes."""

    def setUp(self) -> None:
        """Every mapping that a test makes is a new store."""
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)
        self.made = 0

    def type2test(self, *arguments: Any, **keywords: Any) -> KVStore:
        """What the tests call to make a mapping."""
        self.made += 1
        kv = opened(Path(self.directory.name) / f"{self.made}")
        kv.update(*arguments, **keywords)
        self.addCleanup(kv.close)
        return kv

    def _reference(self) -> dict[bytes, bytes]:
        return {b"1": b"2", b"key1": b"value1", b"key2": b"4 5 6"}

    def test_fromkeys(self) -> None:
        """A store is opened at a path; there is no `fromkeys`, as in the standard library's dbm."""
        assert not hasattr(KVStore, "fromkeys")

    # Two of CPython's tests use keys and values that are no bytes; the same with ours.

    def test_update(self) -> None:
        """Mappings, objects with `keys`, iterables of pairs, and keywords; and what fails midway raises."""
        kv = self._empty_mapping()
        kv.update(self.other)
        kv.update([(b"a", b"b")], key=b"word")
        assert dict(kv) == {**self.other, b"a": b"b", b"key": b"word"}

        class Failing:
            def keys(self) -> list[bytes]:
                return [b"first", b"second"]

            def __getitem__(self, key: bytes) -> bytes:
                if key == b"second":
                    raise ZeroDivisionError
                return b"1"

        with pytest.raises(ZeroDivisionError):
            kv.update(Failing())
        assert b"first" in kv
        for wrong in (5, [(b"1", b"2", b"3")], [5]):
            with pytest.raises((TypeError, ValueError)):
                kv.update(wrong)

    def test_get(self) -> None:
        """With and without a default, and never with a wrong number of arguments."""
        kv = self._full_mapping(self.reference)
        assert kv.get(b"missing") is None
        assert kv.get(b"missing", 3) == 3
        for key, value in self.reference.items():
            assert kv.get(key) == kv.get(key, 3) == value
        for arguments in ((), (b"1", b"2", b"3")):
            with pytest.raises(TypeError):
                kv.get(*arguments)

    def test_setdefault(self) -> None:
        """The default is stored, so it must be a value."""
        kv = self._empty_mapping()
        assert kv.setdefault(b"a", b"1") == b"1"
        assert kv.setdefault(b"a", b"2") == b"1"
        with pytest.raises(TypeError, match="value"):
            kv.setdefault(b"b")
        assert b"b" not in kv
        with pytest.raises(TypeError):
            kv.setdefault()


def test_a_store_is_a_mutable_mapping(tmp_path: Path) -> None:
    """Code that takes a mapping asks for it."""
    with opened(tmp_path / "kv") as kv:
        assert isinstance(kv, MutableMapping)
        assert not kv
        kv[b"a"] = b"1"
        assert kv
        assert kv == {b"a": b"1"}
        assert kv == kv
        assert kv != {b"a": b"2"}
        assert kv != {}
        assert kv != [b"a"]


def test_counts_are_right_whatever_was_done(tmp_path: Path) -> None:
    """Overwrites, deletions of what is and is not there, and insertions of what once was."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        counts = []
        for step in (
            lambda: kv.put(b"a", b"1"), lambda: kv.put(b"b", b"2"), lambda: kv.put(b"a", b"3"),
            lambda: kv.__delitem__(b"a"), lambda: kv.pop(b"a", None), lambda: kv.put(b"a", b"4"),
            lambda: kv.put(b"c", b""), lambda: kv.__delitem__(b"c"), lambda: kv.put(b"c", b"5"),
            lambda: kv.put(b"c", b"6"),
            lambda: kv.popitem(), lambda: kv.clear(), lambda: kv.clear(), lambda: kv.put(b"b", b"7"),
        ):  # fmt: skip
            step()
            counts.append(len(kv))
            assert len(agreeing(kv)) == len(kv)
    assert counts == [1, 2, 2, 1, 1, 2, 3, 2, 3, 3, 2, 0, 0, 1]
    assert contents(path) == {b"b": b"7"}
    for lost in (["INDEX"], ["CONTROL"], ["INDEX", "CONTROL"]):
        for name in lost:
            (path / name).unlink()
        assert contents(path) == {b"b": b"7"}


def test_a_missing_key_is_a_key_error_that_names_it(tmp_path: Path) -> None:
    """As everywhere."""
    with opened(tmp_path / "kv") as kv:
        kv[b"gone"] = b"1"
        del kv[b"gone"]
        for key in (b"gone", b"never"):
            records = kv.stats()["records"]
            for use in (kv.__getitem__, kv.__delitem__, kv.pop):
                with pytest.raises(KeyError) as raised:
                    use(key)
                assert raised.value.args == (key,)
            assert kv.get(key) is None
            assert kv.pop(key, 7) == 7
            assert key not in kv
            assert kv.stats()["records"] == records


def test_popitem_takes_each_pair_once_whatever_happens_between(tmp_path: Path) -> None:
    """It remembers where it was; what changed since must come as it is now, and only once."""
    with opened(tmp_path / "kv") as kv:
        kv.update({b"a": b"1", b"b": b"2", b"c": b"3", b"d": b"4"})
        kv[b"a"] = b"5"
        assert kv.popitem() == (b"b", b"2")
        kv[b"c"] = b"6"
        kv[b"b"] = b"7"
        del kv[b"d"]
        kv[b"e"] = b"8"
        assert sorted(kv.popitem() for _ in range(4)) == [
            (b"a", b"5"),
            (b"b", b"7"),
            (b"c", b"6"),
            (b"e", b"8"),
        ]
        for _ in range(2):
            with pytest.raises(KeyError):
                kv.popitem()
        kv[b"again"] = b"8"
        assert kv.popitem() == (b"again", b"8")


def test_emptying_a_store_by_popitem(tmp_path: Path) -> None:
    """The loop that programs are written with; each step must not start over at the beginning of the log."""
    with opened(tmp_path / "kv") as kv:
        expected = {b"%d" % number: b"v" * (number % 50) for number in range(3000)}
        kv.update(expected)
        found = []
        while kv:
            found.append(kv.popitem())
        assert found == list(expected.items())
        assert agreeing(kv) == {}


def test_a_store_is_not_hashable_and_has_no_reverse(tmp_path: Path) -> None:
    """It changes; and its order is that of its log, forward."""
    with opened(tmp_path / "kv") as kv:
        with pytest.raises(TypeError):
            hash(kv)
        with pytest.raises(TypeError):
            reversed(kv)  # type: ignore[call-overload]


def test_a_store_shows_itself(tmp_path: Path) -> None:
    """What a user sees in a debugger."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv[b"a"] = b"1"
        assert repr(kv) == f"<KVStore {str(path)!r} writing, 1 keys>"
        assert kv.path == str(path)
        with opened(path, "r") as reader:
            assert repr(reader) == f"<KVStore {str(path)!r} reading, 1 keys>"
    assert repr(kv) == f"<KVStore {str(path)!r} closed>"
    assert kv.closed
    with pytest.raises(TypeError, match=r"KVStore\.open"):
        KVStore()


def test_figures(tmp_path: Path) -> None:
    """What `stats` says can be counted."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        for number in range(1000):
            kv[b"%d" % (number % 100)] = b"x" * 100
        figures = kv.stats()
        assert figures["keys"] == 100
        assert figures["records"] == figures["committed"] == 1000
        assert figures["durable"] == figures["first_seq"] == figures["epoch"] == 0
        assert figures["segment_bytes"] == 64 << 10
        assert figures["segments"] == len(list(path.glob("*.seg"))) > 1
        assert figures["bytes_on_disk"] == sum(file.stat().st_blocks * 512 for file in path.iterdir())
        kv.flush()
        assert kv.stats()["durable"] == 1000
