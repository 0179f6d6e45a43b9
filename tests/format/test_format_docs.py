"""The format pages say what the code declares, name by name and number by number, and their examples hold.

A page that is off by one field costs whoever reads a store by it their data.
"""

from __future__ import annotations

import itertools
import shutil
import struct
from pathlib import Path

import pytest
from xxhash import xxh3_64_intdigest

import mmapkv
from mmaplog import Log, bookmark_format
from tests.support.layouts import (
    Layout,
    Value,
    declared_constants,
    declared_layouts,
    declared_structs,
    example,
    page_constants,
    page_structs,
)
from tests.support.plain_log import read_log
from tests.support.plain_reader import check_store
from tests.support.tree import PROJECT

_LOG = PROJECT.root / "docs/format-log.md"
_KV = PROJECT.root / "docs/format-kv.md"
_DECLARED = {_LOG: "mmaplog/format.pxd", _KV: "mmapkv/format.pxd"}
# The sources whose constants each page must list, all of them.
_SOURCES = {
    _LOG: {
        "mmaplog/format.pxd",
        "mmaplog/bookmark_format.py",
        "mmaplog/lock.py",
        "mmaplog/manifest.py",
        "mmaplog/recovery.pyx",
        "mmaplog/truncation.pyx",
    },
    _KV: {"mmapkv/format.pxd"},
}
_PAGES = pytest.mark.parametrize("page", [_LOG, _KV], ids=["log", "kv"])
# What the examples of the pages are said to stand in.
_SEGMENT_ID = 0x0123456789ABCDEF


def differences(page: Path, text: str) -> list[str]:
    """Where the tables of a page and the declarations of its format disagree."""
    declared = declared_structs((PROJECT.root / _DECLARED[page]).read_text(encoding="utf-8"))
    for source in _SOURCES[page]:
        declared |= declared_layouts((PROJECT.root / source).read_text(encoding="utf-8"))
    found = _unequal("struct", declared, page_structs(text))
    listed = page_constants(text)
    if set(listed) != _SOURCES[page]:
        found.append(f"constants of {sorted(listed)} are listed, not of {sorted(_SOURCES[page])}")
    for source in _SOURCES[page] & set(listed):
        found += _unequal(source, declared_constants(PROJECT.root / source), listed[source])
    return found


def _unequal(
    what: str, declared: dict[str, Layout] | dict[str, Value], listed: dict[str, Layout] | dict[str, Value]
) -> list[str]:
    return [
        f"{what} {name}: {declared.get(name)} is declared, the page says {listed.get(name)}"
        for name in sorted({*declared, *listed})
        if declared.get(name) != listed.get(name)
    ]


@_PAGES
def test_the_tables_are_those_of_the_code(page: Path) -> None:
    """A field could move, or a constant change, and the page would go on telling the old story."""
    assert differences(page, page.read_text(encoding="utf-8")) == []


