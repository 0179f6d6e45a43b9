"""When each flush policy syncs, by itself and at every end that a handle comes to, and when it must not."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.support.waiting import PATIENCE_SECONDS
from tests.unit.mmapio.interposer import PRELUDE
from tests.unit.mmapio.processes import run_python

#: A file of a page that is flushed, with a policy that the child is given by name.
MAPPED = (
    f"PATIENCE_SECONDS = {PATIENCE_SECONDS}"
    + """
import gc, os, sys, time
from mmapio import Closed, FlushFailed, FlushPolicy, MappingFault, MemoryMappedFile
def created(policy, number=0):
    policy = eval("FlushPolicy." + policy)
    made = MemoryMappedFile.create_rw(f"{arguments[0]}.{number}", 4096, flush_policy=policy)
    made.flush()
    return made
def flushers():
    return [thread for thread in threading.enumerate() if thread.name == "mmapio-flusher"]
def wait_until(holds):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.001)
"""
)

#: A bound that no test reaches.
FAR = (1 << 31) - 1

COUNTING = [f"every_bytes({FAR})", f"every_writes({FAR})"]

POLICIES = ["NEVER", "MANUAL", "ALWAYS", *COUNTING, f"every_millis({FAR})"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the files of these tests lie, but for a number."""
    return tmp_path / "file"


def test_always_syncs_once_for_every_write_before_it_returns(path: Path, interposer: Path) -> None:
    """A path that is left out, or syncs later, is one whose bytes a power cut takes after it returned."""
    code = (
        PRELUDE
        + MAPPED
        + """
from tests.unit.mmapio.test_accounting import SIZE, SIZES, WRITES
def fresh():
    made = MemoryMappedFile.create_rw(arguments[0], SIZE, reserve=2 * SIZE, flush_policy=FlushPolicy.ALWAYS)
    made.flush()
    return made
wrong = []
ways = {name: (way.work, way.writes) for name, way in WRITES.items()}
ways |= {name: (work, 1) for name, work in SIZES.items()}
for name, (work, writes) in ways.items():
    with fresh() as mapped:
        found = synced_by(lambda: work(mapped))
        if (found, mapped.needs_flush(), synced_by(mapped.close)) != (writes, False, 0):
            wrong.append([name, found])
    with fresh() as mapped:
        with Held(FDATASYNC, lambda: work(mapped)) as first:
            if not first.thread.is_alive():
                wrong.append([name, "has returned"])
        if first.outcome:
            wrong.append([name, first.outcome])
answer([len(ways) > 40, wrong])
"""
    )
    assert run_python(code, path, preload=interposer) == [True, []]


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "ALWAYS"])
def test_no_other_policy_syncs_before_its_bound(path: Path, interposer: Path, policy: str) -> None:
    """A sync costs a thousand times what a write does: it is made when due, and when asked for."""
    code = (
        PRELUDE
        + MAPPED
        + """
mapped = created(arguments[1])
def work():
    mapped.update_region(0, bytes(4096))
    mapped[0] = 1
    with mapped.as_slice_mut() as view:
        view[0] = 2
    mapped.chunks_mut(7).for_each_mut(lambda offset, view: None)
    mapped.atomic_u64(0).fetch_add(1)
    mapped.resize(9000)
    mapped.resize(3000)
    mapped.as_slice_mut(0, 100)
answer([synced_by(work), mapped.pending_bytes, synced_by(mapped.flush), synced_by(mapped.flush)])
"""
    )
    pending = 4096 + 1 + 4096 + 4096 + 8 + 100
    assert run_python(code, path, policy, preload=interposer) == [0, pending, 1, 1]


BOUNDS: dict[str, tuple[str, list[int], list[int]]] = {
    "just below and then reached": ("every_bytes(10)", [9, 1, 9, 1], [0, 1, 0, 1]),
    "passed": ("every_bytes(10)", [9, 5, 5, 5], [0, 1, 0, 1]),
    "at once": ("every_bytes(10)", [10, 11, 9], [1, 1, 0]),
    "every byte": ("every_bytes(1)", [1, 100, 0], [1, 1, 0]),
    "every other write": ("every_writes(2)", [1, 100, 1, 100], [0, 1, 0, 1]),
    "writes of nothing do not count": ("every_writes(2)", [1, 0, 0, 1], [0, 0, 0, 1]),
    "every write": ("every_writes(1)", [1, 100, 0], [1, 1, 0]),
    "bytes do not count as writes": ("every_writes(3)", [100, 100, 100], [0, 0, 1]),
    "writes do not count as bytes": ("every_bytes(3)", [1, 1, 1], [0, 0, 1]),
}


