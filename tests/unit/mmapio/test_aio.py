"""Async twins do what their originals do, on every back-end, and never hold up the event loop."""

from __future__ import annotations

import errno
import functools
import inspect
import io
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, Any, cast

import pytest

import mmapio
from mmapio import aio, manager
from mmapio.aio import AsyncTwins, wait_async
from mmapio.errors import (
    Closed,
    InvalidMode,
    InvalidSize,
    MappingFault,
    OutOfBounds,
    ResizeFailed,
    Unsupported,
)
from mmapio.file import MemoryMappedFile
from mmapio.options import MmapAdvice, MmapMode, TouchHint
from tests.support.sanitizers import not_below_sanitizers
from tests.unit.mmapio import interposer as interposing
from tests.unit.mmapio.async_calls import SIZE, Gate, anyio, gated_class, on_each_backend, run, sample
from tests.unit.mmapio.interposer import PRELUDE
from tests.unit.mmapio.processes import run_python

#: The methods that may wait, with arguments for a file of SIZE bytes. The twin of each takes the same.
METHODS: dict[str, tuple[Any, ...]] = {
    "advise": (0, None, MmapAdvice.POPULATE_READ),
    "close": (),
    "flush": (),
    "flush_range": (0, 1),
    "lock": (0, 1),
    "lock_all": (),
    "punch_hole": (0, 4096),
    "read_bytes": (1, 5),
    "read_into": (1, bytearray(5)),
    "resize": (2 * SIZE,),
    "touch_pages": (),
    "touch_pages_range": (0, 1),
    "unmap": (),
    "update_region": (0, b"written"),
}
CONSTRUCTORS: dict[str, tuple[Any, ...]] = {
    "create_rw": (SIZE,),
    "open_cow": (),
    "open_or_create": (SIZE,),
    "open_ro": (),
    "open_rw": (),
}
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "copy_mmap": ("copy",),
    "create_mmap": (SIZE,),
    "delete_mmap": (),
    "load_mmap": (MmapMode.READ_WRITE,),
    "write_mmap": (0, b"written"),
}
#: Twins of another shape.
ITERATED = {"chunks_owned", "pages_owned", "watch"}

#: What never waits for anything but the processor, or has no twin for the reason that `mmapio.aio` tells.
PROMPT = {
    "MemoryMappedFile": """
        address as_slice as_slice_bytes as_slice_mut atomic_u32 atomic_u32_slice atomic_u64 atomic_u64_slice
        builder chunks chunks_mut closed fileno flush_policy from_descriptor from_file huge_pages is_empty
        mode needs_flush pages path pending_bytes prefetch_range reader refresh region reserved resident
        unlock unlock_all""",
    # `wait` has `wait_async`.
    "AtomicU64": """
        compare_exchange fetch_add fetch_and fetch_max fetch_min fetch_or fetch_sub fetch_xor load notify
        offset store swap wait""",
    "AtomicSliceU64": "offset",
    "Builder": "create flush_policy huge_pages mode open open_or_create reserve size sparse touch_hint",
    "ChunksMut": "for_each_mut for_each_mut_legacy",
    "MappedSlice": "tobytes",
    "MappedSliceMut": "is_released release tobytes",
    "Reader": "read readable readall readinto seek seekable tell write",
    "SegmentMut": "as_slice as_slice_mut is_empty is_valid offset parent write",
    "SharedMutex": "SIZE acquire is_held mark_consistent offset owner_died release",
    "WatchHandle": "is_active stop",
    "functions": "align_up features flush page_size update_region",
}


