"""The house rules that a program can check: places, words, clocks in assertions, links, the top level."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.rules import TOP_LEVEL
from tests.support.tree import PROJECT, Tree

_SOURCE_SUFFIXES = (".py", ".pyi", ".pyx", ".pxd", ".h")
# No file of the project names a directory of one machine, or where one machine finds its packages.
_MACHINE = re.compile(
    r"(?<![\w.~$}])/(?:work|farm|home|root|Users|mnt|opt)/\w|\b[A-Z]:\\Users\\|--(?:extra-)?index-url"
)
# Spelt in halves, for this file is a source too.
_UNFINISHED = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK|NotImplemented" r"Error)\b")
_CLOCKS = frozenset(
    name + unit
    for name in ("monotonic", "perf_counter", "process_time", "thread_time", "time")
    for unit in ("", "_ns")
)
_CLOCK_CALL = re.compile(rf"\b(?:{'|'.join(_CLOCKS)})\b")
_FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
_ASSIGNMENT = ast.Assign | ast.AnnAssign | ast.NamedExpr | ast.AugAssign
_LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)|!\[[^\]\n]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^(```|~~~).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)


def text_of(path: Path) -> str:
    """The text of a file; of one that is not text, nothing."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def lines_matching(tree: Tree, pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    """Where `pattern` occurs, as ``path:line text``."""
    return [
        f"{tree.shown(path)}:{number} {line.strip()}"
        for path in paths
        for number, line in enumerate(text_of(path).splitlines(), start=1)
        if pattern.search(line)
    ]


def machine_paths(tree: Tree) -> list[str]:
    """Lines that name a place on one machine."""
    return lines_matching(tree, _MACHINE, tree.files)


def unfinished(tree: Tree) -> list[str]:
    """Lines that put work off."""
    return lines_matching(tree, _UNFINISHED, [path for path in tree.files if path.suffix in _SOURCE_SUFFIXES])


def timed_assertions(tree: Tree) -> list[str]:
    """Assertions on how long something took: a difference of clock readings, or one reading against another.

    Comparing a timestamp that the project made with readings before and after it is no such thing.
    """
    found = []
    for path in tree.sources(".py", within=("tests",)):
        text = text_of(path)
        if not _CLOCK_CALL.search(text):
            continue
        module = ast.parse(text)
        functions = [node for node in ast.walk(module) if isinstance(node, _FUNCTION)]
        lines = {line for scope in [module, *functions] for line in _timed_assertions_in(scope)}
        found += [f"{tree.shown(path)}:{line} asserts on elapsed time" for line in sorted(lines)]
    return found


def _timed_assertions_in(scope: ast.AST) -> Iterator[int]:
    readings: set[str] = set()
    spans: set[str] = set()

    def is_reading(node: ast.AST) -> bool:
        for each in ast.walk(node):
            if isinstance(each, ast.Call):
                called = each.func
                name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
                if name in _CLOCKS:
                    return True
            if isinstance(each, ast.Name) and each.id in readings:
                return True
        return False

    def is_span(node: ast.AST) -> bool:
        return any(
            (isinstance(each, ast.BinOp) and isinstance(each.op, ast.Sub) and is_reading(each))
            or (isinstance(each, ast.Name) and each.id in spans)
            or (isinstance(each, ast.Compare) and all(map(is_reading, [each.left, *each.comparators])))
            for each in ast.walk(node)
        )

    # A name may be assigned from a name that is assigned further down in a loop: twice is enough.
    for _ in range(2):
        for node in ast.walk(scope):
            if isinstance(node, _ASSIGNMENT) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                parts = [each for target in targets for each in ast.walk(target)]
                names = {each.id for each in parts if isinstance(each, ast.Name)}
                if is_span(node.value):
                    spans |= names
                elif is_reading(node.value):
                    readings |= names
    for node in ast.walk(scope):
        if isinstance(node, ast.Assert) and is_span(node.test):
            yield node.lineno


def anchors(text: str) -> set[str]:
    """The names by which a Markdown page's headings can be linked to, as GitHub makes them."""
    headings = re.findall(r"^#{1,6}\s+(.*?)\s*#*$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(tree: Tree) -> list[str]:
    """Links of Markdown pages to files or headings of the project that do not exist."""
    found = []
    for page in [path for path in tree.files if path.suffix == ".md"]:
        text = text_of(page)
        for match in _LINK.finditer(_FENCE.sub("", text)):
            target = match[1] or match[2]
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue
            name, _, anchor = target.partition("#")
            linked = (page.parent / name).resolve() if name else page
            if not linked.exists():
                found.append(f"{tree.shown(page)} links to {target}, which does not exist")
            elif anchor and (linked.suffix != ".md" or anchor not in anchors(text_of(linked))):
                found.append(f"{tree.shown(page)} links to {target}, which has no such heading")
    return found


def strangers(tree: Tree) -> list[str]:
    """What stands at the top of the repository without leave."""
    return sorted({path.relative_to(tree.root).parts[0] for path in tree.files} - TOP_LEVEL)


def test_no_file_names_a_place_on_one_machine() -> None:
    assert machine_paths(PROJECT) == []


def test_no_source_puts_work_off() -> None:
    assert unfinished(PROJECT) == []


def test_no_test_asserts_on_elapsed_time() -> None:
    assert timed_assertions(PROJECT) == []


def test_the_links_between_pages_resolve() -> None:
    assert broken_links(PROJECT) == []


def test_the_top_level_holds_what_it_may() -> None:
    assert strangers(PROJECT) == []


def plant(root: Path, name: str, text: str) -> Tree:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
    return Tree(root)


@pytest.mark.parametrize(
    ("text", "caught"),
    [
        ("see /" + "work/main", True),
        ("path = '/" + "home/me/x'", True),
        ("C:" + "\\Users\\me", True),
        ("pip install --" + "index-url x", True),
        ("$HOME/work/x and ~/home/x and a/work/x and /work alone, 1/home", False),
    ],
)
def test_a_planted_machine_path_is_caught(tmp_path: Path, text: str, caught: bool) -> None:
    assert bool(machine_paths(plant(tmp_path, "docs/a.md", text))) is caught


@pytest.mark.parametrize(
    ("text", "caught"),
    [
        ("# TO" + "DO: later", True),
        ("raise NotImplemented" + "Error", True),
        ("x = 1  # XX" + "X", True),
        ("XXH3 todo = fixme_later = NotImplemented", False),
    ],
)
def test_planted_unfinished_work_is_caught(tmp_path: Path, text: str, caught: bool) -> None:
    assert bool(unfinished(plant(tmp_path, "mmapio/a.pyx", text))) is caught


@pytest.mark.parametrize(
    ("body", "caught"),
    [
        ("a = time.monotonic(); f(); assert time.monotonic() - a < 1", True),
        ("a = perf_counter(); f(); took = perf_counter() - a; assert took < 0.05", True),
        ("a = time.time_ns(); f(); b = time.time_ns(); took_ms = (b - a) / 1e6; assert g(took_ms)", True),
        ("end = time.monotonic() + 9\n    while not f():\n        assert time.monotonic() < end", True),
        ("a = time.time_ns(); t = f(); b = time.time_ns(); assert a <= t <= b", False),
        ("a = time.monotonic(); f(); print(time.monotonic() - a); assert f() - 1 == 2", False),
    ],
)
def test_a_planted_timed_assertion_is_caught(tmp_path: Path, body: str, caught: bool) -> None:
    tree = plant(tmp_path, "tests/test_a.py", f"def test_a():\n    {body}\n")
    assert bool(timed_assertions(tree)) is caught


@pytest.mark.parametrize(
    ("text", "caught"),
    [
        ("[a](missing.md)", True),
        ("![a](missing.png)", True),
        ("[a](#missing)", True),
        ("[a](other.md#missing)", True),
        ("[a](../mmapio)", False),
        ("[a](other.md#what-it-is-briefly) [b](https://example.org/x) [c](#here-1)\n## Here (1)", False),
        ("```\n[a](missing.md)\n```", False),
    ],
)
def test_a_planted_broken_link_is_caught(tmp_path: Path, text: str, caught: bool) -> None:
    plant(tmp_path, "mmapio/a.py", "")
    plant(tmp_path, "docs/other.md", "# What it is, `briefly`")
    assert bool(broken_links(plant(tmp_path, "docs/a.md", text))) is caught


def test_a_planted_stranger_is_caught_with_and_without_git(tmp_path: Path) -> None:
    for name in ("mmapio/a.py", "notes.txt", "scratch/a.py", ".gitignore", "build/x.o", ".venv/a.py"):
        tree = plant(tmp_path, name, "/build/\n/.venv/\n" if name == ".gitignore" else "")
    assert strangers(tree) == ["notes.txt", "scratch"]
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    assert strangers(Tree(tmp_path)) == ["notes.txt", "scratch"]
