"""The pages below a mapping: advice, prefetching, residency, touching, holes, huge pages."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mmapio import (
    PAGE_SIZE,
    HugePages,
    InvalidMode,
    MappingFault,
    MemoryMappedFile,
    MmapAdvice,
    MmapMode,
    OutOfBounds,
    TouchHint,
)
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapio.processes import in_child
from tests.unit.mmapio.tracing import traced

PAGES = 16
SIZE = PAGES * PAGE_SIZE
CONTENT = os.urandom(SIZE)
HUGE = 2 << 20

OPENERS: dict[MmapMode, Callable[[Path], MemoryMappedFile]] = {
    MmapMode.READ_ONLY: MemoryMappedFile.open_ro,
    MmapMode.READ_WRITE: MemoryMappedFile.open_rw,
    MmapMode.COPY_ON_WRITE: MemoryMappedFile.open_cow,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of 16 pages of noise, on the device."""
    made = tmp_path / "file"
    made.write_bytes(CONTENT)
    with made.open("rb") as file:
        os.fsync(file.fileno())
    return made


@pytest.fixture
def mapped(path: Path) -> Iterator[MemoryMappedFile]:
    """It, for reading and writing."""
    with MemoryMappedFile.open_rw(path) as made:
        yield made


def figures(mapped: MemoryMappedFile) -> dict[str, int]:
    """The kernel's figures of the mapping that stores go through, in bytes by name."""
    found: dict[str, int] = {}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            inside = int(name.partition("-")[0], 16) == mapped.address
        elif inside and rest.endswith("kB"):
            found[name.removesuffix(":")] = int(rest.split()[0]) * 1024
    return found


def drop_from_cache(path: Path) -> None:
    """Have the kernel forget the clean pages of a file that nobody maps."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize("mode", OPENERS, ids=lambda mode: mode.value)
@pytest.mark.parametrize("advice", list(MmapAdvice), ids=lambda advice: advice.name)
def test_no_advice_changes_what_a_mapping_shows(path: Path, mode: MmapMode, advice: MmapAdvice) -> None:
    """DONTNEED drops pages, of a private copy those with its changes too; advice may never lose a byte."""
    expected = bytearray(CONTENT)
    with OPENERS[mode](path) as mapped:
        view = mapped.as_slice()
        if mode is not MmapMode.READ_ONLY:
            for at in range(0, SIZE, 3 * PAGE_SIZE):
                mapped.update_region(at + 7, b"changed")
                expected[at + 7 : at + 14] = b"changed"
        ranges: list[tuple[int, int | None]] = [
            (0, None),
            (0, SIZE),
            (PAGE_SIZE - 1, 2),
            (SIZE - 1, 1),
            (SIZE, 0),
            (5, 0),
        ]
        for offset, length in ranges:
            try:
                mapped.advise(offset, length, advice)
            except InvalidMode:
                refused = (MmapMode.READ_ONLY, MmapAdvice.POPULATE_WRITE)
                assert (mode, advice) in (refused, (MmapMode.COPY_ON_WRITE, MmapAdvice.DONT_NEED))
            assert mapped.read_bytes(0, SIZE) == expected
            assert bytes(view) == expected
    assert path.read_bytes() == (expected if mode is MmapMode.READ_WRITE else CONTENT)


def test_a_page_can_be_made_ready_for_writing_where_there_is_writing(path: Path) -> None:
    """The kernel would answer with a permission; the mode is what the caller can do something about."""
    with (
        MemoryMappedFile.open_ro(path) as mapped,
        pytest.raises(InvalidMode, match="read-only") as raised,
    ):
        mapped.advise(0, None, MmapAdvice.POPULATE_WRITE)
    assert raised.value.filename == str(path)


NUMBERS = {
    "NORMAL": "MADV_NORMAL",
    "RANDOM": "MADV_RANDOM",
    "SEQUENTIAL": "MADV_SEQUENTIAL",
    "WILL_NEED": "MADV_WILLNEED",
    "DONT_NEED": "MADV_DONTNEED",
    "COLD": "MADV_COLD",
    "PAGE_OUT": "MADV_PAGEOUT",
    "POPULATE_READ": "MADV_POPULATE_READ",
    "POPULATE_WRITE": "MADV_POPULATE_WRITE",
    "HUGE_PAGE": "MADV_HUGEPAGE",
    "NO_HUGE_PAGE": "MADV_NOHUGEPAGE",
}


def test_the_kernel_sees_the_advice(path: Path, tmp_path: Path) -> None:
    """Contents tell nothing: advice that does nothing leaves them alone too. Both mappings are told."""
    code = """
