"""The native build: declared completely, described to type checkers, and never older than its source."""

from __future__ import annotations

import importlib.util
import os
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from tests.support.cython_source import extern_blocks
from tests.support.imports import imports_of
from tests.support.tree import PACKAGES, PROJECT, Tree

_INCLUDE = re.compile(r'^\s*include\s+["\']([^"\']+)["\']', re.MULTILINE)

_C_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def build_table(tree: Tree) -> dict[str, Any]:
    """The [tool.setuptools] table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((tree.root / "pyproject.toml").read_text())["tool"]["setuptools"]
    return table


def headers_of(tree: Tree, source: Path) -> set[Path]:
    """Every file of the project that Cython or the C compiler reads to build `source`, itself apart."""
    found: set[Path] = set()
    waiting = [source]
    while waiting:
        path = waiting.pop()
        direct = {
            tree.headers[target]
            for each in ([] if path.suffix == ".h" else imports_of(tree, path))
            if each.native
            for target in each.targets(tree.headers)
        }
        # Cython reads the .pxd of the same name without being asked.
        direct |= {path.with_suffix(".pxd")}
        code = path.read_text(encoding="utf-8")
        named = (
            [header for _, header, _ in extern_blocks(code)]
            + _INCLUDE.findall(code)
            + _C_INCLUDE.findall(code)
        )
        for name in named:
            direct |= {path.parent / name, tree.root / name}
        new = {each for each in direct if each.is_file()} - found - {source}
        found |= new
        waiting += new
    return found


def build_violations(tree: Tree) -> list[str]:
    """Where the table of extension modules and the source tree disagree."""
    found = []
    table = build_table(tree)["ext-modules"]
    declared = {tree.root / source for module in table for source in module["sources"]}
    for path in tree.sources(".pyx"):
        if path not in declared:
            found.append(f"{tree.shown(path)} is not declared in pyproject.toml")
        if not path.with_suffix(".pyi").is_file():
            found.append(f"{tree.shown(path)} has no .pyi")
    for module in table:
        source = tree.root / module["sources"][0]
        if not source.is_file():
            found.append(f"{module['name']} is declared, but {module['sources'][0]} does not exist")
            continue
        if tree.dotted(source) != module["name"]:
            found.append(f"{module['sources'][0]} is declared as {module['name']}")
        needed = sorted(tree.shown(each) for each in headers_of(tree, source))
        if sorted(module.get("depends", [])) != needed:
            found.append(f"{module['name']} must have depends = {needed}".replace("'", '"'))
    return found


def packaging_violations(tree: Tree) -> list[str]:
    """What an installed copy would lack."""
    table = build_table(tree)
    found = [f"{name} has no py.typed" for name in PACKAGES if not (tree.root / name / "py.typed").is_file()]
    found += [f"{name} is not among the packages" for name in PACKAGES if name not in table["packages"]]
    patterns = [pattern for each in table["package-data"].values() for pattern in each]
    carried = tree.sources(".pxd", ".pyi", ".pyx", ".pxi", ".h", ".typed")
    found += [
        f"{tree.shown(path)} matches no pattern of package-data"
        for path in carried
        if not any(fnmatch(path.name, pattern) for pattern in patterns)
    ]
    return found


def stale(binary: Path, sources: set[Path]) -> list[str]:
    """Which of `sources` were written after `binary` was built."""
    built_ns = binary.stat().st_mtime_ns
    return [
        f"{binary.name} is older than {path.name}: install the project again"
        for path in sorted(sources)
        if path.stat().st_mtime_ns > built_ns
    ]


def test_the_table_and_the_source_tree_agree() -> None:
    assert build_violations(PROJECT) == []


def test_the_packages_carry_their_types_and_headers() -> None:
    assert packaging_violations(PROJECT) == []


@pytest.mark.parametrize("name", sorted(PROJECT.dotted(path) for path in PROJECT.sources(".pyx")))
def test_the_compiled_module_is_not_older_than_its_source(name: str) -> None:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        pytest.fail(f"{name} is not built: install the project with `pip install -e .`")
    binary = Path(spec.origin).resolve()
    if not binary.is_relative_to(PROJECT.root):
        pytest.skip(f"NOT CHECKED: {name} comes from an installed copy, {binary.parent}, not from this tree")
    source = PROJECT.modules[name]
    assert stale(binary, {source} | headers_of(PROJECT, source)) == []


_TABLE = """
[tool.setuptools]
packages = ["mmapio", "mmaplog", "mmapkv"]
ext-modules = [
    { name = "mmapio.low", sources = ["mmapio/low.pyx"], depends = ["mmapio/low.pxd"] },
    { name = "mmapkv.high", sources = ["mmapkv/high.pyx"], depends = [
        "mmapio/low.pxd", "mmapkv/high.pxd", "mmapkv/inline.h", "mmaplog/middle.pxd"] },
]
[tool.setuptools.package-data]
"*" = ["*.h", "*.pxd", "*.pyi", "*.pyx", "py.typed"]
"""


@pytest.fixture
def planted(tmp_path: Path) -> Tree:
    """A tree without a flaw, in which mmapkv.high needs mmapio.low only by way of mmaplog.middle."""
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "py.typed").touch()
    for name, text in {
        "pyproject.toml": _TABLE,
        "mmapio/low.pyx": "x = 1",
        "mmapio/low.pyi": "",
        "mmapio/low.pxd": "cdef int f()",
        "mmaplog/middle.pxd": "from mmapio.low cimport f",
        "mmapkv/high.pyx": "from mmaplog.middle cimport f",
        "mmapkv/high.pyi": "",
        "mmapkv/high.pxd": 'cdef extern from "inline.h":\n    int g()',
        "mmapkv/inline.h": "",
    }.items():
        (tmp_path / name).write_text(text)
    return Tree(tmp_path)


def test_the_planted_tree_has_no_flaw_yet(planted: Tree) -> None:
    assert build_violations(planted) + packaging_violations(planted) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda root: (root / "mmapio/new.pyx").touch(), "mmapio/new.pyx is not declared"),
        (lambda root: (root / "mmapkv/high.pyi").unlink(), "mmapkv/high.pyx has no .pyi"),
        (lambda root: (root / "mmapkv/high.pyx").unlink(), "mmapkv/high.pyx does not exist"),
        (lambda root: _replace(root, '"mmapio.low"', '"mmapio.lower"'), "is declared as mmapio.lower"),
        (lambda root: _replace(root, '"mmapkv/inline.h", ', ""), "mmapkv.high must have depends"),
        (lambda root: _replace(root, ', "mmaplog/middle.pxd"]', "]"), "mmapkv.high must have depends"),
        (lambda root: _replace(root, '"mmapio/low.pxd", ', ""), "mmapkv.high must have depends"),
        (
            lambda root: _replace(root, '["mmapio/low.pxd"]', '["mmapkv/high.pxd"]'),
            "mmapio.low must have depends",
        ),
        (lambda root: (root / "mmaplog/py.typed").unlink(), "mmaplog has no py.typed"),
        (lambda root: _replace(root, '"*.pxd", ', ""), "low.pxd matches no pattern"),
        (lambda root: _replace(root, ', "py.typed"', ""), "py.typed matches no pattern"),
        (lambda root: _replace(root, '"mmapio", "mmaplog"', '"mmapio"'), "mmaplog is not among the packages"),
    ],
)
def test_a_planted_flaw_is_caught(planted: Tree, change: Any, complaint: str) -> None:
    change(planted.root)
    found = build_violations(planted) + packaging_violations(planted)
    assert any(complaint in each for each in found), found


def _replace(root: Path, old: str, new: str) -> None:
    text = (root / "pyproject.toml").read_text()
    assert old in text
    (root / "pyproject.toml").write_text(text.replace(old, new, 1))


def test_a_module_older_than_a_header_it_needs_is_caught(planted: Tree) -> None:
    binary = planted.root / "mmapkv/high.so"
    binary.touch()
    source = planted.modules["mmapkv.high"]
    needed = {source} | headers_of(planted, source)
    for path in needed:
        os.utime(path, (1_000_000_000, 1_000_000_000))
    assert stale(binary, needed) == []
    os.utime(binary, (1_000_000_001, 1_000_000_001))
    os.utime(planted.root / "mmapio/low.pxd", (1_000_000_002, 1_000_000_002))
    assert stale(binary, needed) == ["high.so is older than low.pxd: install the project again"]
