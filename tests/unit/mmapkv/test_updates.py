"""Changes that depend on what is there. Each is one step: of those that threads do at once, none is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmapkv import InvalidKey, KVStore, ValueTooLarge
from tests.support.plain_reader import check_store
from tests.unit.mmapio.processes import run_python
from tests.unit.mmapkv.stores import SEGMENT, agreeing, opened
from tests.unit.mmapkv.test_threads import COMMON


@pytest.fixture
def kv(tmp_path: Path) -> Iterator[KVStore]:
    """A store that holds what the plain reader finds in it at the end."""
    path = tmp_path / "kv"
    with opened(path) as store:
        yield store
        assert check_store(path) == agreeing(store)


def test_add_sets_only_what_is_absent(kv: KVStore) -> None:
    assert kv.add("a", "1")
    assert not kv.add("a", "2")
    assert kv["a"] == b"1"
    del kv["a"]
    assert kv.add(b"a", memoryview(b"3"), durable=True)
    assert kv["a"] == b"3"
    assert kv.stats()["durable"] == 3


def test_replace_sets_only_what_is_present(kv: KVStore) -> None:
    assert not kv.replace("a", "1")
    assert "a" not in kv
    kv["a"] = "1"
    assert kv.replace("a", "2")
    assert kv["a"] == b"2"


def test_what_changes_nothing_writes_nothing(kv: KVStore) -> None:
    kv["a"] = "1"
    before = kv.stats()["records"]
    assert not kv.add("a", "2")
    assert not kv.replace("b", "2")
    assert not kv.touch("b", 5)
    assert not kv.compare_and_set("a", "3", expected="2")
    assert not kv.compare_and_set("a", "3", expected=None)
    assert not kv.compare_and_set("a", "3", version=99)
    assert not kv.compare_and_set("b", "3", expected="")
    assert not kv.compare_and_set("b", "3", version=0)
    assert kv.compare_and_set("b", None, expected=None)
    assert kv.setdefault("a", "2") == b"1"
    assert kv.delete_many(["b", b"", b"x" * 70_000]) == 0
    kv.put_many([])
    assert kv.stats()["records"] == before


def test_setdefault_takes_every_kind_of_value(kv: KVStore) -> None:
    assert kv.setdefault("a", "1") == b"1"
    assert kv.setdefault("b", bytearray(b"2")) == b"2"
    assert kv.setdefault("b", None) == b"2"
    with pytest.raises(TypeError, match="cannot hold None"):
        kv.setdefault("c")


def test_append_grows_a_value(kv: KVStore) -> None:
    model = b""
    for size in (0, 1, 7, 8, 9, SEGMENT, 3 * SEGMENT, 2):
        data = bytes([size % 251]) * size
        model += data
        assert kv.append("a", data) == len(model)
        assert kv["a"] == model
    del kv["a"]
    assert kv.append("a", "new") == 3


def test_append_refuses_what_would_be_too_large(kv: KVStore, huge_buffer: memoryview) -> None:
    """Neither part is too large by itself."""
    kv["a"] = bytes(2 << 20)
    with pytest.raises(ValueTooLarge, match="4293918720 bytes, this one has 4295000064"):
        kv.append("a", huge_buffer[: (4 << 30) - (2 << 20) + (32 << 10)])
    assert len(kv["a"]) == 2 << 20


def test_incr_counts_in_decimal(kv: KVStore) -> None:
    assert kv.incr("n") == 1
    assert kv.incr("n", 41) == 42
    assert kv["n"] == b"42"
    assert kv.incr("n", -50) == -8
    assert kv["n"] == b"-8"
    assert kv.incr("other", 2, initial=10) == 12
    kv["n"] = "007"
    assert kv.incr("n", 0) == 7
    assert kv["n"] == b"7"


@pytest.mark.parametrize(
    "text", ["", "-", "+1", "1 ", "1.0", "x", "9223372036854775808", "-9223372036854775809"]
)
def test_incr_refuses_what_is_no_number(kv: KVStore, text: str) -> None:
    kv["n"] = text
    with pytest.raises(ValueError, match=r"b'n' is not a decimal number"):
        kv.incr("n")
    assert kv["n"] == text.encode()


@pytest.mark.parametrize(
    ("start", "by"), [(2**63 - 1, 1), (-(2**63), -1), (1, 2**63 - 1), (-2, -(2**63) + 1), (-1, -(2**63))]
)
def test_incr_refuses_to_wrap(kv: KVStore, start: int, by: int) -> None:
    kv["n"] = str(start)
    with pytest.raises(OverflowError, match="more than 64 bits"):
        kv.incr("n", by)
    assert kv.incr("n", 0) == start


def test_incr_reaches_both_ends(kv: KVStore) -> None:
    assert kv.incr("n", 2**63 - 1) == 2**63 - 1
    assert kv.incr("m", -(2**63)) == -(2**63)
    assert kv.incr("m", 2**63 - 1) == -1
    with pytest.raises(OverflowError):
        kv.incr("n", 2**64)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**64, 10**5000], ids=int.bit_length)
@pytest.mark.parametrize("name", ["by", "initial"])
def test_incr_tells_which_number_is_too_large(kv: KVStore, name: str, number: int) -> None:
    """It was what C says of it: too large for a signed long, without the name or the limit."""
    told = "a number of 16610 bits" if number == 10**5000 else number
    limits = f"-{2**63} to {2**63 - 1}"
    with pytest.raises(OverflowError, match=rf"{name}={told} is not a number of 64 bits .*{limits}"):
        kv.incr("n", number) if name == "by" else kv.incr("n", initial=number)
    assert "n" not in kv


@pytest.mark.parametrize("wrong", ["1", 1.5, None, b"1"])
def test_incr_and_compare_and_set_tell_what_is_no_number(kv: KVStore, wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"by is an integer, not {type(wrong).__name__}"):
        kv.incr("n", wrong)
    with pytest.raises(TypeError, match=f"initial is an integer, not {type(wrong).__name__}"):
        kv.incr("n", initial=wrong)
    if wrong is not None:
        with pytest.raises(TypeError, match=f"version is an integer, not {type(wrong).__name__}"):
            kv.compare_and_set("n", "1", version=wrong)
    assert "n" not in kv


@pytest.mark.parametrize("version", [-1, 2**63, 2**64, -(2**64), 10**5000], ids=int.bit_length)
def test_compare_and_set_refuses_what_is_no_version(kv: KVStore, version: int) -> None:
    """One below 0 was what C says of it."""
    told = "a number of 16610 bits" if version == 10**5000 else version
    with pytest.raises(ValueError, match=rf"version={told} is none .* 0 to {2**63 - 1}"):
        kv.compare_and_set("a", "1", version=version)
    assert "a" not in kv


def test_compare_and_set_compares_the_value(kv: KVStore) -> None:
    assert kv.compare_and_set("a", "1", expected=None)
    assert kv.compare_and_set("a", "2", expected=bytearray(b"1"))
    assert not kv.compare_and_set("a", "3", expected="1")
    assert not kv.compare_and_set("a", "3", expected="22")
    assert kv["a"] == b"2"
    assert kv.compare_and_set("a", None, expected="2")
    assert "a" not in kv
    assert kv.compare_and_set("a", "", expected=None)
    assert kv.compare_and_set("a", "4", expected=b"")


def test_compare_and_set_compares_the_version(kv: KVStore) -> None:
    """Every write has the next number, so that a value which came back is not what it was."""
    kv["a"] = "1"
    kv["a"] = "2"
    kv["a"] = "1"
    assert not kv.compare_and_set("a", "3", version=0)
    assert kv.compare_and_set("a", "3", version=2)
    assert kv.compare_and_set("b", "1", version=None)
    assert not kv.compare_and_set("b", "2", version=None)


def test_compare_and_set_needs_one_of_the_two(kv: KVStore) -> None:
    for given in ({}, {"expected": "1", "version": 1}):
        with pytest.raises(TypeError, match="either expected= or version="):
            kv.compare_and_set("a", "1", **given)


_INVALID: dict[str, Callable[[KVStore, bytes], object]] = {
    "add": lambda kv, key: kv.add(key, b""),
    "replace": lambda kv, key: kv.replace(key, b""),
    "append": lambda kv, key: kv.append(key, b""),
    "incr": lambda kv, key: kv.incr(key),
    "compare_and_set": lambda kv, key: kv.compare_and_set(key, b"", expected=None),
    "touch": lambda kv, key: kv.touch(key, 1),
    "setdefault": lambda kv, key: kv.setdefault(key, b""),
    "put_many": lambda kv, key: kv.put_many({b"before": b"", key: b""}),
    "batch": lambda kv, key: kv.batch().put(key, b""),
}


@pytest.mark.parametrize("use", _INVALID.values(), ids=_INVALID)
@pytest.mark.parametrize("key", [b"", b"x" * 65_536])
def test_an_invalid_key_is_refused(kv: KVStore, use: Callable[[KVStore, bytes], object], key: bytes) -> None:
    with pytest.raises(InvalidKey, match=f"1 to 65535 bytes, this one has {len(key)}"):
        use(kv, key)
    assert len(kv) == 0


def test_threads_lose_nothing(tmp_path: Path) -> None:
    """Segments roll and the index splits in the middle of it, which lets the other threads in."""
    program = COMMON + (
        "kv = open_store()\n"
        "def work():\n"
        "    for number in range(1500):\n"
        "        kv.incr('count')\n"
        "        kv.append('text', 'x')\n"
        "        if kv.add(b'added-%d' % number, 'x' * 50): kv.incr('added')\n"
        "        while True:\n"
        "            old = kv.get('compared')\n"
        "            if kv.compare_and_set('compared', str(int(old or 0) + 1), expected=old): break\n"
        "errors = together(*[work] * 4)\n"
        "counts = [int(kv[key]) for key in ('count', 'added', 'compared')]\n"
        "answer([repr(errors), *counts, len(kv['text'])])\n"
    )
    assert run_python(program, str(tmp_path / "kv"), "FlushPolicy.NEVER") == ["[]", 6000, 1500, 6000, 6000]