@pytest.mark.parametrize(("policy", "writes", "expected"), BOUNDS.values(), ids=BOUNDS.keys())
def test_a_bound_is_exact(
    path: Path, interposer: Path, policy: str, writes: list[int], expected: list[int]
) -> None:
    """One early is a sync wasted at every bound; one late is more lost than the caller agreed to."""
    code = (
        PRELUDE
        + MAPPED
        + """
mapped = created(arguments[1])
answer([synced_by(lambda: mapped.update_region(0, bytes(count))) for count in arguments[2]])
"""
    )
    assert run_python(code, path, policy, writes, preload=interposer) == expected


ENDS = {
    "close": "mapped.close()",
    "leaving the block": "mapped.__exit__(None, None, None)",
    "leaving the block by an exception": "mapped.__exit__(ValueError, ValueError(), None)",
    "unmap": "mapped.unmap()",
    "dropping": "del mapped",
    "dropping in a cycle": "cycle = [mapped]; cycle.append(cycle); del mapped, cycle; gc.collect()",
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_what_is_owed_is_flushed_at_the_end(path: Path, interposer: Path, end: str) -> None:
    """Once, and only where something is owed: NEVER owes nothing, ALWAYS has paid."""
    code = (
        PRELUDE
        + MAPPED
        + """
found = {}
gc.disable()
for number, policy in enumerate(arguments[2]):
    found[policy] = []
    # The last writes nothing.
    for write in ("mapped[0] = 1", "mapped.resize(5000)", "view = mapped.as_slice_mut()", "mapped.fileno()"):
        mapped = created(policy, number)
        exec(write)
        def end():
            global mapped, view
            view = None
            exec(arguments[1], globals())
        found[policy].append(synced_by(end))
answer(found)
"""
    )
    found = run_python(code, path, end, POLICIES, preload=interposer)
    others = {"NEVER": [0, 0, 0, 0], "ALWAYS": [0, 0, 1, 0]}
    assert found == {policy: others.get(policy, [1, 1, 1, 0]) for policy in POLICIES}


@pytest.mark.parametrize("policy", POLICIES)
def test_closing_with_a_live_view_flushes_what_it_has_stored(
    path: Path, interposer: Path, policy: str
) -> None:
    """Up to there; what is stored later is nobody's business, and syncs nothing."""
    code = (
        PRELUDE
        + MAPPED
        + """
mapped = created(arguments[1])
view = mapped.as_slice_mut(0, 100)
buffer = memoryview(view)
figures = [synced_by(mapped.close)]
buffer[0] = 1
answer(figures + [synced_by(view.release), synced_by(buffer.release), synced_by(mapped.close)])
"""
    )
    assert run_python(code, path, policy, preload=interposer) == [0 if policy == "NEVER" else 1, 0, 0, 0]


HELD = {
    "by a module": ("MANUAL", "kept = mapped"),
    "by a module, in the background": (f"every_millis({FAR})", "kept = mapped"),
    "by a cycle": ("MANUAL", "cycle = [mapped]; cycle.append(cycle); del mapped, cycle"),
    "by a view": ("MANUAL", "kept = mapped.as_slice_mut(); del mapped"),
    "by a count of writes": ("every_writes(9)", "kept = mapped"),
    "by a count of bytes": ("every_bytes(9)", "kept = mapped"),
    "by a thread, in the background": (
        f"every_millis({FAR})",
        "threading.Thread(target=lambda _: threading.Event().wait(), args=(mapped,), daemon=True).start(); "
        "del mapped",
    ),
    "when it ends by sys.exit": (f"every_millis({FAR})", "sys.exit(0)"),
    "while the flusher is busy": ("every_millis(1)", "kept = mapped"),
    "by nobody who is owed": ("NEVER", "kept = mapped"),
}


@pytest.mark.parametrize(("policy", "keep"), HELD.values(), ids=HELD.keys())
def test_what_is_owed_when_the_interpreter_ends_is_flushed(
    path: Path, tmp_path: Path, policy: str, keep: str
) -> None:
    """Without a close, and while the flusher's thread is being stopped; and the end must come."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("no strace: NOT TESTED that the end of the interpreter flushes")
    code = (
        "import threading\n"
        + MAPPED
        + """
mapped = created(arguments[1])
mapped.update_region(0, b"last")
os.write(mapped.fileno(), b"")
answer(mapped.fileno())
exec(arguments[2])
"""
    )
    trace = tmp_path / "trace"
    command = (strace, "-f", "-qq", "-o", str(trace), "-e", "trace=fdatasync,write")
    number = run_python(code, path, policy, keep, prefix=command)
    # Several threads: a call may be told in two lines, of which the second does not name the file.
    calls = re.findall(rf"(\w+)\({number}\b", trace.read_text())
    # A busy flusher may have been there between the store and the mark.
    after = calls[1 if policy == "every_millis(1)" else calls.index("write") + 1 :]
    assert ("fdatasync" in after) == (policy != "NEVER")


# In the background.


def test_every_millis_flushes_without_being_called(path: Path, interposer: Path) -> None:
    """That is what it is for; and a thread that has nothing to flush must leave the disk alone."""
    code = (
        PRELUDE
        + MAPPED
        + """
idle, busy = created("every_millis(1)", 0), created("every_millis(1)", 1)
before = syncs()
writes = [
    lambda: busy.update_region(0, b"x"), lambda: busy.atomic_u32(0).store(1), lambda: busy.resize(9000),
    lambda: busy.touch_pages(write=True), lambda: busy.resize(4000),
] * 5
for write in writes:
    write()
    wait_until(lambda: not busy.needs_flush())
after = syncs()
answer([after[0] - before[0], after[1:] == before[1:], len(writes), busy.pending_bytes])
"""
    )
    count, nothing_else, writes, pending = run_python(code, path, preload=interposer)
    assert (count, nothing_else, pending) == (writes, True, 0)


def test_every_millis_goes_on_with_a_view_that_is_out(path: Path, interposer: Path) -> None:
    """Nobody says when it stores: as long as it is out, each round flushes what it may have stored."""
    code = (
        PRELUDE
        + MAPPED
        + """
mapped = created("every_millis(1)")
view = mapped.as_slice_mut(0, 10)
before = calls(FDATASYNC)
wait_until(lambda: calls(FDATASYNC) >= before + 5)
pending = mapped.pending_bytes
view.release()
wait_until(lambda: not mapped.needs_flush())
answer([pending, mapped.pending_bytes])
"""
    )
    assert run_python(code, path, preload=interposer) == [10, 0]


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_the_flusher_ends_with_its_handle(path: Path, interposer: Path, end: str) -> None:
    """At once, and not after the 24 days that it was told to wait."""
    code = (
        PRELUDE
        + MAPPED
        + f"""
mapped = created("every_millis({FAR})")
quiet = created("MANUAL", 1)
mapped[0] = 1
threads = flushers()
{end}
for thread in threads:
    thread.join(PATIENCE_SECONDS)
answer([len(threads), len(flushers())])
"""
    )
    assert run_python(code, path, preload=interposer) == [1, 0]


def test_closing_waits_for_a_flush_in_the_background(path: Path, interposer: Path) -> None:
    """What it has begun may fail; and the file must not be somebody else's by then."""
    code = (
        PRELUDE
        + MAPPED
        + """
mapped = created("every_millis(1)")
library.interposer_hold(FDATASYNC, 1)
mapped[0] = 1
wait_until_held()
closer = threading.Thread(target=mapped.close)
closer.start()
until_it_waits(closer)
figures = [closer.is_alive(), mapped.closed]
library.interposer_let_on()
closer.join()
answer(figures + [mapped.closed, flushers()])
"""
    )
    assert run_python(code, path, preload=interposer) == [True, False, True, []]


def test_a_handle_dropped_while_it_is_flushed_in_the_background(path: Path, interposer: Path) -> None:
    """Then it ends in the flusher's own thread, which cannot wait for itself; what was owed is flushed."""
    code = (
        PRELUDE
        + MAPPED
        + """
unraisable = []
sys.unraisablehook = threading.excepthook = unraisable.append
mapped = created("every_millis(1)")
threads = flushers()
library.interposer_hold(FDATASYNC, 1)
mapped[0] = 1
wait_until_held()
mapped[1] = 1
number = mapped.fileno()
del mapped
before = calls(FDATASYNC)
library.interposer_let_on()
threads[0].join(PATIENCE_SECONDS)
answer([flushers(), calls(FDATASYNC) - before, os.path.exists(f"/proc/self/fd/{number}"), unraisable])
"""
    )
    assert run_python(code, path, preload=interposer) == [[], 1, False, []]


NEXT = {
    "flush": "mapped.flush()",
    "flush_range": "mapped.flush_range(0, 1)",
    "update_region": "mapped.update_region(0, b'x')",
    "an item": "mapped[0] = 1",
    "a view": "mapped.as_slice_mut()",
    "a word": "word.store(1)",
    "resize": "mapped.resize(8192)",
    "close": "mapped.close()",
    "unmap": "mapped.unmap()",
    "leaving the block": "mapped.__exit__(None, None, None)",
}

UNHEARD = {
    "in the background": ("every_millis(1)", "mapped[0] = 1; flushers()[0].join(PATIENCE_SECONDS)"),
    "when a view was dropped": ("ALWAYS", "mapped.as_slice_mut(0, 1)"),
    "when a buffer was given back": (
        "ALWAYS",
        "view = mapped.as_slice_mut(0, 1); buffer = memoryview(view); view.release(); buffer.release()",
    ),
}


@pytest.mark.parametrize(("policy", "work"), UNHEARD.values(), ids=UNHEARD.keys())
def test_a_failure_that_nobody_heard_of_is_raised_by_the_next_call(
    path: Path, interposer: Path, policy: str, work: str
) -> None:
    """Also by a close, when that is the next: else all is lost and every call has succeeded.

    Reading goes on, and hears nothing. Once it was raised, closing closes.
    """
    code = (
        PRELUDE
        + MAPPED
        + """
import logging
logging.disable()
unraisable = []
sys.unraisablehook = threading.excepthook = unraisable.append
found = {}
for name, use in arguments[3].items():
    mapped = created(arguments[1])
    word = mapped.atomic_u32(8)
    fail(FDATASYNC, 1, errno.EIO)
    exec(arguments[2])
    mapped[0], bytes(mapped.as_slice()), mapped.pending_bytes, mapped.needs_flush(), word.load(), repr(mapped)
    found[name] = [outcome(lambda: exec(use)), outcome(mapped.close), mapped.closed, len(flushers())]
answer([found, len(unraisable)])
"""
    )
    found, unraisable = run_python(code, path, policy, work, NEXT, preload=interposer)
    assert found == {name: ["FlushFailed", "", True, 0] for name in NEXT}
    assert unraisable == 0


def test_a_failure_at_the_end_of_a_dropped_handle_is_logged(path: Path, interposer: Path) -> None:
    """There is nobody to raise it to, and a destructor that raises prints a traceback that says nothing."""
    code = (
        PRELUDE
        + MAPPED
        + """
import logging
records, unraisable = [], []
logging.getLogger("mmapio").handle = lambda record: records.append(record.getMessage())
sys.unraisablehook = threading.excepthook = unraisable.append
mapped = created("MANUAL")
mapped[0] = 1
fail(FDATASYNC, 1, errno.EIO)
del mapped
mapped = created("every_millis(1)")
fail(FDATASYNC, 1, errno.EIO)
mapped[0] = 1
flushers()[0].join(PATIENCE_SECONDS)
answer([["Input/output error" in record for record in records], len(unraisable)])
"""
    )
    assert run_python(code, path, preload=interposer) == [[True, True], 0]


def test_a_fault_that_was_mended_does_not_end_the_flusher(path: Path, interposer: Path) -> None:
    """After refresh() the handle can be used again, so its policy holds again."""
    code = (
        PRELUDE
        + MAPPED
        + """
import logging
logging.disable()
mapped = created("every_millis(1)")
view = mapped.as_slice_mut(0, 10)
os.truncate(mapped.path, 0)
outcomes = [outcome(lambda: mapped[0])]
# Rounds of the flusher, which meet the fault. It may end of it: then there is nothing to wait for.
flushers()[0].join(0.3)
os.truncate(mapped.path, 4096)
mapped.refresh()
outcomes.append(outcome(view.release))
mapped[0] = 1
try:
    wait_until(lambda: not mapped.needs_flush())
except AssertionError:
    outcomes.append("never flushed")
answer(outcomes)
"""
    )
    assert run_python(code, path, preload=interposer) == ["MappingFault", "MappingFault"]


# In a forked child.

CHILDREN = {
    "closes": "mapped.close()",
    "drops": "del mapped; gc.collect()",
    "leaves the block": "mapped.__exit__(None, None, None)",
    "gives back a view": "view.release()",
    "drops a view": "del view",
    "gives back a buffer": "view.release(); buffer.release()",
    "gives back a view and closes": "view.release(); mapped.close()",
    "closes and gives back a view": "mapped.close(); view.release()",
    "drops all": "del view, buffer, mapped; gc.collect()",
}

FORKING = (
    PRELUDE
    + MAPPED
    + """
def forked(work):
    "What `work` does in a child: how it ended, its syncs, and what it left on the standard error."
    reading, writing = os.pipe()
    with open(arguments[0] + ".errors", "w+b") as errors:
        pid = os.fork()
        if pid == 0:
            import signal
            signal.alarm(PATIENCE_SECONDS)
            os.dup2(errors.fileno(), 2)
            before = sum(syncs()) + calls(SYNC_FILE_RANGE) + calls(PWRITE)
            try:
                kind = outcome(work)
                made = sum(syncs()) + calls(SYNC_FILE_RANGE) + calls(PWRITE) - before
                os.write(writing, f"{kind} {made}".encode())
            finally:
                os._exit(0)
        os.close(writing)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        errors.seek(0)
        with os.fdopen(reading) as answer:
            return [status, answer.read(), errors.read().decode()]
"""
)


@pytest.mark.parametrize("work", CHILDREN.values(), ids=CHILDREN.keys())
def test_a_child_syncs_nothing_of_what_it_inherited(path: Path, interposer: Path, work: str) -> None:
    """The parent owes it, and goes on; a child that syncs hears of a failure in the parent's place."""
    code = (
        FORKING
        + """
found = {}
for policy in arguments[2]:
    mapped = created(policy)
    view, buffer = mapped.as_slice_mut(0, 10), mapped.as_slice_mut(20, 10)
    buffer = memoryview(view) if "buffer.release" in arguments[1] else buffer
    child = forked(lambda: exec(arguments[1], globals()))
    found[policy] = [*child, mapped.pending_bytes >= 10, synced_by(mapped.close)]
    view = buffer = None
answer(found)
"""
    )
    policies = ["MANUAL", "ALWAYS", "every_bytes(1)", "every_writes(1)", f"every_millis({FAR})"]
    found = run_python(code, path, work, policies, preload=interposer)
    assert found == {policy: [0, " 0", "", True, 1] for policy in policies}


def test_a_child_that_syncs_is_seen(path: Path, interposer: Path) -> None:
    """The control of the tests of children: what they must not do would be noticed."""
    code = (
        FORKING
        + """
mapped = created("MANUAL")
sync, say = lambda: os.fdatasync(mapped.fileno()), lambda: os.write(2, b"said")
works = [sync, say, lambda: mapped[9999], lambda: os._exit(3)]
answer([forked(work) for work in works])
"""
    )
    found = run_python(code, path, preload=interposer)
    assert found == [[0, " 1", ""], [0, " 0", "said"], [0, "OutOfBounds 0", ""], [3, "", ""]]


def test_a_child_forked_while_the_flusher_holds_a_lock(path: Path, interposer: Path) -> None:
    """The thread is not there in the child, and never lets go: who waits for it there waits for ever."""
    code = (
        FORKING
        + """
import contextlib
mapped = created("every_millis(1)")
mapped[0] = 1
with contextlib.ExitStack() as held:
    # Whatever events there are, its own among them.
    for event in [each for each in gc.get_objects() if isinstance(each, threading.Event)]:
        held.enter_context(event._cond)
    child = forked(mapped.close)
mapped.close()
answer(child)
"""
    )
    assert run_python(code, path, preload=interposer) == [0, " 0", ""]


def test_a_child_that_ends_in_order_says_nothing(path: Path, tmp_path: Path) -> None:
    """What it runs at its exit is the parent's too: it has nothing to flush, nor to complain of."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("no strace: NOT TESTED that a child flushes nothing at its exit")
    code = (
        "import threading\n"
        + MAPPED
        + f"""
kept = [created("MANUAL", 0), created("every_millis({FAR})", 1), created("ALWAYS", 2)]
for mapped in kept:
    mapped.update_region(0, b"owed")
views = [mapped.as_slice_mut(0, 10) for mapped in kept]
errors = os.open(arguments[0] + ".errors", os.O_RDWR | os.O_CREAT)
pid = os.fork()
if pid == 0:
    os.dup2(errors, 2)
    sys.exit(0)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
answer([pid, status, os.pread(errors, 10000, 0).decode()])
os._exit(0)
"""
    )
    trace = tmp_path / "trace"
    command = (strace, "-f", "-qq", "-o", str(trace), "-e", "trace=fdatasync,fsync,msync,sync_file_range")
    pid, status, errors = run_python(code, path, prefix=command)
    made = [line for line in trace.read_text().splitlines() if re.match(rf"{pid} +\w+\(", line)]
    assert (status, errors, made) == (0, "", [])
