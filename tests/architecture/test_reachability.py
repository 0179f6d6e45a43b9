"""No dead module: each is reached from a package, a ``__main__`` or a script, by imports alone."""

from __future__ import annotations

import tomllib
from pathlib import Path

from tests.architecture.rules import PUBLIC_MODULES
from tests.support.imports import imports_of
from tests.support.tree import PACKAGES, PROJECT, Tree


def entries(tree: Tree) -> set[str]:
    """Where users come in: the packages, what ``python -m`` runs, the scripts, and `PUBLIC_MODULES`."""
    project = tomllib.loads((tree.root / "pyproject.toml").read_text())["project"]
    scripts = {target.partition(":")[0] for target in project.get("scripts", {}).values()}
    mains = {name for name in tree.modules if name.endswith(".__main__")}
    return set(PACKAGES) | mains | scripts | PUBLIC_MODULES


def dead_modules(tree: Tree) -> list[str]:
    """The modules, headers included, that nothing reachable imports.

    A module brings its own header and the packages around it; a header brings what it cimports.
    """
    files: dict[str, list[Path]] = {}
    for name, path in [*tree.modules.items(), *tree.headers.items()]:
        files.setdefault(name, []).append(path)
    reached: set[str] = set()
    waiting = entries(tree) & files.keys()
    while waiting:
        name = waiting.pop()
        reached.add(name)
        imports = [each for path in files[name] for each in imports_of(tree, path)]
        for target in {target for each in imports for target in each.targets(files)}:
            parts = target.split(".")
            around = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
            waiting |= (around & files.keys()) - reached
    return sorted(files.keys() - reached)


def test_no_module_is_dead() -> None:
    assert dead_modules(PROJECT) == []


def test_planted_dead_modules_are_caught(tmp_path: Path) -> None:
    files = {
        "pyproject.toml": '[project.scripts]\nmmapkv = "mmapkv.cli:main"',
        "mmapio/__init__.py": "from mmapio.mapping import Map",
        "mmapio/mapping.pyx": "from mmapio.words cimport load",
        "mmapio/words.pxd": "",
        "mmaplog/__init__.py": "def __getattr__(name):\n    from . import lazy\n    return lazy",
        "mmaplog/lazy.py": "",
        "mmaplog/dead.py": "from mmaplog import mourner",
        "mmaplog/mourner.py": "import mmaplog.dead",
        "mmapkv/__init__.py": "'''from mmapkv import unmentioned'''",
        "mmapkv/__main__.py": "from .cli import main",
        "mmapkv/cli.py": "",
        "mmapkv/unmentioned.py": "import mmapkv.cli",
        "mmapkv/unread.pxd": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    dead = ["mmapkv.unmentioned", "mmapkv.unread", "mmaplog.dead", "mmaplog.mourner"]
    assert dead_modules(Tree(tmp_path)) == dead
