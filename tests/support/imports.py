"""What a source file imports: ``import`` and ``cimport``, in .py, .pyi, .pyx and .pxd alike."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.cython_source import statements
from tests.support.tree import Tree

#: Stands for the module of an import whose name is only known when it runs.
COMPUTED = "<computed>"

_IMPORT = re.compile(r"(?:\bfrom\s+(?P<module>[.\s]*[\w.]*?)\s*)?\b(?P<keyword>c?import)\b(?P<names>[^;]*)")
_DYNAMIC = re.compile(r"\b(?:import_module|__import__|PyImport_\w+)\s*\(")


@dataclass(frozen=True)
class Import:
    """One imported name.

    ``import a.b as c`` has module ``a.b``, name ``None`` and bound ``c``; ``from a import b`` has module
    ``a``, name ``b`` and bound ``b``. Relative imports are resolved.
    """

    line: int
    module: str
    name: str | None
    bound: str
    native: bool  # a cimport

    def targets(self, known: Collection[str]) -> set[str]:
        """Which of the `known` modules it names."""
        return {name for name in (self.module, f"{self.module}.{self.name}") if name in known}


def imports_of(tree: Tree, path: Path) -> list[Import]:
    """The imports of one file, whatever its kind, at any depth."""
    package = tree.dotted(path)
    if path.stem != "__init__":
        package = package.rpartition(".")[0]
    code = path.read_text(encoding="utf-8")
    found = _of_cython(code, package) if path.suffix in (".pyx", ".pxd") else _of_python(code, package)
    return list(found)


def _of_python(code: str, package: str) -> Iterator[Import]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.asname or alias.name.partition(".")[0]
                yield Import(node.lineno, alias.name, None, bound, native=False)
        elif isinstance(node, ast.ImportFrom):
            module = _resolve(package, "." * node.level + (node.module or ""))
            for alias in node.names:
                yield Import(node.lineno, module, alias.name, alias.asname or alias.name, native=False)
        elif isinstance(node, ast.Call) and _called(node.func) in ("import_module", "__import__"):
            named = node.args[0] if node.args else None
            constant = isinstance(named, ast.Constant) and isinstance(named.value, str)
            module = _resolve(package, named.value) if constant else COMPUTED  # type: ignore[union-attr]
            yield Import(node.lineno, module, None, "", native=False)


def _of_cython(code: str, package: str) -> Iterator[Import]:
    for line, statement in statements(code):
        if _DYNAMIC.search(statement):
            yield Import(line, COMPUTED, None, "", native=False)
        for match in _IMPORT.finditer(statement):
            native = match["keyword"] == "cimport"
            names = [name for name in re.split(r"[,()]", match["names"]) if name.strip()]
            for name in names:
                word, _, alias = (part.strip() for part in re.sub(r"\s+as\s+", "\0", name).partition("\0"))
                word = re.sub(r"\s", "", word)
                if match["module"] is None:
                    yield Import(line, word, None, alias or word.partition(".")[0], native)
                else:
                    module = _resolve(package, re.sub(r"\s", "", match["module"]))
                    yield Import(line, module, word, alias or word, native)


def _called(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _resolve(package: str, written: str) -> str:
    name = written.lstrip(".")
    level = len(written) - len(name)
    if level == 0:
        return name
    parents = package.split(".")[: len(package.split(".")) - (level - 1)]
    return ".".join([*parents, name] if name else parents)
