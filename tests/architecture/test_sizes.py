"""Small files, small functions. The limits are in `rules`."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.architecture.rules import FILE_LINES_MAX, FUNCTION_LINES_MAX
from tests.support.tree import PACKAGES, PROJECT, Tree

_EVERYWHERE = (*PACKAGES, "tests", "benchmarks", "examples")


def long_files(tree: Tree) -> list[str]:
    """The source files that have more lines than the limit."""
    counts = {
        path: len(path.read_text(encoding="utf-8").splitlines())
        for path in tree.sources(".py", ".pyi", ".pyx", ".pxd", within=_EVERYWHERE)
    }
    return [
        f"{tree.shown(path)} has {count} lines, the limit is {FILE_LINES_MAX}"
        for path, count in counts.items()
        if count > FILE_LINES_MAX
    ]


def long_functions(tree: Tree) -> list[str]:
    """The Python functions whose code has more lines than the limit."""
    found = []
    for path in tree.sources(".py", within=_EVERYWHERE):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = _lines(node) - (_lines(node.body[0]) if ast.get_docstring(node) is not None else 0)
                if count > FUNCTION_LINES_MAX:
                    found.append(
                        f"{tree.shown(path)}:{node.lineno} {node.name} has {count} lines of code, "
                        f"the limit is {FUNCTION_LINES_MAX}"
                    )
    return found


def _lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def test_no_file_is_too_long() -> None:
    assert long_files(PROJECT) == []


def test_no_function_is_too_long() -> None:
    assert long_functions(PROJECT) == []


def test_a_planted_long_file_is_caught(tmp_path: Path) -> None:
    (tmp_path / "mmapio").mkdir()
    planted = tmp_path / "mmapio/a.pyx"
    planted.write_text("x = 1\n" * FILE_LINES_MAX)
    assert long_files(Tree(tmp_path)) == []
    planted.write_text("x = 1\n" * (FILE_LINES_MAX + 1))
    assert len(long_files(Tree(tmp_path))) == 1


def test_a_planted_long_function_is_caught(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    planted = tmp_path / "tests/a.py"
    docstring = '    """' + "Why.\n" * FUNCTION_LINES_MAX + '    """\n'
    body = "        x = 1\n" * (FUNCTION_LINES_MAX - 1)
    planted.write_text(f"class C:\n    async def f(self):\n    {docstring}{body}")
    assert long_functions(Tree(tmp_path)) == []
    planted.write_text(f"class C:\n    async def f(self):\n    {docstring}{body}        x = 1\n")
    assert len(long_functions(Tree(tmp_path))) == 1