@_PAGES
def test_every_wrong_number_is_caught(page: Path) -> None:
    """Control: a comparison that overlooks a number of a table, or a row, would pass any page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    tried = 0
    for at, row in _rows(lines):
        cells = row.split(" | ")
        # The last column is prose.
        for column, cell in enumerate(cells[:2]):
            number = cell.strip("| `")
            if number.isdigit() or number.startswith("0x"):
                wrong = [*cells]
                wrong[column] = cell.replace(number, str(int(number, 0) + 1))
                changed = [*lines[:at], " | ".join(wrong), *lines[at + 1 :]]
                assert differences(page, "\n".join(changed)), f"line {at + 1}, column {column + 1}"
                tried += 1
        assert differences(page, "\n".join([*lines[:at], *lines[at + 1 :]])), f"line {at + 1} left out"
    assert tried > 60


def _rows(lines: list[str]) -> list[tuple[int, str]]:
    # The rows of the tables that the comparison is about.
    found, headed = [], False
    for at, line in enumerate(lines):
        if line.startswith("#"):
            headed = line.startswith("### Constants of") or line.endswith(" bytes)")
        elif (
            headed and line.startswith("|") and lines[at - 1].startswith("|") and not line.startswith("|---")
        ):
            found.append((at, line))
    return found


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("| 0 | 8 | magic |", "| 0 | 8 | magics |"),
        ("### RecordHeader (16 bytes)", "### RecordHeader (24 bytes)"),
        ("### Footer (48 bytes)", "### Feet (48 bytes)"),
        ("### Constants of `mmaplog/lock.py`", "### Constants of `mmaplog/locks.py`"),
        ('| BAD_SUFFIX | `".bad"` |', '| BAD_SUFFIX | `".worse"` |'),
        (r'| SEGMENT_MAGIC | `b"\x93mmaplog"` |', r'| SEGMENT_MAGIC | `b"\x93mmapdog"` |'),
        ("| FLAG_TIME | 0x08 |", "| FLAG_TIME | 0x08 | |\n| FLAG_OTHER | 0x80 |"),
    ],
)
def test_a_wrong_name_is_caught(before: str, after: str) -> None:
    """Control: as above, for what is no number."""
    text = _LOG.read_text(encoding="utf-8")
    assert text.count(before) >= 1
    assert differences(_LOG, text.replace(before, after))


def test_layouts_are_computed_from_types(tmp_path: Path) -> None:
    """Offsets that are wrong in the same way on both sides would agree."""
    found = declared_structs(
        "cdef packed struct Inner:\n    uint16_t a\n    uint8_t b[3]  # five bytes\n\n"
        "cdef struct Other:\n    uint64_t x\n\n"
        "cdef packed struct Outer:\n    # A comment.\n    uint8_t c\n    Inner inner[2]\n    uint64_t d\n"
    )
    assert {name: layout.size for name, layout in found.items()} == {"Inner": 5, "Outer": 19}
    assert [(each.offset, each.size, each.name) for each in found["Outer"].fields] == [
        (0, 1, "c"),
        (1, 10, "inner"),
        (11, 8, "d"),
    ]
    found = declared_layouts(
        'LAYOUTS = {\n    "One": (("a", "Q"), ("b", "16s")),\n    "Two": (("c", "I"),),\n}\nOTHER = 1\n'
    )
    assert {name: layout.size for name, layout in found.items()} == {"One": 24, "Two": 4}
    assert [(each.offset, each.size, each.name) for each in found["One"].fields] == [
        (0, 8, "a"),
        (8, 16, "b"),
    ]
    assert declared_layouts("cdef int LAYOUT = 1\n") == {}
    (tmp_path / "a.pxd").write_text(
        "cdef enum:\n    A = 3  # three\n    B = 0x10\n\ncdef enum Named:\n    C = 1\n"
    )
    (tmp_path / "a.pyx").write_text(
        'cdef uint64_t D = (A << 4) - B\ncdef object E = {}\nF = "text"\nlow = 1\n'
    )
    assert declared_constants(tmp_path / "a.pxd") == {"A": 3, "B": 16, "D": 32, "F": "text"}


# ---- the examples ----


def segment_with(directory: Path, record: bytes) -> None:
    """The file that a page's example is said to be from, alone in a directory."""
    header = struct.pack(
        "<8sIIII16sQQQQIIQ",
        *(b"\x93mmaplog", 1, 4096, 0, 0, b"u" * 16, _SEGMENT_ID, 0, 0, 1 << 16, 0, 0, 0),
    )
    header += struct.pack("<Q", xxh3_64_intdigest(header))
    directory.mkdir()
    data = (header.ljust(4096, b"\0") + record).ljust(1 << 16, b"\0")
    (directory / f"{0:020}-{_SEGMENT_ID:016x}.seg").write_bytes(data)


