"""What each call makes of a key that no store can hold: one table for all that have it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmapkv import InvalidKey, KVStore
from mmapkv.codecs import Bytes
from tests.unit.mmapkv.stores import agreeing, opened


@pytest.fixture
def kv(tmp_path: Path) -> Iterator[KVStore]:
    """A store of one key, which is all there is at the end."""
    with opened(tmp_path / "kv") as made:
        made["there"] = "1"
        yield made
        assert agreeing(made) == {b"there": b"1"}


_VIEWS: dict[str, Callable[[KVStore], Any]] = {
    "store": lambda kv: kv,
    "snapshot": lambda kv: kv.snapshot(),
    "transaction": lambda kv: kv.transaction(),
    "typed": lambda kv: kv.typed(Bytes()),
    "namespace": lambda kv: kv.namespace("there/"),
    "batch": lambda kv: kv.batch(),
}

# By the name of the method. To these a key of a length that cannot be is absent, and so they treat it.
_ABSENT: dict[str, tuple[Callable[[Any, Any], object], object]] = {
    "__getitem__": (lambda of, key: of[key], KeyError),
    "__contains__": (lambda of, key: key in of, False),
    "get": (lambda of, key: of.get(key), None),
    "get default": (lambda of, key: of.get(key, 5), 5),
    "get_many": (lambda of, key: of.get_many(["x", key], 5), [5, 5]),
    "get_view": (lambda of, key: of.get_view(key), None),
    "get_into": (lambda of, key: of.get_into(key, bytearray(9)), None),
    "get_versioned": (lambda of, key: of.get_versioned(key, 5), 5),
    "ttl": (lambda of, key: of.ttl(key), KeyError),
    "pop": (lambda of, key: of.pop(key), KeyError),
    "pop default": (lambda of, key: of.pop(key, 5), 5),
    "__delitem__": (lambda of, key: of.__delitem__(key), KeyError),
    "delete": (lambda of, key: of.delete(key), None),
    "delete_many": (lambda of, key: of.delete_many([key]), 0),
}
# These refuse it.
_REFUSED: dict[str, Callable[[Any, Any], object]] = {
    "__setitem__": lambda of, key: of.__setitem__(key, b"x"),
    "put": lambda of, key: of.put(key, b"x"),
    "put_many": lambda of, key: of.put_many([("there", b"x"), (key, b"x")]),
    "update": lambda of, key: of.update([(key, b"x")]),
    "setdefault": lambda of, key: of.setdefault(key, b"x"),
    "add": lambda of, key: of.add(key, b"x"),
    "replace": lambda of, key: of.replace(key, b"x"),
    "append": lambda of, key: of.append(key, b"x"),
    "incr": lambda of, key: of.incr(key),
    "touch": lambda of, key: of.touch(key, 5),
    "compare_and_set": lambda of, key: of.compare_and_set(key, b"x", expected=None),
}
_ALL = {name: call for name, (call, _) in _ABSENT.items()} | _REFUSED
_LENGTHS: list[Any] = [b"", "", bytearray(), b"k" * 65_536, "\xe9" * 32_768, memoryview(bytes(65_536))]
_TYPES: list[Any] = [1, True, 1.5, None, [b"a"], (b"a",), memoryview(b"abcd")[::2]]


def has(view: Any, name: str) -> bool:
    """Whether there is such a call."""
    return hasattr(view, name.split()[0])


# Of a namespace the prefix is a key.
_CASES = [(of, key) for of in _VIEWS for key in _LENGTHS if len(key) or of != "namespace"]


@pytest.mark.parametrize(
    ("of", "key"), _CASES, ids=[f"{of}, {type(key).__name__} of {len(key)}" for of, key in _CASES]
)
def test_a_key_of_a_length_that_cannot_be(kv: KVStore, of: str, key: Any) -> None:
    """Absent to whatever reads or takes away, refused by whatever would write it, with the limits."""
    view = _VIEWS[of](kv)
    for name, (call, expected) in _ABSENT.items():
        if not has(view, name):
            continue
        if (of, name) == ("batch", "__delitem__"):
            # It does not look for any.
            call(view, key)
        elif expected is KeyError:
            with pytest.raises(KeyError) as missing:
                call(view, key)
            assert not isinstance(missing.value, InvalidKey)
        else:
            assert call(view, key) == expected, name
    for name, call in _REFUSED.items():
        if not has(view, name):
            continue
        with pytest.raises(InvalidKey, match=r"a key has 1 to 65535 bytes, this one has \d+") as raised:
            call(view, key)
        assert isinstance(raised.value, ValueError)
        assert not isinstance(raised.value, KeyError)


@pytest.mark.parametrize("key", _TYPES, ids=repr)
@pytest.mark.parametrize("of", _VIEWS)
def test_a_key_of_another_type(kv: KVStore, of: str, key: Any) -> None:
    """A TypeError of every call, as of a key that a dict cannot hash: absent, it would hide a mistake."""
    view = _VIEWS[of](kv)
    kind = type(key).__name__
    for name, call in _ALL.items():
        if has(view, name):
            with pytest.raises(
                TypeError, match=f"a key is bytes, another contiguous buffer or str, not {kind}"
            ):
                call(view, key)


def test_the_table_is_not_empty(kv: KVStore) -> None:
    """The control: a name that no view has would be passed over everywhere."""
    views = [of(kv) for of in _VIEWS.values()]
    for name in _ALL:
        assert any(has(view, name) for view in views), name
    assert all(has(kv, name) for name in _ALL if name != "delete")
