"""What comes after a fault, and faults of other origin: full disks, failing devices, buffers of others."""

from __future__ import annotations

import mmap
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmapio import PAGE_SIZE, FlushPolicy, MemoryMappedFile, MmapAdvice
from tests.unit.mmapio.processes import in_child, outcome
from tests.unit.mmapio.volume import fill, small_volume  # noqa: F401

PAGES = 128
SIZE = PAGES * PAGE_SIZE
KEPT = PAGE_SIZE
FAR = 100 * PAGE_SIZE

MODES: dict[str, Callable[[Path], MemoryMappedFile]] = {
    "read-only": MemoryMappedFile.open_ro,
    "read-write": MemoryMappedFile.open_rw,
    "copy-on-write": MemoryMappedFile.open_cow,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of `SIZE` bytes, all of them x."""
    place = tmp_path / "file"
    place.write_bytes(b"x" * SIZE)
    return place


# After a fault.


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [0, 1, KEPT, SIZE - 1, SIZE, 3 * SIZE])
def test_refresh_maps_what_is_there_now(path: Path, mode: str, size: int) -> None:
    """Without a way back one careless tool costs a process its handle. Old views must survive the way."""

    def work() -> tuple[bool, bytes, bytes]:
        mapped = MODES[mode](path)
        view = memoryview(mapped.as_slice())
        os.truncate(path, 0)
        assert view[FAR] == 0
        assert outcome(lambda: mapped[0])[0] == "MappingFault"
        path.write_bytes(b"y" * size)
        assert mapped.refresh() == len(mapped) == size
        assert mapped.read_bytes(0, size) == bytes(mapped.as_slice()) == b"y" * size
        if mode != "read-only" and size:
            mapped.update_region(size - 1, b"z")
            mapped.atomic_u64(0).fetch_add(0) if size > 8 else None
            assert mapped[-1] == ord("z")
        # Of the old view, whatever was not covered yet is the file's; the rest is zeros for good.
        return view[FAR:] == bytes(SIZE - FAR), path.read_bytes()[-1:], bytes(view[SIZE - 1 :])

    zeros, last, end = in_child(work)
    assert zeros
    assert end == b"\0"
    assert last == (b"" if size == 0 else b"z" if mode == "read-write" else b"y")


def test_a_handle_heals_again_and_again(path: Path) -> None:
    """A slot, a mapping or a signal mask lost each time would show after some hundred."""

    def work() -> tuple[int, set[int], set[int]]:
        before = set(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, [])))
        maps = len(Path("/proc/self/maps").read_text().splitlines())
        mapped = MemoryMappedFile.open_rw(path)
        for number in range(500):
            os.truncate(path, KEPT)
            assert outcome(lambda: mapped.read_bytes(FAR, 8))[0] == "MappingFault"
            os.truncate(path, SIZE)
            mapped.refresh()
            assert memoryview(mapped.as_slice())[FAR] == 0
            mapped.update_region(FAR, b"%d" % number)
            assert mapped[FAR : FAR + 8].rstrip(b"\0") == b"%d" % number
        more = len(Path("/proc/self/maps").read_text().splitlines()) - maps
        return more, before, set(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, [])))

    more, before, after = in_child(work)
    assert more <= 16
    assert before == after


def test_a_view_from_before_a_fault_is_a_source_of_zeros_afterwards(path: Path) -> None:
    """What is written must be what the view shows, and not what the file now holds in its place."""

    def work() -> tuple[list[tuple[str, str]], bytes]:
        mapped = MemoryMappedFile.open_rw(path)
        view = memoryview(mapped.as_slice())
        os.truncate(path, 0)
        assert view[0] == 0
        path.write_bytes(b"y" * 2 * KEPT)
        mapped.refresh()
        ends = [
            outcome(lambda: mapped.update_region(0, view[:8])),
            outcome(lambda: mapped.update_region(8, view[FAR : FAR + 8])),
            outcome(lambda: mapped.__setitem__(slice(16, 24), view[SIZE - 8 :])),
        ]
        return ends, mapped.read_bytes(0, 25) if not any(kind for kind, _ in ends) else b""

    ends, found = in_child(work)
    assert ends == [("", "")] * 3
    assert found == bytes(24) + b"y"


def test_refresh_keeps_what_a_private_copy_was_told(path: Path) -> None:
    """Nobody cut the file: it grew, and that must cost no private write."""
    with MemoryMappedFile.open_cow(path) as mapped:
        mapped.update_region(0, b"mine")
        with path.open("ab") as file:
            file.write(b"x" * SIZE)
        mapped.refresh()
        assert mapped[0:4] == b"mine"


def test_closing_after_a_fault_closes_and_says_what_was_not_flushed(path: Path) -> None:
    """A handle that does not close keeps its descriptor for ever; one that closes in silence loses writes."""

    def work() -> tuple[str, bool, str, bool]:
        dirty, clean = MemoryMappedFile.open_rw(path), MemoryMappedFile.open_rw(path)
        dirty.update_region(0, b"y")
        os.truncate(path, KEPT)
        outcome(lambda: dirty[FAR])
        outcome(lambda: clean[FAR])
        return outcome(dirty.close)[0], dirty.closed, outcome(clean.close)[0], clean.closed

    assert in_child(work) == ("MappingFault", True, "", True)


def test_a_background_flush_of_a_marked_handle_loses_nothing_in_silence(path: Path) -> None:
    """The flusher meets the mark too: the user's next call must still raise."""

    def work() -> str:
        mapped = MemoryMappedFile.open_rw(path, flush_policy=FlushPolicy.every_millis(1))
        mapped.update_region(0, b"y")
        os.truncate(path, KEPT)
        assert outcome(lambda: mapped[FAR])[0] == "MappingFault"
        outcome(mapped.flush)
        return outcome(lambda: mapped.update_region(0, b"y"))[0]

    assert in_child(work) == "MappingFault"


# Buffers of others.


def cut_stdlib_map(place: Path) -> mmap.mmap:
    """A mapping of the standard library's whose file is no longer there."""
    place.write_bytes(b"s" * SIZE)
    with place.open("r+b") as file:
        lost = mmap.mmap(file.fileno(), SIZE)
    os.truncate(place, 0)
    return lost


@pytest.mark.parametrize("size", [8, SIZE])
def test_a_source_that_is_not_ours_may_fault_too(path: Path, size: int) -> None:
    """The guard is around the copy, and so around both of its ends; our mapping is as whole as before."""

    def work() -> tuple[list[str], bytes]:
        mapped = MemoryMappedFile.open_rw(path)
        writable = mapped.as_slice_mut(0, size)
        source = memoryview(cut_stdlib_map(path.with_name("other")))[:size]
        ends = [
            outcome(lambda: mapped.update_region(0, source))[0],
            outcome(lambda: mapped.__setitem__(slice(0, size), source))[0],
            outcome(lambda: writable.__setitem__(slice(0, size), source))[0],
            outcome(lambda: mapped.read_into(0, source))[0],
        ]
        return ends, mapped.read_bytes(0, 8)

    ends, found = in_child(work)
    assert ends == ["MappingFault"] * 4
    assert found == b"x" * 8


def test_a_source_that_is_another_handles_marks_that_one(path: Path) -> None:
    """Who reads the other handle next must learn that its file was cut."""
    other = path.with_name("other")

    def work() -> list[str]:
        other.write_bytes(b"s" * SIZE)
        mapped, lost = MemoryMappedFile.open_rw(path), MemoryMappedFile.open_rw(other)
        view = lost.as_slice()
        os.truncate(other, 0)
        return [
            outcome(lambda: mapped.update_region(0, view))[0],
            outcome(lambda: lost[0])[0],
            outcome(lambda: mapped[0])[0],
        ]

    assert in_child(work) == ["MappingFault", "MappingFault", ""]


# Where pages are missing for other reasons.


def test_a_store_that_meets_a_full_disk_is_an_exception(small_volume: Path) -> None:  # noqa: F811
    """In a sparse file the disk is only asked at the first store to a page: by a signal."""
    path = small_volume / "sparse"
    spare = 4 * PAGE_SIZE

    def work() -> dict[str, tuple[str, int]]:
        mapped = MemoryMappedFile.create_rw(path, 256 * PAGE_SIZE, sparse=True)
        ballast = fill(small_volume, leaving=spare)
        found = {}
        stores: dict[str, Callable[[int], object]] = {
            "update_region": lambda at: mapped.update_region(at, b"data"),
            "assignment": lambda at: mapped.__setitem__(slice(at, at + 4), b"data"),
            "a word": lambda at: mapped.atomic_u32(at).store(int.from_bytes(b"data", "little")),
            "a view": lambda at: mapped.as_slice_mut(at, 4).__setitem__(slice(0, 4), b"data"),
        }
        for round_, (name, store) in enumerate(stores.items()):
            acknowledged = []
            kind = ""
            for at in range(64 * round_ * PAGE_SIZE, 64 * (round_ + 1) * PAGE_SIZE, PAGE_SIZE):
                kind = outcome(lambda at=at, store=store: store(at))[0]  # type: ignore[misc]
                if kind:
                    break
                acknowledged.append(at)
            assert kind == "MappingFault", name
            assert outcome(lambda: mapped[0])[0] == "MappingFault"
            with path.open("rb") as file:
                assert all(os.pread(file.fileno(), 4, at) == b"data" for at in acknowledged)
            # After space was made, the same store succeeds.
            os.truncate(ballast, max(ballast.stat().st_size - 16 * PAGE_SIZE, 0))
            mapped.refresh()
            store(at)
            assert mapped[at : at + 4] == b"data"
            with ballast.open("ab") as file:
                free = os.statvfs(small_volume).f_bavail * os.statvfs(small_volume).f_frsize - spare
                os.posix_fallocate(file.fileno(), ballast.stat().st_size, free)
            found[name] = (kind, len(acknowledged))
        return found

    found = in_child(work)
    assert {kind for kind, _ in found.values()} == {"MappingFault"}
    assert all(count >= 1 for _, count in found.values())


def test_prefaulting_for_writing_reports_a_full_disk(small_volume: Path) -> None:  # noqa: F811
    """It is there to find out before the stores do."""

    def work() -> str:
        mapped = MemoryMappedFile.create_rw(small_volume / "sparse", 256 * PAGE_SIZE, sparse=True)
        fill(small_volume, leaving=4 * PAGE_SIZE)
        return outcome(lambda: mapped.touch_pages(write=True))[0]

    assert in_child(work) == "MappingFault"


@pytest.fixture
def failing_volume(tmp_path: Path) -> Iterator[Path]:
    """A file of which nothing after the first 170 KiB can be read; skips where none can be made.

    The file system checks its own metadata: in an image of ext4 a byte is flipped in the second of the blocks
    that say where the file's content is.
    """
    image, place = tmp_path / "image", tmp_path / "volume"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("not root: NOT TESTED what an unreadable device does")
    with image.open("wb") as file:
        file.truncate(16 << 20)

    def run(*command: str) -> None:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip(f"no {command[0]}: NOT TESTED what an unreadable device does")
        if done.returncode:
            pytest.skip(f"{command[0]}: {done.stderr.strip()}: NOT TESTED what an unreadable device does")

    run("mkfs.ext4", "-q", "-b", "1024", "-O", "metadata_csum,^has_journal", str(image))
    run("mount", "-o", "loop", str(image), str(place))
    try:
        with (place / "file").open("wb") as file:
            # Every other KiB, so that each is an extent of its own; 84 of them fit into one block.
            for at in range(0, 256 << 10, 2048):
                os.pwrite(file.fileno(), b"x" * 1024, at)
            file.truncate(256 << 10)
            os.fsync(file.fileno())
    finally:
        subprocess.run(["umount", str(place)], check=True)
    content = bytearray(image.read_bytes())
    leaves = [at for at in range(0, len(content), 1024) if content[at : at + 2] == b"\x0a\xf3"]
    by_first = {int.from_bytes(content[at + 12 : at + 16], "little"): at for at in leaves}
    if len(by_first) != 2:
        pytest.skip(f"{len(by_first)} blocks of extents, not 2: NOT TESTED what an unreadable device does")
    content[by_first[max(by_first)] + 20] ^= 0xFF
    image.write_bytes(content)
    run("mount", "-o", "loop,errors=continue", str(image), str(place))
    try:
        yield place / "file"
    finally:
        # Lazily: a failed test may still hold a handle.
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("mode", MODES)
def test_a_read_error_is_an_exception_and_never_zeros_that_pass(failing_volume: Path, mode: str) -> None:
    """What the device cannot read must not look as if it had never been written."""

    def work() -> tuple[bytes, list[str], bytes, str]:
        mapped = MODES[mode](failing_volume)
        start = mapped.read_bytes(0, 4)
        calls: list[Callable[[], object]] = [
            lambda: mapped.read_bytes(200 << 10, 4),
            lambda: mapped.atomic_u32(200 << 10).load(),
            lambda: bytes(mapped.as_slice(200 << 10, 4)),
            lambda: mapped.update_region(200 << 10, b"data") if mode == "read-write" else mapped[200 << 10],
        ]
        ends = []
        for call in calls:
            ends.append(outcome(call)[0])
            mapped.refresh()
        foreign = bytes(memoryview(mapped.as_slice())[200 << 10 :][:4])
        return start, ends, foreign, outcome(lambda: mapped[0])[0]

    start, ends, foreign, checked = in_child(work)
    assert start == b"xxxx"
    assert ends == ["MappingFault"] * 4
    assert foreign == bytes(4)
    assert checked == "MappingFault"


@pytest.mark.parametrize("mode", MODES)
def test_a_cut_through_huge_pages(tmp_path: Path, mode: str) -> None:
    """A mapping advised to use huge pages is split in the middle of one."""
    path = tmp_path / "file"
    size, cut = 8 << 20, (3 << 20) + PAGE_SIZE

    def work() -> tuple[bytes, list[str]]:
        path.write_bytes(b"x" * size)
        mapped = MODES[mode](path)
        mapped.advise(0, None, MmapAdvice.HUGE_PAGE)
        mapped.touch_pages()
        view = mapped.as_slice()
        os.truncate(path, cut)
        edge = bytes(memoryview(view)[cut - 4 : cut + 4])
        ends = [outcome(lambda: mapped[0])[0], str(mapped.refresh())]
        os.truncate(path, PAGE_SIZE)
        return edge, [*ends, outcome(lambda: mapped.read_bytes(cut - 4, 4))[0], outcome(lambda: mapped[0])[0]]

    edge, ends = in_child(work)
    assert edge == b"xxxx" + bytes(4)
    assert ends == ["MappingFault", str(cut), "MappingFault", "MappingFault"]


# Limits and numbers.


@pytest.mark.parametrize("mode", MODES)
def test_a_fault_below_a_limit_of_address_space(path: Path, mode: str) -> None:
    """Zero pages are mapped in place of others: that must take no address space that is not ours already."""

    def work() -> tuple[int, int, str]:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE_SIZE
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
        mapped = MODES[mode](path)
        view = memoryview(mapped.as_slice())
        reserved = mapped.reserved
        # Not a page is left.
        used = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE_SIZE
        resource.setrlimit(resource.RLIMIT_AS, (used, resource.RLIM_INFINITY))
        os.truncate(path, KEPT)
        return view[FAR], reserved, outcome(lambda: mapped[0])[0]

    zero, reserved, checked = in_child(work)
    assert (zero, checked) == (0, "MappingFault")
    assert reserved < 64 << 20


def test_our_own_calls_are_guarded_without_room_for_a_second_mapping(tmp_path: Path) -> None:
    """Views then point into the writable mapping, where no zeros may be put: only we are safe there."""
    path = tmp_path / "file"

    def work() -> list[str]:
        path.write_bytes(b"x" * (16 << 20))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE_SIZE
        resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20), resource.RLIM_INFINITY))
        mapped = MemoryMappedFile.open_rw(path)
        view = mapped.as_slice()
        pieces = mapped.chunks_owned(PAGE_SIZE)
        os.truncate(path, 0)
        calls: list[Callable[[], object]] = [
            lambda: view[0],
            lambda: bytes(view[:8]),
            lambda: view[:8] == b"x" * 8,
            lambda: next(pieces),
        ]
        return [outcome(call)[0] for call in calls]

    assert set(in_child(work)) == {"MappingFault"}