from mmapio import MemoryMappedFile, MmapAdvice, PAGE_SIZE
mapped = MemoryMappedFile.open_rw(arguments[0])
for advice in MmapAdvice:
    mapped.advise(PAGE_SIZE + 10, PAGE_SIZE, advice)
view = mapped.as_slice()
mapped.advise(0, None, MmapAdvice.RANDOM)
answer([mapped.address, mapped.region.address])
"""
    lacking = "that advice reaches the kernel"
    (address, _), calls = traced(code, path, events="madvise", trace=tmp_path / "trace", lacking=lacking)
    ours = [call for call in calls if address <= int(call.arguments[0], 16) < address + SIZE]
    span = str(PAGE_SIZE + 10)
    first = [(hex(address + PAGE_SIZE), span, number) for number in NUMBERS.values()]
    assert [call.arguments for call in ours] == [*first, (hex(address), str(SIZE), "MADV_RANDOM")]
    assert {call.result for call in ours} == {"0"}
    other = [call for call in calls if call.arguments[1:] == (str(SIZE), "MADV_RANDOM") and call not in ours]
    assert len(other) == 1, "the mapping that views point into was not told"
    assert NUMBERS.keys() == MmapAdvice.__members__.keys()


@pytest.mark.parametrize("wrong", [-1, 11, 99, "RANDOM", None, 1.5], ids=repr)
def test_advice_that_is_none_is_refused(mapped: MemoryMappedFile, wrong: Any) -> None:
    """Some numbers of the system's would throw pages away."""
    with pytest.raises((ValueError, TypeError)):
        mapped.advise(0, None, wrong)


def test_ranges_are_checked(mapped: MemoryMappedFile) -> None:
    """Beyond the file lies the rest of the reservation, and beyond that somebody else's memory."""
    uses: list[Callable[[int, int], object]] = [
        lambda offset, length: mapped.advise(offset, length, MmapAdvice.RANDOM),
        mapped.prefetch_range,
        mapped.touch_pages_range,
        lambda offset, length: mapped.touch_pages_range(offset, length, write=True),
        mapped.resident,
        mapped.punch_hole,
        mapped.lock,
        mapped.unlock,
    ]
    for use in uses:
        for where in ((-1, 1), (0, -1), (SIZE, 1), (0, SIZE + 1), (SIZE + 1, 0), (2**63, 1), (1, 2**64 - 1)):
            with pytest.raises(OutOfBounds, match=f"{SIZE} bytes"):
                use(*where)


def test_prefetching_asks_the_kernel(path: Path, tmp_path: Path) -> None:
    """Nobody sees the difference but a watch and a clock."""
    code = """
from mmapio import MemoryMappedFile, PAGE_SIZE
mapped = MemoryMappedFile.open_ro(arguments[0])
mapped.prefetch_range(10, PAGE_SIZE)
mapped.prefetch_range(10, 0)
answer(mapped.fileno())
"""
    lacking = "that prefetching reaches the kernel"
    number, calls = traced(code, path, events="fadvise64", trace=tmp_path / "trace", lacking=lacking)
    ours = [call for call in calls if call.arguments[0] == str(number)]
    assert [call.arguments[1:] for call in ours] == [("10", str(PAGE_SIZE), "POSIX_FADV_WILLNEED")]


def test_residency_is_what_the_kernel_says(path: Path) -> None:
    """In whole pages; touched ones are in, and what was given back is out."""
    drop_from_cache(path)
    with MemoryMappedFile.open_rw(path) as mapped:
        # Random: a neighbour that is read ahead would be counted.
        mapped.advise(0, None, MmapAdvice.RANDOM)
        assert mapped.resident() == 0
        mapped.read_bytes(3 * PAGE_SIZE, 1)
        assert mapped.resident() == mapped.resident(3 * PAGE_SIZE + 5, 1) == PAGE_SIZE
        assert mapped.resident(2 * PAGE_SIZE, PAGE_SIZE) == mapped.resident(3 * PAGE_SIZE, 0) == 0
        mapped.touch_pages_range(5 * PAGE_SIZE - 1, 2)
        assert mapped.resident() == 3 * PAGE_SIZE
        assert mapped.resident(4 * PAGE_SIZE, None) == 2 * PAGE_SIZE
        mapped.touch_pages()
        assert mapped.resident() == SIZE
    drop_from_cache(path)
    with MemoryMappedFile.open_rw(path) as mapped:
        assert mapped.resident() == 0


