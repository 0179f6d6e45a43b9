"""mmapio imports neither layer above it, mmaplog not mmapkv: in the source, and when it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.imports import COMPUTED, imports_of
from tests.support.tree import PACKAGES, PROJECT, Tree

# Imports every module of a package, as far as the installed extras allow, then names the modules of the
# layers above that came with it. Only what an extra would have brought may be missing.
_IMPORT_ALL = """
import importlib, pkgutil, sys
package, above, first_on_path = sys.argv[1], sys.argv[2].split(), sys.argv[3]
if first_on_path:
    sys.path.insert(0, first_on_path)
root = importlib.import_module(package)
for found in pkgutil.walk_packages(root.__path__, package + "."):
    if not found.name.endswith(".__main__"):
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            if error.name.partition(".")[0] in above + [package]:
                raise
print(*sorted(name for name in sys.modules if name.partition(".")[0] in above))
"""


def layer_violations(tree: Tree) -> list[str]:
    """Every import, written in any source file, that points upwards or hides where it points."""
    found = set()
    for path in tree.sources(".py", ".pyi", ".pyx", ".pxd"):
        layer = PACKAGES.index(path.relative_to(tree.root).parts[0])
        for each in imports_of(tree, path):
            if each.module.partition(".")[0] in PACKAGES[layer + 1 :] or each.module == COMPUTED:
                found.add(f"{tree.shown(path)}:{each.line} imports {each.module}")
    return sorted(found)


def loaded_from_above(package: str, first_on_path: Path | None = None) -> list[str]:
    """The modules of the layers above that a fresh interpreter has after importing all of `package`."""
    above = " ".join(PACKAGES[PACKAGES.index(package) + 1 :])
    command = [sys.executable, "-I", "-c", _IMPORT_ALL, package, above, str(first_on_path or "")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.split()


def plant(root: Path, name: str, text: str) -> Tree:
    for package in PACKAGES:
        (root / package).mkdir(exist_ok=True)
        (root / package / "__init__.py").touch()
    (root / name).write_text(text)
    return Tree(root)


def test_no_source_imports_upwards() -> None:
    assert layer_violations(PROJECT) == []


@pytest.mark.parametrize("package", PACKAGES[:-1])
def test_no_module_loads_a_layer_above(package: str) -> None:
    assert loaded_from_above(package) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mmapio/a.py", "import mmaplog"),
        ("mmapio/a.py", "import os, mmapkv.store as store"),
        ("mmapio/a.py", "def later():\n    from mmaplog.log import Log\n    return Log"),
        ("mmapio/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import mmapkv"),
        ("mmapio/a.py", "import importlib\nimportlib.import_module('mmaplog')"),
        ("mmapio/a.py", "__import__('mmap' + 'log')"),
        ("mmapio/a.pyi", "from mmaplog import Log"),
        ("mmaplog/a.py", "from mmapkv import KVStore"),
        ("mmaplog/a.pyx", "cimport mmapkv.index"),
        ("mmaplog/a.pyx", "from mmapkv.index cimport Index"),
        ("mmaplog/a.pyx", "from libc.stdint cimport uint64_t; cimport mmapkv as kv"),
        ("mmaplog/a.pyx", "def f():\n    if True: import mmapkv\n"),
        ("mmaplog/a.pyx", "x = '''it's'''  # it's\nfrom mmapkv.index cimport (\n    Index,\n    Slot,\n)"),
        ("mmaplog/a.pyx", "from mmapkv \\\n    cimport index"),
        ("mmaplog/a.pyx", "import importlib\nimportlib.import_module(name)"),
        ("mmapio/a.pxd", "from mmaplog.control cimport Control"),
        ("mmapio/a.pxd", "cimport cython, mmaplog.control"),
    ],
)
def test_a_planted_upward_import_is_caught(tmp_path: Path, name: str, text: str) -> None:
    assert len(layer_violations(plant(tmp_path, name, text))) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mmapio/a.py", "'''import mmaplog'''\n# import mmaplog\ntext = 'import mmaplog'"),
        (
            "mmapio/a.pyx",
            '"""\nimport mmaplog\n"""\n# cimport mmaplog\nx = "cimport mmapkv"  # "import mmapkv',
        ),
        ("mmapio/a.pyx", "def f(x):\n    yield from mmaplog(x)\n    raise Closed from mmapkv"),
        ("mmaplog/a.pyx", "from mmapio.mapping cimport MemoryMappedFile\nfrom .log import Log"),
        ("mmapkv/a.pxd", "from mmaplog.log cimport Log\nfrom mmapio cimport mapping"),
    ],
)
def test_what_only_looks_like_an_upward_import_is_not_caught(tmp_path: Path, name: str, text: str) -> None:
    assert layer_violations(plant(tmp_path, name, text)) == []


def test_an_upward_import_that_only_shows_when_it_runs_is_caught(tmp_path: Path) -> None:
    tree = plant(tmp_path, "mmapio/a.py", "exec('import ' + 'mmap' + 'log')")
    assert layer_violations(tree) == []
    assert loaded_from_above("mmapio", tmp_path) == ["mmaplog"]
