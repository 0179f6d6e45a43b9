"""A page that is not there is an exception, for whichever call meets it in whichever mode, and for the next.

Everything that may end by a signal happens in a forked child, which then ends alone.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import mmap
import os
import socket
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from mmapio import (
    PAGE_SIZE,
    AtomicU64,
    MappedSliceMut,
    MemoryMappedFile,
    Segment,
    SegmentMut,
    SharedMutex,
    update_region,
)
from tests.unit.mmapio.processes import in_child, outcome

PAGES = 128
#: Twice what a copy is from on that lets other threads run.
SIZE = PAGES * PAGE_SIZE
#: What is left of the file when it is cut.
KEPT = PAGE_SIZE
#: A word, a byte, a view beyond that; 8 bytes from here on are `WORD`.
FAR = 100 * PAGE_SIZE
#: Zeros, where a mutex can be.
MUTEX = 120 * PAGE_SIZE
WORD = b"\x01\x02\x03\x04\x05\x06\x07\x08"

Use = Callable[[], object]
Prepare = Callable[[MemoryMappedFile], Use]

MODES: dict[str, Callable[[Path], MemoryMappedFile]] = {
    "read-only": MemoryMappedFile.open_ro,
    "read-write": MemoryMappedFile.open_rw,
    "copy-on-write": MemoryMappedFile.open_cow,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that is `WORD` all over, but for a page of zeros."""
    place = tmp_path / "file"
    make(place)
    return place