def test_faults_with_two_thousand_mappings(path: Path) -> None:
    """The table grows in blocks, and the handler looks through all; a slot used again begins unmarked."""
    count = 2000
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < count + 100:
        pytest.skip(f"fewer than {count} files may be open: NOT TESTED that the table of mappings grows")

    def work() -> list[list[str]]:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        lost = path.with_name("lost")
        found = []
        for _ in range(2):
            handles = []
            for number in range(count):
                chosen = lost if number % 100 == 99 else path
                chosen.write_bytes(b"x" * SIZE) if number == 99 else None
                handles.append(MemoryMappedFile.open_ro(chosen, reserve=SIZE))
            views = [memoryview(mapped.as_slice()) for mapped in handles]
            os.truncate(lost, 0)
            assert [view[FAR] for view in views] == [0 if n % 100 == 99 else ord("x") for n in range(count)]
            found.append([outcome(lambda mapped=mapped: mapped[0])[0] for mapped in handles])  # type: ignore[misc]
            del views
            for mapped in handles:
                mapped.close()
        return found

    expected = ["MappingFault" if number % 100 == 99 else "" for number in range(count)]
    assert in_child(work) == [expected, expected]


def test_a_slot_used_again_is_not_marked(memory_path: Path) -> None:
    """The mark belongs to a mapping, and goes with it."""
    # Hundreds of times at once: a disk may take longer to have the room again than to give it back.
    path = memory_path / "file"
    path.write_bytes(b"x" * SIZE)

    def work() -> list[tuple[str, str]]:
        found = []
        for _ in range(300):
            lost = MemoryMappedFile.open_ro(path)
            os.truncate(path, 0)
            assert outcome(lambda: lost[FAR])[0] == "MappingFault"  # noqa: B023
            lost.close()
            path.write_bytes(b"x" * SIZE)
            with MemoryMappedFile.open_rw(path) as fresh:
                found.append((outcome(lambda: fresh[FAR])[0], outcome(lambda: fresh.as_slice()[FAR])[0]))
        return found

    assert set(in_child(work)) == {("", "")}