def own(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments with buffers of their own."""
    return tuple(bytearray(each) if isinstance(each, bytearray) else each for each in args)


def public(kind: type) -> set[str]:
    """The public names of a class of this package, those inherited from others apart."""
    ours = [each for each in kind.__mro__ if each.__module__.startswith("mmapio")]
    return {name for each in ours for name in vars(each) if not name.startswith("_")}


def test_every_blocking_call_has_a_twin() -> None:
    """A call that is added without one, or a word that it does not wait, would hold up an event loop."""
    for name, known in PROMPT.items():
        if name == "functions":
            found = {each for each in mmapio.__all__ if inspect.isroutine(getattr(mmapio, each))}
            expected = set(FUNCTIONS)
        else:
            found = public(getattr(mmapio, name))
            expected = (
                METHODS.keys() | CONSTRUCTORS.keys() | ITERATED if name == "MemoryMappedFile" else set()
            )
        assert {each for each in found if not each.endswith("_async")} == set(known.split()) | expected, name
    for name in METHODS.keys() | CONSTRUCTORS.keys() | ITERATED:
        assert hasattr(AsyncTwins, f"{name}_async"), name
    assert {f"{name}_async" for name in FUNCTIONS} <= set(aio.__all__)


def test_the_table_covers_every_class() -> None:
    """A class that is added with a method that waits would go unnoticed by the test above."""
    twice = {"AtomicU32", "AtomicSliceU32", "Segment", "AsyncWatch"}
    plain = {
        "ChangeEvent",
        "ChangeKind",
        "FlushPolicy",
        "HugePages",
        "MmapAdvice",
        "MmapMode",
        "Ordering",
        "TouchHint",
    }
    classes = {name for name in mmapio.__all__ if inspect.isclass(getattr(mmapio, name))}
    errors = {name for name in classes if issubclass(getattr(mmapio, name), Exception)}
    assert classes - errors - plain - twice == PROMPT.keys() - {"functions"}


OPTIONS: dict[str, Any] = {
    f"Unpack[{kind.__name__}]": kind
    for kind in (aio._Options, aio._GrowingOptions, aio._WritableOptions, aio._CreateOptions)
}


def parameters(call: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """How each parameter is passed, and its default where a twin states one of its own."""
    found: dict[str, tuple[Any, Any]] = {}
    for name, each in inspect.signature(call).parameters.items():
        if each.kind is each.VAR_KEYWORD:
            found.update(dict.fromkeys(OPTIONS[each.annotation].__optional_keys__, (each.KEYWORD_ONLY, None)))
        else:
            found[name] = each.kind, None if each.kind is each.KEYWORD_ONLY else each.default
    return found


@pytest.mark.parametrize("name", [*METHODS, *CONSTRUCTORS, *FUNCTIONS, "chunks_owned", "pages_owned"])
def test_a_twin_takes_what_its_original_takes(name: str) -> None:
    """Whoever adds an option to a call would forget its twin."""
    owner, twins = (manager, aio) if name in FUNCTIONS else (MemoryMappedFile, MemoryMappedFile)
    assert parameters(getattr(twins, f"{name}_async")) == parameters(getattr(owner, name))


def test_every_twin_is_documented() -> None:
    """The test of exports looks at no inherited method."""
    for name, member in vars(AsyncTwins).items():
        assert name.startswith("_") or member.__doc__ or member.__func__.__doc__, name


async def while_held(gate: Gate, twin: Callable[[], Awaitable[Any]]) -> Any:
    """What `twin` returns, after its original was held up, and the event loop seen to go on."""
    outcome: list[Any] = []

    async def call() -> None:
        outcome.append(await twin())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await gate.entered()
        assert outcome == []
        gate.open()
    assert gate.passed >= 1
    return outcome[0]


@pytest.mark.parametrize("name", METHODS)
@on_each_backend
def test_the_event_loop_goes_on_during_a_method(backend: str, tmp_path: Path, name: str) -> None:
    """A call on the event loop itself stops every other task; a twin that drops the result is none."""
    path = sample(tmp_path)

    async def main() -> None:
        gate, mine, others = Gate(), own(METHODS[name]), own(METHODS[name])
        with gated_class(gate, name).open_rw(path) as mapped, MemoryMappedFile.open_rw(path) as plain:
            found = await while_held(gate, lambda: getattr(mapped, f"{name}_async")(*mine))
            expected = getattr(plain, name)(*others)
            if name == "unmap":
                assert found.read() == expected.read()
                found.close()
                expected.close()
            else:
                assert (found, mine) == (expected, others)
            assert mapped.closed == plain.closed == (name in ("close", "unmap"))

    run(backend, main)


@pytest.mark.parametrize("name", CONSTRUCTORS)
@on_each_backend
def test_the_event_loop_goes_on_during_a_constructor(backend: str, tmp_path: Path, name: str) -> None:
    """To open reads directories, to create allocates blocks; and a subclass must come out as itself."""
    path = sample(tmp_path)

    async def main() -> None:
        gate = Gate()
        kind = gated_class(gate, name)
        twin = functools.partial(
            getattr(kind, f"{name}_async"), path, *CONSTRUCTORS[name], touch_hint=TouchHint.EAGER
        )
        with await while_held(gate, twin) as mapped:
            assert type(mapped) is kind
            assert len(mapped) == SIZE
            assert mapped.read_bytes(1, 1) == (b"\0" if name == "create_rw" else b"\1")

    run(backend, main)


@pytest.mark.parametrize("name", FUNCTIONS)
@on_each_backend
def test_the_event_loop_goes_on_during_a_function(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The same of the functions by path."""
    path = sample(tmp_path)
    monkeypatch.chdir(path.parent)

    async def main() -> None:
        gate = Gate()
        monkeypatch.setattr(manager, name, gate.before(getattr(manager, name)))
        found = await while_held(gate, lambda: getattr(aio, f"{name}_async")(path, *FUNCTIONS[name]))
        if name == "copy_mmap":
            assert found in ("reflink", "copy_file_range", "read and write")
            assert Path("copy").read_bytes() == path.read_bytes()
        elif name == "delete_mmap":
            assert not path.exists()
        elif name == "write_mmap":
            assert path.read_bytes()[:8] == b"written\7"
        else:
            with found:
                assert (found.mode, len(found)) == (MmapMode.READ_WRITE, SIZE)
                assert found.read_bytes(1, 1) == (b"\0" if name == "create_mmap" else b"\1")

    run(backend, main)
    monkeypatch.undo()


@on_each_backend
def test_copies_come_chunk_by_chunk(backend: str, tmp_path: Path) -> None:
    """A chunk twice, or one not at all, is data lost; so is a file cut before it is read."""
    path = sample(tmp_path)

    async def main() -> None:
        with MemoryMappedFile.open_rw(path) as mapped:
            for size in (1000, 4096, SIZE, SIZE + 1):
                found = [chunk async for chunk in mapped.chunks_owned_async(size)]
                assert found == list(mapped.chunks_owned(size))
            assert [page async for page in mapped.pages_owned_async()] == list(mapped.pages_owned())
            with pytest.raises(InvalidSize):
                mapped.chunks_owned_async(0)
            chunks = mapped.chunks_owned_async(4096)
            with pytest.raises(ResizeFailed):
                await mapped.resize_async(4096)
            assert len([chunk async for chunk in chunks]) == 2
            await mapped.resize_async(4096)

    run(backend, main)


@on_each_backend
def test_pages_come_in_before_a_short_copy(backend: str, tmp_path: Path) -> None:
    """Short copies are made with the GIL held: a page from the disk would stop the event loop after all."""
    path = sample(tmp_path)
    calls: list[Any] = []

    class Told(MemoryMappedFile):
        __slots__ = ()

        def advise(self, offset: Any, length: Any, advice: MmapAdvice) -> None:
            calls.append((offset, length, advice.name, threading.get_ident() == loop))
            super().advise(offset, length, advice)

    loop = threading.get_ident()

    async def main() -> None:
        with Told.open_rw(path) as mapped:
            await mapped.read_bytes_async(1, 2)
            await mapped.read_into_async(3, bytearray(4))
            await mapped.update_region_async(5, b"123456")
            async for _ in mapped.chunks_owned_async(5000):
                pass

    run(backend, main)
    read = "POPULATE_READ", False
    assert calls[:3] == [(1, 2, *read), (3, 4, *read), (5, 6, "POPULATE_WRITE", False)]
    assert calls[3:5] == [(0, 5000, *read), (5000, SIZE - 5000, *read)]


@on_each_backend
def test_a_reader_becomes_an_asynchronous_file(backend: str, tmp_path: Path) -> None:
    """The documentation says so in place of a twin."""
    path = sample(tmp_path)

    async def main() -> None:
        with MemoryMappedFile.open_ro(path) as mapped:
            reader: Any = anyio.wrap_file(cast("IO[bytes]", mapped.reader()))
            assert await reader.seek(2, io.SEEK_SET) == 2
            assert await reader.read(3) == b"\2\3\4"

    run(backend, main)


SYNCS = """
import anyio
from mmapio import FlushPolicy, MemoryMappedFile
from mmapio.aio import copy_mmap_async, write_mmap_async
async def synced_during(work):
    before = sum(syncs())
    await work
    return sum(syncs()) - before
async def main():
    figures = []
    for policy in (FlushPolicy.NEVER, FlushPolicy.MANUAL, FlushPolicy.ALWAYS, FlushPolicy.every_writes(1000)):
        mapped = MemoryMappedFile.create_rw(arguments[0], 4096)
        mapped.flush()
        mapped.close()
        mapped = MemoryMappedFile.open_rw(arguments[0], flush_policy=policy)
        figures.append(await synced_during(mapped.update_region_async(0, b"x")))
        figures.append(mapped.pending_bytes)
        mapped.close()
    mapped = MemoryMappedFile.open_rw(arguments[0])
    figures.append(await synced_during(mapped.flush_async()))
    figures.append(await synced_during(mapped.flush_range_async(0, 1)))
    mapped.update_region(0, b"x")
    figures.append(await synced_during(mapped.close_async()))
    figures.append(await synced_during(write_mmap_async(arguments[0], 0, b"x")))
    figures.append(await synced_during(copy_mmap_async(arguments[0], arguments[0] + ".copy")))
    # The control: what is not flushed is not counted.
    figures.append(await synced_during(MemoryMappedFile.open_rw_async(arguments[0])))
    answer(figures)
anyio.run(main, backend=arguments[1])
"""


@on_each_backend
def test_what_was_written_is_on_the_device(backend: str, tmp_path: Path, interposer: Path) -> None:
    """A twin of update_region that leaves durability to the policy breaks the promise of its name."""
    found = run_python(PRELUDE + SYNCS, tmp_path / "file", backend, preload=interposer)
    assert found == [1, 0] * 4 + [1, 1, 1, 1, 2, 0]


GATE_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

/* The first call of the function so named tells a pipe, and goes on when another has a byte for it. */
static const char *volatile held = "";
static int telling, awaited;
void gate(const char *name, int tell, int wait) { telling = tell; awaited = wait; held = name; }

static void pass(const char *name) {
    char byte = 'x';
    if (strcmp(held, name) != 0) return;
    held = "";
    if (write(telling, &byte, 1) != 1 || read(awaited, &byte, 1) != 1) _exit(3);
}

#define GATED(name, parameters, arguments, ...) \
    int name parameters { \
        static int (*next)(__VA_ARGS__); \
        if (!next) next = (int (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name); \
        pass(#name); \
        return next arguments; \
    }
GATED(fdatasync, (int fd), (fd), int)
GATED(msync, (void *p, size_t n, int how), (p, n, how), void *, size_t, int)
GATED(madvise, (void *p, size_t n, int how), (p, n, how), void *, size_t, int)
GATED(mlock, (const void *p, size_t n), (p, n), const void *, size_t)
GATED(ftruncate, (int fd, off_t n), (fd, n), int, off_t)
GATED(fallocate, (int fd, int how, off_t at, off_t n), (fd, how, at, n), int, int, off_t, off_t)
int ftruncate64(int fd, off_t n) { return ftruncate(fd, n); }
int fallocate64(int fd, int how, off_t at, off_t n) { return fallocate(fd, how, at, n); }
int ioctl(int fd, unsigned long request, ...) {
    static int (*next)(int, unsigned long, ...);
    va_list rest;
    if (!next) next = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
    va_start(rest, request);
    long argument = va_arg(rest, long);
    va_end(rest);
    /* FICLONE */
    if (request == 0x40049409UL) pass("ioctl");
    return next(fd, request, argument);
}
"""

HELD = """
import anyio, ctypes, os, signal
from anyio import to_thread
from mmapio import MemoryMappedFile
from mmapio.aio import copy_mmap_async
path, call, use, backend = arguments
# A process whose GIL is taken for ever ends by a signal only.
signal.alarm(100)
async def main():
    mapped = MemoryMappedFile.open_rw(path)
    (told, tell), (wait, opener) = os.pipe(), os.pipe()
    ended = []
    async def twin():
        await eval(use, {**globals(), 'mapped': mapped})
        ended.append("the twin")
    name = ctypes.c_char_p(call.encode())
    ctypes.CDLL(None).gate(name, tell, wait)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(twin)
        await to_thread.run_sync(os.read, told, 1, abandon_on_cancel=True)
        for _ in range(100):
            await anyio.sleep(0)
        ended.append("the loop")
        os.write(opener, b"x")
    answer(ended)
anyio.run(main, backend=backend)
"""


@pytest.fixture(scope="module")
def slow_calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that holds up a system call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interposing, "SOURCE", GATE_SOURCE)
        return interposing.build(tmp_path_factory.mktemp("gate"))


@pytest.mark.parametrize(
    ("call", "use"),
    [
        ("fdatasync", "mapped.update_region_async(0, b'x')"),
        ("msync", "mapped.flush_range_async(0, 1)"),
        ("madvise", "mapped.touch_pages_async()"),
        pytest.param(
            *("mlock", "mapped.lock_async(0, 1)"),
            marks=not_below_sanitizers("its mlock makes no system call"),
        ),
        ("fallocate", "mapped.resize_async(1 << 20)"),
        ("fallocate", "mapped.punch_hole_async(0, 4096)"),
        ("ftruncate", "mapped.resize_async(4096)"),
        ("ftruncate", "MemoryMappedFile.create_rw_async(path, 4096)"),
        ("ioctl", "copy_mmap_async(path, path + '.copy')"),
    ],
)
@on_each_backend
def test_the_event_loop_goes_on_during_a_slow_system_call(
    backend: str, tmp_path: Path, slow_calls: Path, call: str, use: str
) -> None:
    """A thread is no help when the call in it keeps the GIL."""
    path = sample(tmp_path)
    assert run_python(HELD, path, call, use, backend, preload=slow_calls) == ["the loop", "the twin"]


FAILING = """
import anyio
from mmapio import FlushFailed, MemoryMappedFile
async def main():
    mapped = MemoryMappedFile.create_rw(arguments[0], 4096)
    outcomes = []
    fail(FDATASYNC, 1, errno.EIO)
    for work in (lambda: mapped.update_region_async(0, b"x"), mapped.flush_async):
        try:
            await work()
        except FlushFailed as error:
            outcomes.append([error.errno, error.filename])
    answer(outcomes)
anyio.run(main, backend=arguments[1])
"""


@on_each_backend
def test_a_failed_sync_is_raised(backend: str, tmp_path: Path, interposer: Path) -> None:
    """An error that stays in the thread is a lost write that looks like a durable one."""
    path = tmp_path / "file"
    found = run_python(PRELUDE + FAILING, path, backend, preload=interposer)
    assert found == [[errno.EIO, str(path)]] * 2


@on_each_backend
def test_errors_keep_their_types(backend: str, tmp_path: Path) -> None:
    """Callers tell errors apart by type, whichever thread they come from."""
    path = sample(tmp_path)

    async def main() -> None:
        cases: list[tuple[type[Exception], Callable[[MemoryMappedFile], Awaitable[Any]]]] = [
            (OutOfBounds, lambda mapped: mapped.read_bytes_async(SIZE, 1)),
            (OutOfBounds, lambda mapped: mapped.read_bytes_async(-1, 1)),
            (OutOfBounds, lambda mapped: mapped.read_into_async(SIZE - 1, bytearray(2))),
            (OutOfBounds, lambda mapped: mapped.flush_range_async(0, SIZE + 1)),
            (TypeError, lambda mapped: mapped.read_bytes_async(0, "x")),  # type: ignore[arg-type]
            (TypeError, lambda mapped: mapped.update_region_async(0, "x")),  # type: ignore[arg-type]
            (BufferError, lambda mapped: aio.write_mmap_async(path, 0, memoryview(b"abcd")[::2])),
            (InvalidMode, lambda mapped: mapped.update_region_async(0, b"x")),
            (InvalidMode, lambda mapped: mapped.resize_async(1)),
            (InvalidMode, lambda mapped: mapped.touch_pages_async(write=True)),
            (FileNotFoundError, lambda mapped: MemoryMappedFile.open_rw_async(path.with_name("none"))),
            (InvalidSize, lambda mapped: MemoryMappedFile.create_rw_async(path.with_name("none"), 0)),
            (FileNotFoundError, lambda mapped: aio.delete_mmap_async(path.with_name("none"))),
        ]
        with MemoryMappedFile.open_ro(path) as mapped:
            for kind, twin in cases:
                with pytest.raises(kind):
                    await twin(mapped)
            path.write_bytes(b"")
            with pytest.raises(MappingFault):
                await mapped.read_bytes_async(0, 1)

    run(backend, main)


@pytest.mark.parametrize("name", [*METHODS.keys() - {"close"}, "watch", "chunks_owned"])
@on_each_backend
def test_a_closed_handle_refuses(backend: str, tmp_path: Path, name: str) -> None:
    """The memory is gone; the exception is all that stands between a mistake and SIGSEGV."""
    path = sample(tmp_path)

    async def main() -> None:
        mapped = MemoryMappedFile.open_rw(path)
        await mapped.close_async()
        await mapped.close_async()
        with pytest.raises(Closed):
            twin = getattr(mapped, f"{name}_async")(
                *METHODS.get(name, (1,) if name == "chunks_owned" else ())
            )
            await twin

    run(backend, main)


def test_without_anyio_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """'No module named anyio' tells nobody what to install."""
    path = sample(tmp_path)
    with MemoryMappedFile.open_rw(path) as mapped:
        coroutines = [getattr(mapped, f"{name}_async")(*own(args)) for name, args in METHODS.items()]
        coroutines += [getattr(mapped, f"{name}_async")(path, *args) for name, args in CONSTRUCTORS.items()]
        coroutines += [getattr(aio, f"{name}_async")(path, *args) for name, args in FUNCTIONS.items()]
        coroutines += [wait_async(mapped.atomic_u64(0), 0), mapped.__aexit__()]
        watch = mapped.watch_async()
        coroutines += [watch.__aenter__(), watch.__anext__(), watch.aclose()]
        coroutines += [mapped.chunks_owned_async(1).__anext__()]
        monkeypatch.setitem(sys.modules, "anyio", None)
        for coroutine in coroutines:
            with pytest.raises(Unsupported, match=r"pip install mmapkv\[async\]") as raised:
                coroutine.send(None)
            assert raised.value.errno == errno.ENOSYS
        assert not mapped.closed
        assert mapped.read_bytes(0, 2) == b"\0\1"


def test_anyio_is_imported_by_those_who_use_it() -> None:
    """Whoever does without ``async`` should not need it, nor wait for it."""
    assert (
        run_python("import mmapio; answer([name in sys.modules for name in ('anyio', 'trio')])")
        == [False] * 2
    )
