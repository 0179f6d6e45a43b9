"""Somebody is killed in a sync, and nobody knows whether it failed.

The kernel says once that it could not write pages, to whoever syncs, and takes them for clean from then on.
Killed that moment, he has told nobody; the next sync finds nothing to write, succeeds, and would make of what
may be lost something durable.

Each child is killed when fdatasync has returned: its pages are clean then, whatever became of them on the
device. What the next sync has to write is asked of the kernel, at the system call: how many pages of the file
are dirty in this process. On a disk that others use, their commit of the journal or the kernel's own
writeback may have written a page just before, and then the test is done once more; what nobody stores again
is clean every time.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.crash.images import shim
from tests.unit.mmapio.interposer import PRELUDE as INTERPOSED
from tests.unit.mmapio.processes import run_python

PAGE = 4096
ATTEMPTS = 4
INFLIGHT_OFFSET = 4096 + 72

CODE = """
import os, re, signal, struct, threading
from pathlib import Path
from mmapio import FlushPolicy
from mmaplog import Log
from tests.crash.images.shim import SYNC, Listening

def opened(path, mode="c", **options):
    return Log.open(path, mode, **{"flush_policy": FlushPolicy.MANUAL, "segment_bytes": 64 << 10, **options})

def dirty_pages():
    "How many pages of each file that is mapped here have not been written."
    pages, name = {}, None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if mapping := re.match(r"[0-9a-f]+-[0-9a-f]+ (\\S+) ?.*?(/.*)?$", line):
            name = mapping[2] if mapping[1] == "rw-s" else None
        elif name and (size := re.match(r"(?:Private|Shared)_Dirty: +(\\d+) kB", line)):
            pages[name] = pages.get(name, 0) + int(size[1]) // 4
    return pages

def synced_by(work):
    '''The syncs that `work` makes, in order: [file, how many of its pages were dirty, then or before].

    Of several files that are synced in turn, the last have waited for long, and others may write them.
    '''
    seen, most = [], {}
    def told(call, fd, after, failed):
        if call == SYNC and not after:
            path = os.readlink(f"/proc/self/fd/{fd}")
            for name, pages in dirty_pages().items():
                most[name] = max(pages, most.get(name, 0))
            seen.append([os.path.basename(path), most.pop(path, 0)])
    with Listening(told):
        result = work()
    return seen, result

def killed_at(nth, work, thread="MainThread"):
    "Do `work` in a child that is killed when sync `nth` of a thread has returned: whether there was one."
    pid = os.fork()
    if pid == 0:
        left = [nth]
        def told(call, fd, after, failed):
            if call == SYNC and after and threading.current_thread().name == thread:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        signal.alarm(300)
        with Listening(told):
            work()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -9), status
    return status != 0

def inflight(path):
    return struct.unpack_from("<Q", (Path(path) / "CONTROL").read_bytes(), 4096 + 72)[0]

def refuse_memory_files():
    "Where pages never become clean there is nothing to be seen."
    probe = Path(arguments[0]).parent / "probe"
    with opened(probe) as log:
        log.append(b"x", durable=True)
        (name,) = probe.glob("*.seg")
        if dirty_pages()[str(name)]:
            answer(None)
            raise SystemExit
refuse_memory_files()
path = arguments[0]
"""


@pytest.fixture(scope="session")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled library that tells of each sync."""
    try:
        return shim.build(tmp_path_factory.mktemp("recorder"))
    except shim.NoCompiler:
        pytest.skip("no C compiler: NOT TESTED what follows when somebody is killed in a sync")


def answered(code: str, *arguments: object, recorder: Path) -> Any:
    """What `code` answers; skipped where the test's files are in memory."""
    found = run_python(CODE + code, *arguments, preload=recorder)
    if found is None:
        pytest.skip("files in memory have no clean pages: NOT TESTED which pages a sync writes")
    return found


def inflight(path: Path) -> int:
    """The word `sync_inflight` of a log."""
    return int(struct.unpack_from("<Q", (path / "CONTROL").read_bytes(), INFLIGHT_OFFSET)[0])


class WrittenBefore(AssertionError):
    """A sync found fewer dirty pages than it should have had to write."""


def dirty(syncs: list[tuple[str, int]], name: str, least: int) -> None:
    """Some sync of a file had to write so many pages at least; raises WrittenBefore."""
    found = max((pages for synced, pages in syncs if synced == name), default=0)
    if found < least:
        raise WrittenBefore(f"{found} pages of {name}, not {least}: {syncs}")


