"""Every system call on file data, a mapping or a lock is in one module, where a test can make it fail."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture import rules
from tests.support.cython_source import extern_blocks, statements
from tests.support.imports import Import, imports_of
from tests.support.tree import PACKAGES, PROJECT, Tree

_NAMED_IN_C = re.compile(rf'\b({"|".join(sorted(rules.C_FORBIDDEN))})\b"?\s*\(')
_INCLUDED = re.compile(r'#\s*include\s*[<"]([^>"]+)[>"]')
_OPEN = re.compile(r"(?<![\w.])open\s*\(")
_DEFINES = re.compile(r"\s*(?:async\s+)?(?:c|cp)?def\b")


def boundary_violations(
    tree: Tree, exceptions: dict[str, frozenset[str]] | None = None
) -> tuple[list[str], dict[str, set[str]]]:
    """What reaches round the boundary, and which of the `exceptions` were made use of."""
    exceptions = exceptions or {}
    found: list[str] = []
    used: dict[str, set[str]] = {}
    for path in tree.sources(".py", ".pyx", ".pxd", ".h"):
        module = tree.dotted(path)
        if module in rules.BOUNDARY:
            continue
        for line, what in sorted(set(_reaches(tree, path))):
            if what in exceptions.get(module, ()):
                used.setdefault(module, set()).add(what)
            else:
                found.append(f"{tree.shown(path)}:{line} uses {what}")
    return found, used


def _reaches(tree: Tree, path: Path) -> Iterator[tuple[int, str]]:
    code = path.read_text(encoding="utf-8")
    if path.suffix == ".h":
        yield from _in_c(tree, path, 1, code)
        return
    imports = imports_of(tree, path)
    yield from _imported(imports)
    os_names = {each.bound for each in imports if each.name is None and each.module.partition(".")[0] == "os"}
    if path.suffix == ".py":
        yield from _in_python(ast.parse(code), imports, os_names)
    else:
        yield from _in_cython(code, os_names)
        for line, header, body in extern_blocks(code):
            if not _header_allowed(tree, path, header):
                yield line, header
            yield from _in_c(tree, path, line, body)


def _imported(imports: list[Import]) -> Iterator[tuple[int, str]]:
    for each in imports:
        top = each.module.partition(".")[0]
        if top in PACKAGES:
            continue
        if each.native:
            full = f"{each.module}.{each.name}" if each.name else each.module
            if not any(f"{full}.".startswith(f"{allowed}.") for allowed in rules.CIMPORT_ALLOWED):
                yield each.line, full
        elif top in rules.PYTHON_FORBIDDEN:
            yield each.line, top
        elif each.module == "os" and each.name is not None and each.name not in rules.OS_ALLOWED:
            yield each.line, f"os.{each.name}"


def _in_python(module: ast.Module, imports: list[Import], os_names: set[str]) -> Iterator[tuple[int, str]]:
    uses_paths = any(each.module == "pathlib" for each in imports)
    forbidden = rules.PATH_METHODS_FORBIDDEN
    modules = {each.bound for each in imports if each.module.partition(".")[0] in PACKAGES}
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute):
            of = node.value.id if isinstance(node.value, ast.Name) else ""
            if of in os_names and node.attr not in rules.OS_ALLOWED:
                yield node.lineno, f"os.{node.attr}"
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id == "open":
                yield node.lineno, "open"
            if uses_paths and isinstance(called, ast.Attribute) and called.attr in forbidden:
                # Not a path: a class of ours (`KVStore.open`), or a module of ours (`_os.unlink`).
                of = getattr(called.value, "id", getattr(called.value, "attr", ""))
                if not (of[:1].isupper() and "Path" not in of) and of not in modules | os_names:
                    yield node.lineno, f"Path.{called.attr}"


def _in_cython(code: str, os_names: set[str]) -> Iterator[tuple[int, str]]:
    attribute = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, os_names)) or '(?!)'})\s*\.\s*(\w+)")
    for line, statement in statements(code):
        for name in attribute.findall(statement):
            if name not in rules.OS_ALLOWED:
                yield line, f"os.{name}"
        if _OPEN.search(statement) and not _DEFINES.match(statement):
            yield line, "open"


def _in_c(tree: Tree, path: Path, line: int, text: str) -> Iterator[tuple[int, str]]:
    yield from ((line, name) for name in _NAMED_IN_C.findall(text))
    included = _INCLUDED.findall(text)
    yield from ((line, header) for header in included if not _header_allowed(tree, path, header))


def _header_allowed(tree: Tree, path: Path, header: str) -> bool:
    """Standard headers without system calls, and those of the project, which are checked themselves."""
    ours = (path.parent / header, tree.root / header)
    return header in rules.HEADERS_ALLOWED or any(each.is_file() for each in ours)


def test_nothing_reaches_round_the_boundary() -> None:
    assert boundary_violations(PROJECT, rules.EXCEPTIONS)[0] == []


def test_no_exception_is_left_over() -> None:
    used = boundary_violations(PROJECT, rules.EXCEPTIONS)[1]
    assert {module: names - used.get(module, set()) for module, names in rules.EXCEPTIONS.items()} == {
        module: set() for module in rules.EXCEPTIONS
    }


def plant(root: Path, name: str, text: str) -> Tree:
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text(text)
    return Tree(root)


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("a.py", "import os\nos.fsync(3)", "os.fsync"),
        ("a.py", "import os as system\nsystem.open('x', 0)", "os.open"),
        ("a.py", "from os import pwrite as put", "os.pwrite"),
        ("a.py", "import os.path\nos.rename('a', 'b')", "os.rename"),
        ("a.py", "def f():\n    import fcntl", "fcntl"),
        ("a.py", "from mmap import mmap", "mmap"),
        ("a.py", "with open('x') as f: pass", "open"),
        ("a.py", "from pathlib import Path\nPath('x').read_bytes()", "Path.read_bytes"),
        ("a.py", "import pathlib\ndef f(self):\n    self.path.parent.mkdir()", "Path.mkdir"),
        ("a.py", "from pathlib import Path\ndef f(path: Path):\n    return path.open('rb')", "Path.open"),
        ("a.pyx", "import os\ndef f():\n    os.ftruncate(3, 0)", "os.ftruncate"),
        ("a.pyx", "import mmap", "mmap"),
        ("a.pyx", "def f():\n    return open('x')", "open"),
        ("a.pyx", "from posix.unistd cimport fsync", "posix.unistd.fsync"),
        ("a.pyx", "from libc cimport stdio", "libc.stdio"),
        ("a.pyx", 'cdef extern from "sys/mman.h":\n    int msync(void *a, int n)', "sys/mman.h"),
        ("a.pyx", 'cdef extern from "Python.h":\n    int fsync(int fd)', "fsync"),
        ("a.pyx", 'cdef extern from *:\n    int harmless "fdatasync"(int fd)', "fdatasync"),
        ("a.pyx", 'cdef extern from *:\n    """\n    #include <fcntl.h>\n    """\n    int x', "fcntl.h"),
        ("a.pyx", 'cdef extern from *:\n    """\n    int f(int d) { return close(d); }\n    """', "close"),
        ("a.pxd", "cdef extern from 'sys/file.h':\n    int flock(int, int)", "flock"),
        ("a.h", "#include <unistd.h>", "unistd.h"),
        ("a.h", "static inline void f(void) { syscall(1); }", "syscall"),
    ],
)
def test_a_planted_way_round_is_caught(tmp_path: Path, name: str, text: str, what: str) -> None:
    found, _ = boundary_violations(plant(tmp_path, f"mmaplog/{name}", text))
    assert any(each.endswith(f"uses {what}") for each in found), found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mmapio/_os.pyx", 'import os\nos.fsync(3)\ncdef extern from "unistd.h":\n    int fsync(int fd)'),
        ("mmaplog/a.py", "import os\nos.fspath(os.getpid())\nos.path.join('a')\nos.listdir('.')"),
        ("mmaplog/a.py", "import pathlib\nfrom mmapio import _os\n_os.unlink('a')\nLog.open('x')"),
        ("mmaplog/a.py", "def f(file):\n    file.unlink()\n    return 'open(x)'"),
        ("mmaplog/a.pyx", "class A:\n    def open(self):\n        return self.b.open()  # open(x)"),
        ("mmaplog/a.pyx", "from libc.string cimport memcpy\ncimport cython\nfrom mmapio cimport _os"),
        (
            "mmaplog/a.pyx",
            'cdef extern from *:\n    """\n    /* not fsync(2) */\n    """\n    int a "b"(int c)',
        ),
    ],
)
def test_what_the_boundary_allows_is_not_caught(tmp_path: Path, name: str, text: str) -> None:
    assert boundary_violations(plant(tmp_path, name, text))[0] == []


def test_an_exception_covers_one_use_in_one_module(tmp_path: Path) -> None:
    plant(tmp_path, "mmaplog/a.py", "import ctypes\nimport mmap")
    tree = plant(tmp_path, "mmaplog/b.py", "import ctypes")
    found, used = boundary_violations(tree, {"mmaplog.a": frozenset({"ctypes", "open"})})
    assert found == ["mmaplog/a.py:2 uses mmap", "mmaplog/b.py:1 uses ctypes"]
    assert used == {"mmaplog.a": {"ctypes"}}
