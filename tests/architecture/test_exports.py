"""What each package exports: sorted, existing, documented, and nothing public beside it."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.tree import PACKAGES


def sort_key(name: str) -> tuple[int, list[tuple[int, str]]]:
    """Constants, then classes, then functions, each by name and numbers by value: ruff's order (RUF022)."""
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2
    parts = re.split(r"(\d+)", name)
    return kind, [(int(part), part) if part.isdigit() else (-1, part) for part in parts]


def documented(value: object) -> bool:
    """Whether a class or function says more of itself than its signature; other objects need not."""
    if inspect.isclass(value):
        text = value.__dict__.get("__doc__")
    elif callable(value) or isinstance(value, ModuleType | property) or inspect.isgetsetdescriptor(value):
        text = value.__doc__
    else:
        return True
    lines = (text or "").strip().splitlines()
    return bool([line for line in lines if not re.fullmatch(r"[\w.]+\(.*\)(\s*->.*)?", line.strip())])


def export_violations(package: ModuleType) -> list[str]:
    """What is wrong with the names that `package` offers."""
    name = package.__name__
    exported: list[str] = list(getattr(package, "__all__", ()))
    found = [f"{name} has no __all__"] if not exported else []
    if exported != sorted(exported, key=sort_key):
        found.append(f"{name}.__all__ is not sorted: {sorted(exported, key=sort_key)}")
    twice = sorted({each for each in exported if exported.count(each) > 1})
    found += [f"{name}.__all__ names {each} twice" for each in twice]
    missing = [each for each in exported if not hasattr(package, each)]
    found += [f"{name}.{each} is in __all__ and does not exist" for each in missing]
    found += [
        f"{name}.{each} has no docstring"
        for each in exported
        if each not in missing and not documented(getattr(package, each))
    ]
    found += [
        f"{name}.{each} is public and not in __all__"
        for each, value in sorted(vars(package).items())
        if not each.startswith("_")
        and each not in exported
        # A submodule becomes an attribute of its package by being imported at all.
        and not (isinstance(value, ModuleType) and value.__name__ == f"{name}.{each}")
        and type(value).__module__ != "__future__"
    ]
    return found


def undocumented_members(package: ModuleType) -> list[str]:
    """The public members, defined by exported classes, that nothing explains.

    A method or property has a docstring. An attribute of a native class cannot have one: the docstring of
    the class must name it.
    """
    found = []
    for name in getattr(package, "__all__", ()):
        exported = getattr(package, name, None)
        for member, value in sorted(vars(exported).items()) if inspect.isclass(exported) else ():
            value = value.__func__ if isinstance(value, classmethod | staticmethod) else value
            named = inspect.isgetsetdescriptor(value) and re.search(rf"\b{member}\b", exported.__doc__ or "")
            if not member.startswith("_") and not named and not documented(value):
                found.append(f"{package.__name__}.{name}.{member} has no docstring")
    return found


@pytest.mark.parametrize("name", PACKAGES)
def test_the_exports_are_in_order(name: str) -> None:
    assert export_violations(importlib.import_module(name)) == []


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_member_is_documented(name: str) -> None:
    assert undocumented_members(importlib.import_module(name)) == []


_GOOD = '''
from __future__ import annotations

__all__ = ["LIMIT", "Cat", "purr"]

LIMIT = 9


class Cat:
    """An animal."""

    def say(self):
        """Meow. Costs a breath."""

    @property
    def lives(self):
        """How many are left."""


def purr():
    """Be content."""


def _hidden():
    pass
'''


@pytest.mark.parametrize(
    ("good", "bad", "complaint"),
    [
        ("", "", None),
        ('"Cat", "purr"', '"purr", "Cat"', "not sorted"),
        ('"LIMIT", "Cat"', '"Cat", "LIMIT"', "not sorted"),
        ('"purr"]', '"purr", "purr"]', "twice"),
        ('"purr"]', '"purr", "roar"]', "does not exist"),
        (', "purr"]', "]", "purr is public and not in __all__"),
        ("LIMIT = 9", "LIMIT = 9\nfrom json import loads", "loads is public and not in __all__"),
        ("LIMIT = 9", "LIMIT = 9\nimport json", "json is public and not in __all__"),
        ('"""An animal."""', "", "Cat has no docstring"),
        ('"""Be content."""', '"""purr() -> None"""', "purr has no docstring"),
        ("__all__", "_all", "has no __all__"),
        ('"""Meow. Costs a breath."""', "pass", "Cat.say has no docstring"),
        ('"""How many are left."""', "return 9", "Cat.lives has no docstring"),
    ],
)
def test_a_planted_flaw_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: str, bad: str, complaint: str | None
) -> None:
    (tmp_path / "planted.py").write_text(_GOOD.replace(good, bad, 1) if good else _GOOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "planted", raising=False)
    planted = importlib.import_module("planted")
    monkeypatch.delitem(sys.modules, "planted")
    found = export_violations(planted) + undocumented_members(planted)
    if complaint is None:
        assert found == []
    else:
        assert any(complaint in each for each in found), found
