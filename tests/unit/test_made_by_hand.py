"""Objects that are made without what makes them: ``cls.__new__(cls)``, as a copy may come to.

They have no file, no log and no store. Whoever uses one is told so; the interpreter does not crash.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.modules import PACKAGES, modules
from tests.unit.mmapio.processes import in_child

NAMES = {each.__name__ for each in PACKAGES}
HEAP_TYPE = 1 << 9
#: What every object has, and what makes another one.
INHERITED = frozenset(dir(object)) - {"__repr__", "__hash__", "__eq__"}
MAKING = (classmethod, staticmethod, types.ClassMethodDescriptorType)
SINGLE = (0, 1, -1, b"x", "x", None, True, [b"x"], slice(0, 1), bytearray(9), lambda *_: None)
ALIKE = (0, 1, b"x", "x", None)
#: Parameters that a method has at the most.
COUNT_MAX = 6
MIXED = (
    (b"x", 0),
    (b"x", b"y", None),
    (None, 0),
    (None, b"x"),
    (None, 0, 0),
    (None, b"x", b"y"),
    (None, 0, 1, True, 0),
)


def is_native(cls: type) -> bool:
    return cls.__module__.split(".")[0] in NAMES and not cls.__flags__ & HEAP_TYPE


def native_classes() -> list[type]:
    """Each class of the three packages that is compiled, or derived from one that is."""
    return [
        each
        for module in modules()
        for each in vars(module).values()
        if isinstance(each, type)
        and each.__module__ == module.__name__
        and any(is_native(base) for base in each.__mro__)
    ]


def arguments() -> Iterator[tuple[Any, ...]]:
    yield ()
    for one in SINGLE:
        yield (one,)
    for count in range(2, COUNT_MAX + 1):
        for one in ALIKE:
            yield (one,) * count
    yield from MIXED


def made_by_hand(cls: type) -> Any:
    """One of this class, or None where it is refused."""
    for given in arguments():
        with contextlib.suppress(Exception):
            return cls.__new__(cls, *given)
    return None


def taken(value: Any) -> None:
    """Some of what it iterates over."""
    if hasattr(value, "__next__"):
        for _ in zip(range(3), value, strict=False):
            pass


def uses(cls: type) -> Iterator[tuple[str, Callable[[Any], object]]]:
    """Each attribute of the class, asked for, set and called."""
    for name in sorted(set(dir(cls)) - INHERITED):
        attribute = inspect.getattr_static(cls, name)
        if isinstance(attribute, MAKING):
            continue
        yield name, lambda it, name=name: getattr(it, name)  # type: ignore[misc]
        if callable(attribute):
            for given in arguments():
                yield (
                    f"{name}{given}",
                    lambda it, name=name, given=given: taken(getattr(it, name)(*given)),  # type: ignore[misc]
                )
        else:
            for one in ALIKE:
                yield f"{name} = {one!r}", lambda it, name=name, one=one: setattr(it, name, one)  # type: ignore[misc]
    yield "memoryview", memoryview


@pytest.mark.parametrize("cls", native_classes(), ids=lambda cls: f"{cls.__module__}.{cls.__qualname__}")
def test_what_was_made_by_hand_does_not_crash(tmp_path: Path, cls: type) -> None:
    report = tmp_path / "report"

    def use_all() -> None:
        os.chdir(tmp_path)
        with report.open("wb", buffering=0) as out:

            def attempt(what: str, act: Callable[[], object]) -> None:
                # Before it is done: afterwards it may be too late.
                out.write(f"{what}\n".encode())
                with contextlib.suppress(Exception):
                    act()

            attempt("making it", lambda: made_by_hand(cls))
            for what, act in uses(cls):
                attempt(what, lambda act=act: act(made_by_hand(cls)))  # type: ignore[misc]

    try:
        in_child(use_all)
    except AssertionError as error:
        last = report.read_text().splitlines()[-1]
        pytest.fail(f"{cls.__qualname__}: {last}: {error}")