def test_paging_out_takes_pages_out_of_memory(path: Path) -> None:
    """The one piece of advice whose effect can be seen at once."""

    def work() -> tuple[int, int]:
        # On one processor: the kernel finds no pages that another has brought in a moment ago.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        drop_from_cache(path)
        with MemoryMappedFile.open_ro(path) as mapped:
            mapped.read_bytes(0, SIZE)
            before = mapped.resident()
            mapped.advise(0, None, MmapAdvice.PAGE_OUT)
            return before, mapped.resident()

    assert in_child(work) == (SIZE, 0)


@pytest.mark.parametrize("mode", OPENERS, ids=lambda mode: mode.value)
def test_touching_brings_pages_in_and_dirties_nothing(path: Path, mode: MmapMode) -> None:
    """In the crate it stores a byte to each page, and the next flush writes the whole file."""
    drop_from_cache(path)
    with OPENERS[mode](path) as mapped, unchanged(path.parent):
        mapped.touch_pages()
        found = figures(mapped)
        assert found["Rss"] == SIZE
        assert found["Shared_Dirty"] == found["Private_Dirty"] == found["Anonymous"] == 0
        assert (mapped.pending_bytes, mapped.needs_flush()) == (0, False)
        mapped.flush()


def test_touching_for_writing_makes_pages_writable(mapped: MemoryMappedFile, path: Path) -> None:
    """The kernel takes them for written, so they are owed to the device; their content is what it was."""
    assert figures(mapped)["Rss"] == 0
    mapped.touch_pages_range(PAGE_SIZE, 2 * PAGE_SIZE, write=True)
    found = figures(mapped)
    # The kernel may take the neighbours of one folio along.
    assert 2 * PAGE_SIZE <= found["Rss"] == found["Shared_Dirty"] + found["Private_Dirty"]
    assert mapped.needs_flush()
    assert mapped.pending_bytes == 0
    mapped.flush()
    mapped.touch_pages(write=True)
    assert figures(mapped)["Rss"] == SIZE
    assert path.read_bytes() == CONTENT


def test_touching_a_private_copy_for_writing_makes_it_whole(path: Path) -> None:
    """From then on nothing that others write shows in it."""
    with MemoryMappedFile.open_cow(path) as private, MemoryMappedFile.open_rw(path) as other:
        private.touch_pages(write=True)
        assert figures(private)["Anonymous"] == SIZE
        other.update_region(0, b"theirs")
        assert private.read_bytes(0, SIZE) == CONTENT
        assert not private.needs_flush()


def test_touching_needs_the_mode_and_the_pages(path: Path) -> None:
    """Not silently less than was asked for."""
    with MemoryMappedFile.open_ro(path) as mapped, pytest.raises(InvalidMode):
        mapped.touch_pages(write=True)
    with MemoryMappedFile.open_rw(path) as mapped:
        os.truncate(path, PAGE_SIZE)
        for write in (False, True):
            with pytest.raises(MappingFault, match=f"{SIZE} bytes at offset 0"):
                mapped.touch_pages_range(0, SIZE, write=write)
            # Marked, as by every other fault, until it is mapped anew; the length is then the file's.
            with pytest.raises(MappingFault):
                mapped.touch_pages_range(0, PAGE_SIZE)
            os.truncate(path, SIZE)
            mapped.refresh()
            mapped.touch_pages(write=write)
            os.truncate(path, PAGE_SIZE)


@pytest.mark.parametrize(("hint", "resident"), [(TouchHint.NEVER, 0), (TouchHint.EAGER, SIZE)], ids=str)
def test_a_hint_says_when_pages_come_in(path: Path, hint: TouchHint, resident: int) -> None:
    """Before the handle is there, or at their first use; LAZY is advice, and the kernel may ignore it."""
    for opener in (MemoryMappedFile.open_ro, MemoryMappedFile.open_rw, MemoryMappedFile.open_cow):
        drop_from_cache(path)
        with opener(path, touch_hint=hint) as mapped:
            assert mapped.resident() == figures(mapped)["Rss"] == resident
        with opener(path, touch_hint=TouchHint.LAZY) as mapped:
            assert mapped.read_bytes(0, SIZE) == CONTENT


