"""The builder sets what the constructors take, and nothing is lost on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mmapio import (
    PAGE_SIZE,
    Builder,
    FlushPolicy,
    HugePages,
    InvalidMode,
    InvalidSize,
    MemoryMappedFile,
    MmapMode,
    TouchHint,
)
from tests.unit.mmapio.footprint import unchanged

SIZE = 64 * PAGE_SIZE
Made = Builder[MemoryMappedFile]

ENDS: dict[str, Callable[[Made], MemoryMappedFile]] = {
    "create": lambda builder: builder.create(),
    "open": lambda builder: builder.open(),
    "open_or_create": lambda builder: builder.open_or_create(),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file."""
    made = tmp_path / "file"
    made.write_bytes(b"x" * SIZE)
    return made


def test_without_properties_it_is_what_the_constructors_make(path: Path) -> None:
    """Two sets of defaults drift apart."""
    builder = MemoryMappedFile.builder(path)
    assert isinstance(builder, Builder)
    with builder.open() as built, MemoryMappedFile.open_rw(path) as opened:
        for name in ("mode", "flush_policy", "reserved", "path", "huge_pages"):
            assert getattr(built, name) == getattr(opened, name)
        assert len(built) == len(opened) == SIZE


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_every_property_arrives(path: Path, end: Callable[[Made], MemoryMappedFile]) -> None:
    """One that is dropped on the way is noticed in production."""
    policy = FlushPolicy.every_writes(7)
    builder = MemoryMappedFile.builder(path)
    steps: list[Callable[[], Made]] = [
        lambda: builder.mode(MmapMode.READ_WRITE),
        lambda: builder.size(SIZE),
        lambda: builder.flush_policy(policy),
        lambda: builder.touch_hint(TouchHint.EAGER),
        lambda: builder.huge_pages(),
        lambda: builder.reserve(2 * SIZE),
    ]
    assert all(step() is builder for step in steps)
    with end(builder) as built:
        assert (built.mode, len(built), built.flush_policy) == (MmapMode.READ_WRITE, SIZE, policy)
        assert built.reserved == 2 * SIZE
        assert built.resident() == SIZE
        assert built.huge_pages is not HugePages.NONE


@pytest.mark.parametrize("mode", list(MmapMode))
def test_open_maps_in_the_mode_that_was_set(path: Path, mode: MmapMode) -> None:
    """Reading only where writing was asked for is found out late; the reverse, never."""
    builder = MemoryMappedFile.builder(path).mode(mode).touch_hint(TouchHint.LAZY).huge_pages()
    with builder.open() as built:
        assert built.mode is mode
        assert built[0:3] == b"xxx"


def test_create_gives_the_size(path: Path) -> None:
    """And nothing of what was there."""
    with MemoryMappedFile.builder(path).size(100).create() as built:
        assert bytes(built.as_slice()) == bytes(100)


def test_open_or_create_leaves_what_is_there(path: Path) -> None:
    """The size is for a file that has none."""
    with MemoryMappedFile.builder(path).size(100).open_or_create() as built:
        assert len(built) == SIZE
    with MemoryMappedFile.builder(path.with_name("new")).size(100).open_or_create() as built:
        assert len(built) == 100


def test_one_builder_makes_any_number(path: Path) -> None:
    """It holds wishes, not files."""
    builder = MemoryMappedFile.builder(path).flush_policy(FlushPolicy.NEVER)
    with builder.open() as first, builder.flush_policy(FlushPolicy.MANUAL).open() as second:
        assert (first.flush_policy, second.flush_policy) == (FlushPolicy.NEVER, FlushPolicy.MANUAL)


def test_a_builder_makes_what_it_was_asked_of(path: Path) -> None:
    """A subclass that asks for a builder wants its own kind."""

    class Mine(MemoryMappedFile):
        pass

    with Mine.builder(path).open() as built:
        assert type(built) is Mine


@pytest.mark.parametrize("end", ["create", "open_or_create"])
def test_creating_needs_a_size(tmp_path: Path, end: str) -> None:
    """There is none to assume. The error names the file as text, as every other does."""
    path = tmp_path / "new"
    with unchanged(tmp_path), pytest.raises(InvalidSize, match="call size") as raised:
        ENDS[end](MemoryMappedFile.builder(path))
    assert raised.value.filename == str(path)


@pytest.mark.parametrize("end", ["create", "open_or_create"])
@pytest.mark.parametrize("mode", [MmapMode.READ_ONLY, MmapMode.COPY_ON_WRITE])
def test_creating_needs_to_write(path: Path, end: str, mode: MmapMode) -> None:
    """A file that is created read-only would stay zero for ever; emptying the old one first is worse."""
    with unchanged(path.parent), pytest.raises(InvalidMode, match=mode.value) as raised:
        ENDS[end](MemoryMappedFile.builder(path).size(100).mode(mode))
    assert raised.value.filename == str(path)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda builder: builder.mode("rw"),
        lambda builder: builder.mode(None),
        lambda builder: builder.size(0),
        lambda builder: builder.size(-1),
        lambda builder: builder.size(1.5),
        lambda builder: builder.size("4096"),
        lambda builder: builder.flush_policy("always"),
        lambda builder: builder.flush_policy(None),
        lambda builder: builder.touch_hint("now"),
        lambda builder: builder.reserve(0),
        lambda builder: builder.reserve("1"),
    ],
)
def test_a_wrong_property_is_refused_before_the_file_is_touched(
    path: Path, wrong: Callable[[Made], Made]
) -> None:
    """When it is set, or at the end: but not after the content has gone."""
    with unchanged(path.parent):
        with pytest.raises((TypeError, ValueError)):
            wrong(MemoryMappedFile.builder(path).size(100)).create()
        with pytest.raises((TypeError, ValueError)):
            wrong(MemoryMappedFile.builder(path.with_name("new")).size(100)).create()