def make(place: Path) -> None:
    """Write the file that `path` gives."""
    content = bytearray(WORD * (SIZE // 8))
    content[MUTEX : MUTEX + PAGE_SIZE] = bytes(PAGE_SIZE)
    place.write_bytes(content)


def view_of(mapped: MemoryMappedFile) -> Callable[[Callable[..., object]], Use]:
    """Makes the use of a view that is taken now."""
    view = mapped.as_slice(FAR, 8)
    return lambda use: lambda: use(view)


def atomics_of(mapped: MemoryMappedFile, use: Callable[[AtomicU64], object]) -> Use:
    """The use of a word, alone or in a slice, of each width."""
    words = [mapped.atomic_u32(FAR), mapped.atomic_u64(FAR), mapped.atomic_u32_slice(FAR - 4, 2)[1]]
    chosen = itertools.cycle(words)
    return lambda: use(next(chosen))  # type: ignore[arg-type]


def word(use: Callable[[AtomicU64], object]) -> Prepare:
    """An operation on a word, as an entry of a table."""
    return lambda mapped: atomics_of(mapped, use)


def mutable(use: Callable[[MappedSliceMut], object]) -> Prepare:
    """An operation on a writable view, as an entry of a table."""

    def prepare(mapped: MemoryMappedFile) -> Use:
        view = mapped.as_slice_mut(FAR, 8)
        return lambda: use(view)

    return prepare


#: What reads in every mode, prepared before the cut and done after it.
READS: dict[str, Prepare] = {
    "read_bytes": lambda m: lambda: m.read_bytes(FAR, 8),
    "read_bytes, without the GIL": lambda m: lambda: m.read_bytes(0, SIZE),
    "read_into": lambda m: lambda: m.read_into(FAR, bytearray(8)),
    "read_into, without the GIL": lambda m: lambda: m.read_into(0, bytearray(SIZE)),
    "an index": lambda m: lambda: m[FAR],
    "a negative index": lambda m: lambda: m[-1],
    "a slice": lambda m: lambda: m[FAR : FAR + 8],
    "a slice with a step": lambda m: lambda: m[:: PAGE_SIZE + 1],
    "a new view": lambda m: lambda: bytes(m.as_slice(FAR, 8)),
    "bytes of a view": lambda m: view_of(m)(bytes),
    "tobytes of a view": lambda m: view_of(m)(lambda v: v.tobytes()),
    "an index of a view": lambda m: view_of(m)(lambda v: v[0]),
    "a slice of a view": lambda m: view_of(m)(lambda v: bytes(v[1:3])),
    "a view == bytes": lambda m: view_of(m)(lambda v: v == WORD),
    "a view != bytes": lambda m: view_of(m)(lambda v: v != WORD),
    "a view == a view": lambda m: view_of(m)(lambda v: v == m.as_slice(FAR, 8)),
    "chunks": lambda m: lambda: [bytes(piece) for piece in m.chunks(1000)],
    "pages": lambda m: lambda: [bytes(piece) for piece in m.pages()],
    "chunks_owned": lambda m: lambda: list(m.chunks_owned(1000)),
    "pages_owned": lambda m: lambda: list(m.pages_owned()),
    "chunks begun before": lambda m: (lambda i: lambda: [next(i), *map(bytes, i)])(m.chunks(SIZE // 4)),
    "a reader": lambda m: m.reader().read,
    "readinto of a reader": lambda m: (lambda r: lambda: r.readinto(bytearray(SIZE)))(m.reader()),
    "a buffered reader": lambda m: io.BufferedReader(m.reader()).read,
    "a segment": lambda m: (lambda s: lambda: bytes(s.as_slice()))(Segment(m, FAR, 8)),
    "touch_pages": lambda m: m.touch_pages,
    "touch_pages_range": lambda m: lambda: m.touch_pages_range(FAR, 8),
    # What serves where the kernel cannot populate by itself.
    "touching by hand": lambda m: lambda: m.region.touch(0, SIZE),
    "load": word(lambda a: a.load()),
    "wait": word(lambda a: a.wait(0, timeout=0)),
    "notify": word(lambda a: a.notify()),
}

#: What writes, in the modes that can.
WRITES: dict[str, Prepare] = {
    "update_region": lambda m: lambda: m.update_region(FAR, WORD),
    "update_region, without the GIL": lambda m: lambda: m.update_region(0, bytes(SIZE)),
    "update_region by path": lambda m: lambda: update_region(m, FAR, WORD),
    "update_region from a view": lambda m: (lambda v: lambda: m.update_region(0, v))(m.as_slice(FAR, 8)),
    "assignment to an index": lambda m: lambda: m.__setitem__(FAR, 1),
    "assignment to a slice": lambda m: lambda: m.__setitem__(slice(FAR, FAR + 8), WORD),
    "store": word(lambda a: a.store(1)),
    "swap": word(lambda a: a.swap(1)),
    "compare_exchange": word(lambda a: a.compare_exchange(0, 1)),
    "fetch_add": word(lambda a: a.fetch_add(1)),
    "fetch_sub": word(lambda a: a.fetch_sub(1)),
    "fetch_and": word(lambda a: a.fetch_and(1)),
    "fetch_or": word(lambda a: a.fetch_or(1)),
    "fetch_xor": word(lambda a: a.fetch_xor(1)),
    "fetch_min": word(lambda a: a.fetch_min(1)),
    "fetch_max": word(lambda a: a.fetch_max(1)),
    "an index of a writable view": mutable(lambda v: v[0]),
    "a slice of a writable view": mutable(lambda v: v[0:2]),
    "bytes of a writable view": mutable(lambda v: v.tobytes()),
    "a writable view == bytes": mutable(lambda v: v == WORD),
    "assignment to an index of a view": mutable(lambda v: v.__setitem__(0, 1)),
    "assignment to a slice of a view": mutable(lambda v: v.__setitem__(slice(0, 2), b"xx")),
    "chunks_mut": lambda m: lambda: m.chunks_mut(FAR).for_each_mut(lambda at, v: v.__setitem__(0, 1)),
    "a segment's write": lambda m: (lambda s: lambda: s.write(WORD))(SegmentMut(m, FAR, 8)),
    "touch_pages for writing": lambda m: lambda: m.touch_pages(write=True),
    "touching by hand for writing": lambda m: lambda: m.region.touch_for_writing(0, SIZE),
}


def held(mapped: MemoryMappedFile) -> SharedMutex:
    """A mutex that this thread holds."""
    mutex = SharedMutex(mapped, MUTEX)
    mutex.acquire()
    return mutex


#: What needs a mutex, which only a read-write mapping can have.
MUTEXES: dict[str, Prepare] = {
    "making a mutex": lambda m: lambda: SharedMutex(m, MUTEX),
    "acquire": lambda m: SharedMutex(m, MUTEX).acquire,
    "acquire with a timeout": lambda m: (lambda x: lambda: x.acquire(timeout=1))(SharedMutex(m, MUTEX)),
    "with": lambda m: (lambda x: lambda: x.__enter__())(SharedMutex(m, MUTEX)),
    "release": lambda m: held(m).release,
    "owner_died": lambda m: (lambda x: lambda: x.owner_died)(SharedMutex(m, MUTEX)),
    "mark_consistent": lambda m: held(m).mark_consistent,
}

CASES = [
    *((mode, name, READS[name]) for mode in MODES for name in READS),
    *((mode, name, WRITES[name]) for mode in ("read-write", "copy-on-write") for name in WRITES),
    *(("read-write", name, MUTEXES[name]) for name in MUTEXES),
]
EVERY_CALL = pytest.mark.parametrize(
    ("mode", "prepare"),
    [(mode, prepare) for mode, _, prepare in CASES],
    ids=[f"{m}: {n}" for m, n, _ in CASES],
)


@EVERY_CALL
def test_every_call_raises_where_the_file_was_cut_and_the_process_goes_on(
    path: Path, mode: str, prepare: Prepare
) -> None:
    """An access without a guard ends the process; one without a mark lets zeros pass for data."""

    def work() -> list[tuple[str, str]]:
        mapped = MODES[mode](path)
        use = prepare(mapped)
        os.truncate(path, KEPT)
        # The second is of a byte that is still there.
        return [outcome(use), outcome(lambda: mapped.read_bytes(0, 1)), outcome(use)]

    first, second, third = in_child(work)
    assert first[0] == "MappingFault", first
    assert str(path) in first[1], "the message does not name the file"
    assert second[0] == "MappingFault", "the handle was not marked"
    # What was given back, or not, cannot be given back again.
    assert third[0] == ("RuntimeError" if prepare is MUTEXES["release"] else "MappingFault")


@EVERY_CALL
def test_no_call_raises_while_the_file_is_whole(path: Path, mode: str, prepare: Prepare) -> None:
    """The control of the test above: a call that raised without a cut would pass it."""
    assert in_child(lambda: outcome(prepare(MODES[mode](path)))) == ("", "")


def test_every_operation_of_a_word_is_among_those_tested() -> None:
    """A new one needs a guard, and a line in a table above."""
    public = {name for name in dir(AtomicU64) if not name.startswith("_")} - {"offset"}
    assert public <= READS.keys() | WRITES.keys()


# What other people's code reads through a view.

FOREIGN: dict[str, Callable[[memoryview], object]] = {
    "an index": lambda view: view[-1],
    "bytes": bytes,
    "a copy into a bytearray": lambda view: bytearray(view),
    "hashlib": lambda view: hashlib.sha256(view).hexdigest(),
    "zlib": zlib.crc32,
    "struct": lambda view: struct.unpack_from("<Q", view, FAR),
    "join": lambda view: b"".join([view]),
    "int.from_bytes": lambda view: int.from_bytes(view[FAR : FAR + 8]),
    "a comparison": lambda view: view[FAR:] == bytes(SIZE - FAR),
    "BytesIO": lambda view: io.BytesIO(view).getvalue(),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_code_sees_zeros_and_the_next_checked_call_raises(path: Path, mode: str, name: str) -> None:
    """Nobody can guard somebody else's code: without zeros it dies, and without a mark nobody knows."""

    def work() -> tuple[bool, list[str]]:
        mapped = MODES[mode](path)
        view = mapped.as_slice()
        kept = bytearray(SIZE)
        kept[:KEPT] = memoryview(view)[:KEPT]
        expected = FOREIGN[name](memoryview(kept))
        os.truncate(path, KEPT)
        right = FOREIGN[name](memoryview(view)) == expected
        calls: list[Use] = [
            lambda: mapped.read_bytes(0, 1),
            lambda: mapped[0],
            lambda: view[0],
            lambda: bytes(view),
            lambda: mapped.as_slice(),
            mapped.flush,
        ]
        return right, [outcome(call)[0] for call in calls]

    right, outcomes = in_child(work)
    assert right, "not the bytes that are left, and zeros"
    assert set(outcomes) == {"MappingFault"}


@pytest.mark.parametrize("mode", MODES)
def test_numpy_sees_zeros_and_the_next_checked_call_raises(path: Path, mode: str) -> None:
    """The commonest foreign code of all."""
    reason = "no numpy: NOT TESTED that an array over a cut file reads as zeros"
    numpy = pytest.importorskip("numpy", reason=reason)

    def work() -> tuple[int, str]:
        mapped = MODES[mode](path)
        array = numpy.frombuffer(mapped.as_slice(), dtype="u1")
        assert array.sum() > KEPT * 5
        os.truncate(path, KEPT)
        return int(array.sum()), outcome(lambda: mapped[0])[0]

    assert in_child(work) == (sum(WORD) * KEPT // 8, "MappingFault")


@pytest.mark.parametrize("mode", MODES)
def test_the_kernel_reading_a_view_is_told_and_so_are_we(path: Path, mode: str) -> None:
    """A system call that meets the hole gets no signal: it fails with EFAULT, and not a zero is sent."""

    def work() -> tuple[list[tuple[str, str]], int | None, str]:
        mapped = MODES[mode](path)
        view = mapped.as_slice(FAR, SIZE - FAR)
        with (path.parent / "copy").open("wb", buffering=0) as copy, memoryview(view) as foreign:
            left, right = socket.socketpair()
            os.truncate(path, KEPT)
            with left, right:
                refused = [outcome(lambda: copy.write(foreign)), outcome(lambda: left.send(foreign))]
            assert foreign[0] == 0
            # The zeros are memory like any other now.
            return refused, copy.write(foreign), outcome(lambda: mapped[0])[0]

    refused, later, checked = in_child(work)
    assert [kind for kind, _ in refused] == ["OSError", "OSError"]
    assert all("Bad address" in text for _, text in refused)
    assert later == SIZE - FAR
    assert checked == "MappingFault"


def test_foreign_code_in_a_view_of_a_closed_handle_sees_zeros(path: Path) -> None:
    """The view keeps the mapping; its place in the table must live as long."""

    def work() -> tuple[bytes, str]:
        mapped = MemoryMappedFile.open_rw(path)
        view = mapped.as_slice()
        mapped.close()
        os.truncate(path, KEPT)
        return bytes(memoryview(view)[FAR : FAR + 8]), outcome(lambda: view[0])[0]

    assert in_child(work) == (bytes(8), "MappingFault")


@pytest.mark.parametrize("mode", MODES)
def test_a_view_that_is_known_to_have_lost_pages_hands_out_no_buffer(path: Path, mode: str) -> None:
    """An array made after the fault would be of zeros from the start, and nothing would ever say so."""

    def work() -> tuple[bytes, str]:
        mapped = MODES[mode](path)
        view = mapped.as_slice()
        before = memoryview(view)
        os.truncate(path, KEPT)
        return bytes(before[FAR : FAR + 8]), outcome(lambda: memoryview(view))[0]

    assert in_child(work) == (bytes(8), "MappingFault")


def test_zeros_that_an_outgrown_view_gave_are_told_by_the_handle(tmp_path: Path) -> None:
    """Growth beyond the reservation leaves old views in the old mapping, whose mark the handle must heed."""
    path = tmp_path / "file"

    def work() -> tuple[bytes, str, str]:
        mapped = MemoryMappedFile.create_rw(path, PAGE_SIZE, reserve=PAGE_SIZE)
        mapped.update_region(0, WORD)
        view = mapped.as_slice()
        mapped.resize(SIZE)
        os.truncate(path, 0)
        seen = bytes(memoryview(view)[:8])
        os.truncate(path, SIZE)
        return seen, outcome(lambda: view[0])[0], outcome(lambda: mapped[0])[0]

    assert in_child(work) == (bytes(8), "MappingFault", "MappingFault")


def mappings() -> int:
    """How many mappings this process has."""
    return len(Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", [1, -1], ids=["upward", "downward"])
def test_the_rest_of_the_mapping_is_replaced_in_one_piece(path: Path, mode: str, order: int) -> None:
    """A mapping for each page that was missing would be at the kernel's limit after 65,530 pages."""

    def work() -> tuple[int, int]:
        view = memoryview(MODES[mode](path).as_slice())
        before = mappings()
        os.truncate(path, 0)
        return sum(view[at] for at in range(0, SIZE, PAGE_SIZE)[::order]), mappings() - before

    zeros, more = in_child(work)
    assert zeros == 0
    assert more <= 1


def test_a_fault_needs_no_more_than_one_free_mapping(path: Path) -> None:
    """A process that has used up its mappings but for a few must not die of a fault."""
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    if limit > 200_000:
        pytest.skip(f"{limit} mappings are allowed: NOT TESTED what a fault does close to the limit")

    def work() -> tuple[list[int], str]:
        handles = [opened(path) for opened in MODES.values()]
        views = [memoryview(mapped.as_slice()) for mapped in handles]
        taken = []
        # Neighbours of unlike protection, for like ones are merged.
        for protection in itertools.cycle((mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE)):
            try:
                taken.append(mmap.mmap(-1, PAGE_SIZE, flags=mmap.MAP_PRIVATE, prot=protection))
            except OSError:
                break
        assert len(taken) > limit // 2
        del taken[-5:]
        os.truncate(path, KEPT)
        return [view[at] for view in views for at in range(KEPT, SIZE, PAGE_SIZE)], outcome(
            lambda: handles[0][0]
        )[0]

    zeros, checked = in_child(work)
    assert not any(zeros)
    assert checked == "MappingFault"


# Hazard: zero pages over a shared page swallow what is stored to them.


STORES: dict[str, Callable[[MemoryMappedFile], Callable[[], object]]] = {
    "store": lambda m: (lambda a: lambda: a.store(42))(m.atomic_u64(FAR)),
    "swap": lambda m: (lambda a: lambda: a.swap(42))(m.atomic_u64(FAR)),
    "fetch_add": lambda m: (lambda a: lambda: a.fetch_add(42))(m.atomic_u64(FAR)),
    "compare_exchange": lambda m: (lambda a: lambda: a.compare_exchange(0, 42))(m.atomic_u64(FAR)),
    "update_region": lambda m: lambda: m.update_region(FAR, (42).to_bytes(8, "little")),
    "assignment": lambda m: lambda: m.__setitem__(FAR, 42),
    "a writable view": lambda m: (lambda v: lambda: v.__setitem__(0, 42))(m.as_slice_mut(FAR, 8)),
    "foreign code": lambda m: (lambda v: lambda: v.__setitem__(0, 42))(memoryview(m.as_slice_mut(FAR, 8))),
}
METS: dict[str, Callable[[MemoryMappedFile, memoryview], object]] = {
    "nobody": lambda m, view: None,
    "foreign code": lambda m, view: view[FAR],
    "a checked read": lambda m, view: outcome(lambda: m.read_bytes(FAR, 8)),
    "a word": lambda m, view: outcome(lambda: m.atomic_u64(FAR).load()),
    "both": lambda m, view: (outcome(lambda: m.read_bytes(FAR, 8)), view[FAR], outcome(lambda: m[FAR])),
}


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize("met", METS)
def test_a_store_either_raises_or_is_in_the_file(path: Path, name: str, met: str) -> None:
    """A private page over a shared one takes a store, reports success, and the file never hears of it."""

    def work() -> tuple[str, bytes]:
        mapped = MemoryMappedFile.open_rw(path)
        view = memoryview(mapped.as_slice())
        store = STORES[name](mapped)
        os.truncate(path, KEPT)
        METS[met](mapped, view)
        os.truncate(path, SIZE)
        ended = outcome(store)[0]
        with path.open("rb") as file:
            return ended, os.pread(file.fileno(), 8, FAR)

    ended, found = in_child(work)
    assert (ended, found[0]) in {("MappingFault", 0), ("", 42)}


@pytest.mark.parametrize("met", ["nobody", "foreign code", "a checked read"])
def test_a_held_mutex_never_looks_free(path: Path, met: str) -> None:
    """Two owners at once, because a cut has wiped the words that say that there is one."""

    def work() -> tuple[object, str]:
        mapped = MemoryMappedFile.open_rw(path)
        mutex = SharedMutex(mapped, MUTEX)
        others = SharedMutex(MemoryMappedFile.open_rw(path), MUTEX)
        mutex.acquire()
        view = memoryview(mapped.as_slice())
        os.truncate(path, KEPT)
        METS[met](mapped, view)
        os.truncate(path, SIZE)
        got: list[object] = []

        def take() -> None:
            try:
                got.append(others.acquire(blocking=False))
            except OSError as error:
                got.append(type(error).__name__)

        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
        return got[0], outcome(mutex.release)[0]

    taken, released = in_child(work)
    assert taken is not True, "a second owner"
    assert released != "", "released, although it was gone"


@pytest.mark.parametrize("extended", [False, True], ids=["cut", "cut and extended"])
def test_the_end_of_a_held_mutex_harms_no_other(tmp_path: Path, extended: bool) -> None:
    """The C library chains what a thread holds through the mutexes themselves.

    A link into memory that is gone is a crash, or eight bytes written into somebody else's, at the next mutex
    that the thread takes.
    """
    lost, other = tmp_path / "lost", tmp_path / "other"

    def work() -> tuple[bool, bool]:
        mapped = MemoryMappedFile.create_rw(lost, PAGE_SIZE, reserve=PAGE_SIZE)
        mutex = held_at(mapped)
        os.truncate(lost, 0)
        if extended:
            os.truncate(lost, PAGE_SIZE)
        outcome(mutex.release)
        del mutex
        outcome(mapped.close)
        del mapped
        with MemoryMappedFile.create_rw(other, PAGE_SIZE) as healthy:
            fine = SharedMutex(healthy, 0)
            for _ in range(3):
                with fine:
                    pass
            free = SharedMutex(healthy, 0).acquire(blocking=False)
            return fine.is_held, free

    assert in_child(work) == (False, True)


@pytest.mark.parametrize("order", [1, -1], ids=["first in, first out", "last in, first out"])
def test_mutexes_that_share_a_page_are_lost_together(tmp_path: Path, order: int) -> None:
    """What is put in place of the page for one must not wipe what was put there for the other."""
    lost, other = tmp_path / "lost", tmp_path / "other"

    def work() -> tuple[list[str], bool]:
        mapped = MemoryMappedFile.create_rw(lost, PAGE_SIZE, reserve=PAGE_SIZE)
        mutexes = [SharedMutex(mapped, at) for at in (0, 256, 1024)]
        for mutex in mutexes:
            mutex.acquire()
        os.truncate(lost, 0)
        ends = [outcome(mutex.release)[0] for mutex in mutexes[::order]]
        mutexes.clear()
        del mutex
        outcome(mapped.close)
        del mapped
        with MemoryMappedFile.create_rw(other, PAGE_SIZE) as healthy:
            fine = SharedMutex(healthy, 0)
            for _ in range(3):
                with fine:
                    pass
            return ends, fine.acquire(blocking=False)

    assert in_child(work) == (["MappingFault"] * 3, True)


def held_at(mapped: MemoryMappedFile) -> SharedMutex:
    """As `held`, at the file's beginning."""
    mutex = SharedMutex(mapped, 0)
    mutex.acquire()
    return mutex


def test_a_mutex_is_not_left_locked_by_the_loss_of_another(tmp_path: Path) -> None:
    """Taking the second stores into the first, which is gone; the second can then never be taken again."""
    lost, other = tmp_path / "lost", tmp_path / "other"

    def work() -> tuple[str, bool]:
        gone = MemoryMappedFile.create_rw(lost, PAGE_SIZE)
        healthy = MemoryMappedFile.create_rw(other, PAGE_SIZE)
        first, second = held_at(gone), SharedMutex(healthy, 0)
        os.truncate(lost, 0)
        ended = outcome(second.acquire)[0]
        if ended == "":
            second.release()
        got: list[bool] = []
        thread = threading.Thread(target=lambda: got.append(SharedMutex(healthy, 0).acquire(timeout=100)))
        thread.start()
        thread.join()
        return (ended, got[0]) if first.is_held else ("", False)

    ended, free = in_child(work)
    assert ended in {"", "MappingFault"}
    assert free, "nobody can take the second mutex any more"