def test_a_hole_reads_as_zeros_and_has_no_blocks(mapped: MemoryMappedFile, path: Path) -> None:
    """Whole blocks go back to the file system, the rest of the range is overwritten, and nothing else."""
    before = path.stat().st_blocks
    view = mapped.as_slice()
    mapped.flush()
    mapped.punch_hole(PAGE_SIZE + 100, 4 * PAGE_SIZE)
    expected = CONTENT[: PAGE_SIZE + 100] + bytes(4 * PAGE_SIZE) + CONTENT[5 * PAGE_SIZE + 100 :]
    assert bytes(view) == mapped.read_bytes(0, SIZE) == path.read_bytes() == expected
    assert 0 < (before - path.stat().st_blocks) * 512 < 4 * PAGE_SIZE
    assert len(mapped) == path.stat().st_size == SIZE
    assert mapped.pending_bytes == 4 * PAGE_SIZE
    mapped.punch_hole(10, 0)
    mapped.punch_hole(SIZE - 1, 1)
    assert mapped.read_bytes(SIZE - 2, 2) == CONTENT[-2:-1] + b"\0"
    mapped.update_region(2 * PAGE_SIZE, b"again")
    assert mapped.read_bytes(2 * PAGE_SIZE, 6) == b"again\0"


def test_a_hole_needs_a_file_that_may_be_written(path: Path) -> None:
    """Refused before anything is lost."""
    for opener in (MemoryMappedFile.open_ro, MemoryMappedFile.open_cow):
        with opener(path) as mapped, unchanged(path.parent), pytest.raises(InvalidMode):
            mapped.punch_hole(0, PAGE_SIZE)
    with MemoryMappedFile.open_rw(path) as mapped:
        assert in_child(lambda: _kind_of(lambda: mapped.punch_hole(0, PAGE_SIZE))) == "Closed"
    assert path.read_bytes() == CONTENT


def _kind_of(work: Callable[[], object]) -> str:
    try:
        work()
    except Exception as error:
        return type(error).__name__
    return ""


@contextmanager
def mounted(kind: str, options: str, place: Path) -> Iterator[Path]:
    """A file system of a kind, mounted; the test is skipped where that cannot be done."""
    place.mkdir()
    command = ["mount", "-t", kind, "-o", options, kind, str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False) if os.geteuid() == 0 else None
    if done is None or done.returncode != 0:
        pytest.skip(f"cannot mount a {kind}: NOT TESTED that the tier of huge pages is told on one")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_the_tier_of_huge_pages_is_what_came_of_the_wish(path: Path, tmp_path: Path) -> None:
    """Not the wish itself: none without one, advised while there are none yet, mapped once there are."""
    with MemoryMappedFile.open_rw(path) as mapped:
        tiers = [mapped.huge_pages]
        for advice in (MmapAdvice.HUGE_PAGE, MmapAdvice.NO_HUGE_PAGE):
            mapped.advise(0, None, advice)
            tiers.append(mapped.huge_pages)
        assert tiers == [HugePages.NONE, HugePages.ADVISED, HugePages.NONE]
    with (
        mounted("tmpfs", "size=16m,huge=advise", tmp_path / "shm") as place,
        MemoryMappedFile.create_rw(place / "file", 2 * HUGE, sparse=True, huge_pages=True) as mapped,
    ):
        tiers = [mapped.huge_pages]
        mapped.touch_pages(write=True)
        assert [*tiers, mapped.huge_pages] == [HugePages.ADVISED, HugePages.MAPPED]
        assert mapped.address % HUGE == 0


def test_the_wish_for_huge_pages_outlives_the_reservation(path: Path) -> None:
    """Growth that maps anew must ask anew, or a file is slow from one size on and nobody knows why."""
    with MemoryMappedFile.open_rw(path, reserve=SIZE, huge_pages=True) as mapped:
        tiers = [mapped.huge_pages]
        mapped.resize(100 * SIZE)
        assert HugePages.NONE not in (*tiers, mapped.huge_pages)


def test_a_file_of_huge_pages_opens_with_what_there_is(tmp_path: Path) -> None:
    """There the reservation itself takes pages; the default must shrink to the file rather than fail."""
    if int(Path("/proc/sys/vm/nr_hugepages").read_text()) < 2:
        pytest.skip("no huge pages set aside (vm.nr_hugepages): NOT TESTED that files on hugetlbfs open")
    with (
        mounted("hugetlbfs", "size=4m", tmp_path / "huge") as place,
        MemoryMappedFile.create_rw(place / "file", HUGE) as mapped,
    ):
        assert mapped.huge_pages is HugePages.HUGETLB
        mapped.update_region(0, b"x")
        assert bytes(mapped.as_slice(0, 2)) == b"x\0"