def test_the_example_of_a_record(tmp_path: Path) -> None:
    """An example that the code does not read, or writes differently, teaches the wrong format."""
    record = example(_LOG.read_text(encoding="utf-8"), "record")
    segment_with(tmp_path / "log", record)
    assert [(each.seq, each.payload, each.time) for each in read_log(tmp_path / "log").records] == [
        (0, b"hello", None)
    ]
    shutil.copytree(tmp_path / "log", tmp_path / "copy")
    with Log.open(tmp_path / "copy") as log:
        assert [(each.seq, bytes(each.payload), each.timestamp) for each in log.replay()] == [
            (0, b"hello", None)
        ]
    segment_with(tmp_path / "written", b"")
    with Log.open(tmp_path / "written") as log:
        log.append(b"hello")
    # In a segment of another id, so under another checksum: that of the example was checked above.
    written = first_record(tmp_path / "written", len(record))
    assert written[:4] + written[8:] == record[:4] + record[8:]


def test_the_example_of_a_place() -> None:
    """As above, for what a consumer's file holds."""
    data = example(_LOG.read_text(encoding="utf-8"), "place")
    seed = _SEGMENT_ID ^ 1
    place = bookmark_format.Place(7, 5, 9, 5, 0x1122334455667788, 1, [bookmark_format.Claim(5, 9, 3)])
    assert bookmark_format.unpack_copy(data, seed) == place
    assert bookmark_format.pack_copy(place, seed) == data
    assert xxh3_64_intdigest(data[:56] + data[64:], seed) == int.from_bytes(data[56:64], "little")


def test_the_examples_of_a_store(tmp_path: Path) -> None:
    """As above, for a record of a store; and its entry would not lead to it."""
    page = _KV.read_text(encoding="utf-8")
    record = example(page, "put")
    segment_with(tmp_path / "store", record)
    assert check_store(tmp_path / "store") == {b"k": b"v"}
    with mmapkv.KVStore.open(tmp_path / "store") as store:
        assert dict(store) == {b"k": b"v"}
    assert check_store(tmp_path / "store") == {b"k": b"v"}
    segment_with(tmp_path / "written", b"")
    with mmapkv.KVStore.open(tmp_path / "written") as store:
        store[b"k"] = b"v"
    # In a segment of another id, so under another checksum: that of the example was checked above.
    written = first_record(tmp_path / "written", len(record))
    assert written[:4] + written[8:] == record[:4] + record[8:]
    # The entry that was made has its tag by another seed; all else of it must be the example's.
    (entry,) = struct.unpack("<Q", example(page, "entry"))
    hashed = xxh3_64_intdigest(b"k", 0)
    assert f"`0x{hashed:016x}`, so it belongs into bucket {hashed & 511}," in page
    assert entry >> 40 == hashed >> 40
    data = (tmp_path / "written/INDEX").read_bytes()
    (seed,) = struct.unpack_from("<Q", data, 40)
    bucket = xxh3_64_intdigest(b"k", seed) & 511
    (made,) = struct.unpack_from("<Q", data, 204800 + 4096 + 64 * (1 + bucket))
    assert made & (1 << 40) - 1 == entry & (1 << 40) - 1


def first_record(directory: Path, size: int) -> bytes:
    """What stands at the start of the only segment's records."""
    (segment,) = directory.glob("*.seg")
    return segment.read_bytes()[4096 : 4096 + size]


def test_the_pages_show_examples_as_dumps() -> None:
    """A dump whose text column or offsets are not those of its bytes misleads who reads it by eye."""
    for page in (_LOG, _KV):
        lines = page.read_text(encoding="utf-8").splitlines()
        dumps = [at + 2 for at, line in enumerate(lines) if line.startswith("<!-- example:")]
        assert dumps
        for start in dumps:
            rows = itertools.takewhile(lambda line: not line.startswith("```"), lines[start:])
            for number, row in enumerate(rows):
                raw = bytes.fromhex(row[4:].partition("  |")[0])
                shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in raw)
                assert row == f"{16 * number:04x}  {raw.hex(' '):<47}  |{shown}|"