def attempted(test: Callable[..., None]) -> Callable[..., None]:
    """The test, done again in a place of its own while others have written its pages before it."""

    @functools.wraps(test)
    def repeated(tmp_path: Path, **arguments: Any) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            place = tmp_path / str(attempt)
            place.mkdir()
            try:
                test(place, **arguments)
                break
            except WrittenBefore:
                if attempt == ATTEMPTS:
                    raise

    return repeated


@attempted
def test_the_next_writer_writes_again_what_the_sync_covered(tmp_path: Path, recorder: Path) -> None:
    """He found CONTROL in order and clean pages, and called durable what was perhaps never written."""
    code = """
def work():
    log = opened(path, segment_bytes=1 << 20)
    log.append(b"first")
    for _ in range(100):
        log.append(b"x" * 4000)
    log.flush()
opened(path, segment_bytes=1 << 20).close()
assert killed_at(2, work)
before = inflight(path)
syncs, log = synced_by(lambda: opened(path, "w"))
found = [before, inflight(path), log.recovered, len(log), log.append(b"next", durable=True), log.durable]
(name,) = [entry[2] for entry in log.segments.listing()]
log.close()
answer([syncs, name, found])
"""
    syncs, name, found = answered(code, tmp_path / "log", recorder=recorder)
    # The records' pages, and the header's.
    dirty(syncs, name, 100 * 4016 // PAGE + 1)
    assert found == [1, 0, False, 101, 101, 102]
    assert "log" in [synced for synced, _ in syncs]


@pytest.mark.parametrize("shared", [False, True])
@attempted
def test_segments_that_were_rolled_past_are_written_again(
    tmp_path: Path, recorder: Path, shared: bool
) -> None:
    """Whichever of them it was that the sync was at, and the directory with their names."""
    code = """
def work(path):
    log = opened(path, shared=arguments[1])
    log.append(b"durable", durable=True)
    for _ in range(40):
        log.append(b"x" * 5000)
    log.flush()
found = []
for nth in range(1, 20):
    here = f"{path}{nth}"
    opened(here).close()
    if not killed_at(nth, lambda: work(here)):
        break
    before = inflight(here)
    syncs, log = synced_by(lambda: opened(here, "w", shared=arguments[1]))
    names = [entry[2] for entry in log.segments.listing()]
    found.append([before, inflight(here), log.durable, len(log), names, syncs])
    log.flush()
    assert log.durable == len(log) and log.verify().damages == ()
    log.close()
answer(found)
"""
    found = answered(code, tmp_path / "log", shared, recorder=recorder)
    # The mark, the first record, then four segments and the directory.
    assert len(found) >= 7
    for before, after, _, _, _, _ in found:
        assert after == 0
        assert before in (0, 1)
    # Killed in the last syncs, all four are at stake.
    rolled = [each for each in found if len(each[4]) == 4]
    assert len(rolled) >= 4
    for before, _, durable, length, names, syncs in rolled[:4]:
        for name in names[:3]:
            dirty(syncs, name, 12 * 5016 // PAGE)
        dirty(syncs, names[3], 2)
        assert (before, durable, length) == (1, 1, 41)
        assert any(not synced.endswith(".seg") for synced, _ in syncs)


@attempted
def test_who_syncs_next_of_several_writers_writes_it_again(tmp_path: Path, recorder: Path) -> None:
    """The leader was killed. The one that followed synced clean pages, and said that all was durable."""
    code = """
log = opened(path, segment_bytes=1 << 20, shared=True)
log.append(b"first", durable=True)
def work():
    other = opened(path, "w", segment_bytes=1 << 20, shared=True)
    for _ in range(100):
        other.append(b"x" * 4000)
    other.flush()
assert killed_at(1, work)
before = inflight(path)
log.append(b"meanwhile")
syncs, _ = synced_by(log.flush)
(name,) = [entry[2] for entry in log.segments.listing()]
found = [before, inflight(path), log.durable, len(log)]
again, _ = synced_by(lambda: log.append(b"z", durable=True))
log.close()
answer([syncs, again, name, found])
"""
    syncs, again, name, found = answered(code, tmp_path / "log", recorder=recorder)
    dirty(syncs, name, 100 * 4016 // PAGE)
    assert found == [1, 0, 102, 102]
    # Once it is made good, a sync is of one page again.
    assert [synced for synced, _ in again] == [name]
    assert max(pages for _, pages in again) <= 2


@pytest.mark.parametrize("shared", [False, True])
@attempted
def test_that_a_log_was_opened_is_durable_before_its_first_record(
    tmp_path: Path, recorder: Path, shared: bool
) -> None:
    """Killed in the sync of the mark that says so: the next one read it in memory, and did not sync it.

    After a power cut the log ended where it had been closed, and numbers that somebody knew came again.
    """
    code = """
with opened(path) as log:
    log.append(b"first")
living = opened(path, "w", shared=True) if arguments[1] else None
assert killed_at(1, lambda: opened(path, "w", shared=arguments[1]).append(b"second"))
before = inflight(path)
if living is None:
    syncs, log = synced_by(lambda: opened(path, "w"))
else:
    log = living
    syncs, _ = synced_by(lambda: log.append(b"third"))
(name,) = [entry[2] for entry in log.segments.listing()]
after = inflight(path)
log.close()
answer([syncs, name, before, after])
"""
    syncs, name, before, after = answered(code, tmp_path / "log", shared, recorder=recorder)
    dirty(syncs, name, 1)
    assert (before, after) == (1, 0)


@pytest.mark.parametrize("shared", [False, True])
@attempted
def test_that_a_dead_append_was_zeroed_is_durable_before_the_next(
    tmp_path: Path, recorder: Path, shared: bool
) -> None:
    """Who zeroed it was killed in the sync; the next one found zeros, and did not sync them."""
    code = """
def die(log):
    log.control.mutexes()[0].acquire()
    end = log.control.tail[2]
    with open(path + "/CONTROL", "r+b") as control:
        control.seek(4096 + 56)
        control.write(struct.pack("<Q", end + 9000))
    (segment,) = Path(path).glob("*.seg")
    with segment.open("r+b") as file:
        file.seek(end)
        file.write(b"\\xab" * 9000)
    os.kill(os.getpid(), signal.SIGKILL)
living = opened(path, shared=arguments[1])
living.append(b"first", durable=True)
if not arguments[1]:
    living.close()
def leave():
    log = opened(path, "w", shared=True)
    log.append(b"second", durable=True)
    die(log)
assert killed_at(99, leave)
assert killed_at(1, lambda: opened(path, "w", shared=arguments[1]).append(b"x"))
before = inflight(path)
if arguments[1]:
    log = living
    syncs, _ = synced_by(lambda: log.append(b"third"))
else:
    syncs, log = synced_by(lambda: opened(path, "w"))
(name,) = [entry[2] for entry in log.segments.listing()]
found = [before, inflight(path), log.control.in_flight == log.control.tail[2]]
log.close()
answer([syncs, name, found])
"""
    syncs, name, found = answered(code, tmp_path / "log", shared, recorder=recorder)
    dirty(syncs, name, 3)
    assert found == [1, 0, True]


@attempted
def test_killed_in_the_sync_of_the_thread_that_goes_ahead(tmp_path: Path, recorder: Path) -> None:
    """It covers what was appended before, as any sync of the file, and the thread tells nobody."""
    code = """
def work():
    log = opened(path, segment_bytes=8 << 20)
    while True:
        for _ in range(20):
            log.append(b"x" * 4000)
        log.flush()
        for _ in range(5):
            log.append(b"y" * 4000)
assert killed_at(1, work, thread="mmaplog-preparer")
before = inflight(path)
syncs, log = synced_by(lambda: opened(path, "w"))
at_stake = len(log) - log.durable
(name,) = [entry[2] for entry in log.segments.listing()]
log.close()
answer([syncs, name, before, at_stake, inflight(path)])
"""
    syncs, name, before, at_stake, after = answered(code, tmp_path / "log", recorder=recorder)
    dirty(syncs, name, at_stake * 4016 // PAGE + 1)
    assert before & 2
    assert after == 0


@attempted
def test_killed_while_a_cut_is_finished(tmp_path: Path, recorder: Path) -> None:
    """The footer was there, so whoever finished it did not store it again, and synced a clean page."""
    code = """
found = []
for nth in range(1, 40):
    here = f"{path}{nth}"
    with opened(here) as log:
        for number in range(40):
            log.append(b"x" * 5000)
    died = killed_at(nth, lambda: opened(here, "w").truncate_after(14))
    if not died:
        break
    cut = b'"cut"' in Path(here, "MANIFEST").read_bytes()
    syncs, log = synced_by(lambda: opened(here, "w"))
    last = [entry[2] for entry in log.segments.listing() if entry[0] < 14][-1]
    found.append([cut, len(log), last, syncs])
    log.close()
answer(found)
"""
    found = answered(code, tmp_path / "log", recorder=recorder)
    finished = [each for each in found if each[0]]
    assert len(finished) >= 3
    for _, length, last, syncs in finished:
        assert length == 14
        dirty(syncs, last, 1)


@attempted
def test_killed_in_the_syncs_of_a_recovery(tmp_path: Path, recorder: Path) -> None:
    """CONTROL was lost: the next one recovered the log again, and synced pages that were clean."""
    code = """
found = []
for nth in range(1, 20):
    here = f"{path}{nth}"
    log = opened(here)
    for number in range(40):
        log.append(b"x" * 5000)
    copy = here + "-copy"
    os.mkdir(copy)
    for file in [each for each in Path(here).iterdir() if each.name != "CONTROL"]:
        (Path(copy) / file.name).write_bytes(file.read_bytes())
    if not killed_at(nth, lambda: opened(copy, "w")):
        break
    before = inflight(copy) if os.path.exists(copy + "/CONTROL") else None
    syncs, log = synced_by(lambda: opened(copy, "w"))
    names = [entry[2] for entry in log.segments.listing()]
    found.append([before, inflight(copy), log.durable, len(log), names, syncs])
    log.close()
answer(found)
"""
    found = answered(code, tmp_path / "log", recorder=recorder)
    recovering = [each for each in found if each[0]]
    assert len(recovering) >= 5
    for before, after, durable, length, names, syncs in recovering:
        for name in names[:3]:
            dirty(syncs, name, 12 * 5016 // PAGE)
        assert (before, after, durable, length) == (4, 0, 40, 40)


def test_a_reader_writes_nothing(tmp_path: Path, recorder: Path) -> None:
    """Who only reads is told nothing by that word, and leaves it to the next writer."""
    code = """
def work():
    log = opened(path)
    log.append(b"first")
    log.flush()
opened(path).close()
assert killed_at(2, work)
files = {file.name: file.read_bytes() for file in Path(path).iterdir()}
syncs, log = synced_by(lambda: opened(path, "r"))
found = [bytes(entry.payload).decode() for entry in log.replay()]
durable = log.durable
log.close()
answer([syncs, found, durable, files == {file.name: file.read_bytes() for file in Path(path).iterdir()}])
"""
    assert answered(code, tmp_path / "log", recorder=recorder) == [[], ["first"], 0, True]
    assert inflight(tmp_path / "log") == 1


@attempted
def test_an_exception_in_a_sync_is_as_being_killed(tmp_path: Path, recorder: Path) -> None:
    """It promised nothing. The same handle wrote nothing the next time, for the pages were clean."""
    code = """
from mmapio import _os
log = opened(path)
log.append(b"durable", durable=True)
for _ in range(13):
    log.append(b"x" * 5000)
sync = _os.sync
def interrupted(opened, **named):
    raise MemoryError
_os.sync = interrupted
try:
    log.flush()
except MemoryError:
    pass
else:
    raise AssertionError("there was no name to sync")
_os.sync = sync
before = inflight(path)
syncs, _ = synced_by(log.flush)
names = [entry[2] for entry in log.segments.listing()]
found = [before, inflight(path), log.durable]
log.close()
answer([syncs, names, found])
"""
    syncs, names, found = answered(code, tmp_path / "log", recorder=recorder)
    dirty(syncs, names[0], 12 * 5016 // PAGE)
    dirty(syncs, names[1], 2)
    assert found == [1, 0, 14]


def test_a_durable_append_syncs_its_segment_and_nothing_else(tmp_path: Path, recorder: Path) -> None:
    """The word is in CONTROL, which is not synced: as many calls as without it, and as few pages."""
    code = """
log = opened(path, segment_bytes=1 << 20)
log.append(b"first", durable=True)
def work():
    for _ in range(10):
        log.append(b"x" * 100, durable=True)
syncs, _ = synced_by(work)
log.close()
answer([syncs, inflight(path)])
"""
    syncs, after = answered(code, tmp_path / "log", recorder=recorder)
    assert len(syncs) == 10
    assert {name[-4:] for name, _ in syncs} == {".seg"}
    assert max(pages for _, pages in syncs) == 1
    assert after == 0


DIE = (
    INTERPOSED
    + """
import os, signal
from pathlib import Path
from mmapio import FlushPolicy
from mmaplog import Log
path = arguments[0]
def opened(path, mode="c", **options):
    return Log.open(path, mode, **{"flush_policy": FlushPolicy.MANUAL, **options})
def die_in_a_failed_sync(**options):
    "Before anybody could say so."
    pid = os.fork()
    if pid == 0:
        signal.alarm(300)
        log = opened(path, "w", **options)
        for number in range(20):
            log.append(b"%d/" % number * 1000)
        fail(FDATASYNC, 1, errno.EIO)
        with Held(FDATASYNC, log.flush):
            os.kill(os.getpid(), signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == -9, status
def content(log):
    return [bytes(entry.payload) for entry in log.replay()]
model = [b"%d/" % number * 1000 for number in range(20)]
"""
)


def test_when_it_fails_again_it_is_known(tmp_path: Path, interposer: Path) -> None:
    """A disk that cannot write those pages: what is not durable is copied to new ones, by who is alone."""
    code = (
        DIE
        + """
opened(path).close()
die_in_a_failed_sync()
reader = opened(path, "r")
fail(FDATASYNC, 1, errno.EIO)
refused = outcome(lambda: opened(path, "w"))
poison = reader.stats()["poison"]
del reader
log = opened(path, "w")
found = [refused, poison, log.recovered, log.durable, content(log) == model, log.stats()["poison"]]
log.close()
die = [each.suffix for each in Path(path).iterdir() if each.suffix == ".bad"]
answer([*found, die])
"""
    )
    found = run_python(code, tmp_path / "log", preload=interposer)
    assert found == ["Poisoned", 5, True, 20, True, 0, [".bad"]]
    assert inflight(tmp_path / "log") == 0


def test_when_it_fails_again_nobody_of_several_goes_on(tmp_path: Path, interposer: Path) -> None:
    """FlushFailed once, Poisoned from then on."""
    code = (
        DIE
        + """
log = opened(path, shared=True)
other = opened(path, shared=True)
die_in_a_failed_sync(shared=True)
fail(FDATASYNC, 1, errno.EIO)
answer([outcome(log.flush), outcome(log.flush), outcome(lambda: other.append(b"x")), log.durable])
"""
    )
    found = run_python(code, tmp_path / "log", preload=interposer)
    assert found == ["FlushFailed", "Poisoned", "Poisoned", 0]


def test_who_waited_for_a_sync_that_failed_does_not_sync(tmp_path: Path, interposer: Path) -> None:
    """He was let in before it failed. His sync found clean pages, and what was lost was called durable."""
    code = (
        DIE
        + """
log = opened(path, shared=True)
other = opened(path, shared=True)
log.append(b"x")
fail(FDATASYNC, 1, errno.EIO)
with Held(FDATASYNC, log.flush) as held:
    library.interposer_let_on_later()
    waited = outcome(other.flush)
answer([held.outcome, waited, other.durable])
"""
    )
    found = run_python(code, tmp_path / "log", preload=interposer)
    assert found == ["FlushFailed", "Poisoned", 0]


@pytest.mark.parametrize("shared", [False, True])
def test_what_the_kernel_did_not_keep_is_not_called_durable(
    tmp_path: Path, interposer: Path, shared: bool
) -> None:
    """A page that could not be written and was dropped is read from the device as it was before: zeros."""
    code = (
        DIE
        + """
living = opened(path, shared=True) if arguments[1] else opened(path).close()
die_in_a_failed_sync(shared=arguments[1])
(segment,) = Path(path).glob("*.seg")
with segment.open("r+b") as file:
    file.seek(8192)
    file.write(bytes(4096))
if living is None:
    with opened(path, "w") as log:
        kept = [bytes(entry.payload) for entry in log.replay()]
        found = [log.recovered, log.durable == log.committed == len(kept)]
else:
    found = [outcome(living.flush), outcome(living.flush), living.durable]
answer(found)
"""
    )
    found = run_python(code, tmp_path / "log", shared, preload=interposer)
    assert found == (["CorruptionError", "Poisoned", 0] if shared else [True, True])
