"""Structures and constants of a format, read from two places: declarations in code and a page's tables.

Offsets in a declaration are computed from the types of what comes before; on a page they are written out. The
test that compares the two therefore checks the arithmetic of both.
"""

from __future__ import annotations

import ast
import operator
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.cython_source import blank

Value = int | str

_SIZES = {"uint8_t": 1, "uint16_t": 2, "uint32_t": 4, "uint64_t": 8}
_BINARY: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.LShift: operator.lshift,
    ast.BitOr: operator.or_,
}
_STRUCT = re.compile(r"^cdef packed struct (\w+):\n((?:[ \t]+\S.*\n|[ \t]*\n)+)", re.MULTILINE)
_ENUM = re.compile(r"^cdef enum:\n((?:[ \t]+\S.*\n|[ \t]*\n)+)", re.MULTILINE)
_MEMBER = re.compile(r"^\s+(\w+) (\w+)(?:\[(\d+)\])?[ \t]*$", re.MULTILINE)
_ENUMERATOR = re.compile(r"^\s+(\w+) = (.+?)[ \t]*$", re.MULTILINE)
_ASSIGNED = re.compile(r"^(?:cdef u?int\d+_t )?([A-Z]\w*) = (.+?)[ \t]*$", re.MULTILINE)
_CAST = re.compile(r"<[a-z_0-9 ]+>")

_STRUCT_HEADING = re.compile(r"^### (\w+) \((\d+) bytes\)$")
_CONSTANTS_HEADING = re.compile(r"^### Constants of `([\w/.]+)`$")
_STRUCT_COLUMNS = ["offset", "size", "name", "meaning"]
_CONSTANTS_COLUMNS = ["name", "value", "meaning"]


@dataclass(frozen=True)
class Field:
    """One member of a structure; sizes and offsets in bytes."""

    offset: int
    size: int
    name: str


@dataclass(frozen=True)
class Layout:
    """A packed structure: its size and its members in order."""

    size: int
    fields: tuple[Field, ...]


def declared_structs(code: str) -> dict[str, Layout]:
    """The ``cdef packed struct`` declarations of a .pxd file. One may contain those before it."""
    found: dict[str, Layout] = {}
    for match in _STRUCT.finditer(blank(code) + "\n"):
        offset, fields = 0, []
        for member in _MEMBER.finditer(match[2]):
            size = _SIZES[member[1]] if member[1] in _SIZES else found[member[1]].size
            size *= int(member[3] or 1)
            fields.append(Field(offset, size, member[2]))
            offset += size
        found[match[1]] = Layout(offset, tuple(fields))
    return found


def declared_layouts(code: str) -> dict[str, Layout]:
    """The structures of a .py file: its ``LAYOUTS``, by name the names and `struct` codes of the fields."""
    match = re.search(r"^LAYOUTS = (\{.*?^\})", code, re.MULTILINE | re.DOTALL)
    found = {}
    for name, members in ast.literal_eval(match[1]).items() if match else ():
        offset, fields = 0, []
        for member, kind in members:
            fields.append(Field(offset, struct.calcsize("<" + kind), member))
            offset += fields[-1].size
        found[name] = Layout(offset, tuple(fields))
    return found


def declared_constants(path: Path) -> dict[str, Value]:
    """The public constants of a source file: module-level numbers and texts in capitals.

    Of a .pxd also the members of its anonymous enums, and the numbers that the .pyx beside it gives.
    """
    code = path.read_text(encoding="utf-8")
    found: dict[str, Value] = {}
    for body in _ENUM.findall(blank(code) + "\n"):
        found |= {name: _value(text, found) for name, text in _ENUMERATOR.findall(body)}
    if path.suffix == ".pxd":
        code = path.with_suffix(".pyx").read_text(encoding="utf-8")
    for name, text in _ASSIGNED.findall(blank(code, strings=False)):
        if not name.isupper():
            continue
        try:
            found[name] = _value(text, found)
        except ValueError:
            continue  # neither a number nor a text, so nothing that could be on disk
    return found


def _value(text: str, known: dict[str, Value]) -> Value:
    try:
        return _evaluate(ast.parse(_CAST.sub("", text), mode="eval").body, known)
    except (SyntaxError, KeyError, TypeError) as error:
        raise ValueError(f"not a constant: {text}") from error


def _evaluate(node: ast.expr, known: dict[str, Value]) -> Value:
    match node:
        case ast.Constant(value=int() | str() as value) if not isinstance(value, bool):
            return value
        case ast.Name(id=name):
            return known[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -int(_evaluate(operand, known))
        case ast.BinOp(left=left, op=sign, right=right):
            return _BINARY[type(sign)](int(_evaluate(left, known)), int(_evaluate(right, known)))
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id="int"), attr="from_bytes"),
            args=[ast.Constant(value=bytes() as raw), ast.Constant(value="little")],
        ):
            return int.from_bytes(raw, "little")
    raise ValueError(f"not a constant: {ast.dump(node)}")


def page_structs(page: str) -> dict[str, Layout]:
    """The tables below headings of the form ``### Name (n bytes)``."""
    found = {}
    for heading, columns, rows in _tables(page):
        match = _STRUCT_HEADING.match(heading)
        if match is not None:
            _expect(heading, columns, _STRUCT_COLUMNS)
            fields = tuple(Field(int(row[0]), int(row[1]), row[2]) for row in rows)
            if match[1] in found:
                raise ValueError(f"{match[1]} has two tables")
            found[match[1]] = Layout(int(match[2]), fields)
    return found


def page_constants(page: str) -> dict[str, dict[str, Value]]:
    """The tables below headings of the form ``### Constants of `path```, by the path."""
    found = {}
    for heading, columns, rows in _tables(page):
        match = _CONSTANTS_HEADING.match(heading)
        if match is not None:
            _expect(heading, columns, _CONSTANTS_COLUMNS)
            if match[1] in found or len({row[0] for row in rows}) < len(rows):
                raise ValueError(f"the constants of {match[1]} are listed twice")
            found[match[1]] = {row[0]: _page_value(row[1]) for row in rows}
    return found


def _expect(heading: str, columns: list[str], wanted: list[str]) -> None:
    if columns != wanted:
        raise ValueError(f"the table below {heading!r} has the columns {columns}, not {wanted}")


def _page_value(cell: str) -> Value:
    value = ast.literal_eval(cell.strip("`"))
    if isinstance(value, bytes):
        return int.from_bytes(value, "little")
    if isinstance(value, int | str):
        return value
    raise ValueError(f"not a constant: {cell}")


def _tables(page: str) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    # The first table after each heading of the third level, with the heading.
    heading = ""
    lines = iter(page.splitlines())
    for line in lines:
        if line.startswith("#"):
            heading = line
        elif line.startswith("|") and heading.startswith("### "):
            columns = _cells(line)
            next(lines)
            rows = []
            for row in lines:
                if not row.startswith("|"):
                    break
                rows.append(_cells(row))
            yield heading, columns, rows
            heading = ""


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split(" | ")]


def example(page: str, name: str) -> bytes:
    """The bytes of the hex dump that follows ``<!-- example: name -->`` on a page."""
    match = re.search(rf"<!-- example: {re.escape(name)} -->\n```\n(.*?)```", page, re.DOTALL)
    if match is None:
        raise ValueError(f"the page has no example {name!r}")
    return bytes.fromhex("".join(line[4:].partition("  |")[0] for line in match[1].splitlines()))
