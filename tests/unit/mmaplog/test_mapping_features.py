"""What of the mapping layer serves what in a log, as the kernel sees it: a table in docs/architecture.md.

Each row names its test. None counts calls of this project's own code.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.unit.mmapio.processes import ROOT, run_python
from tests.unit.mmapio.tracing import Call, traced

PROLOGUE = """
import os, pathlib, threading
from mmaplog import FlushPolicy, Log
MANUAL = FlushPolicy.MANUAL

def areas(part):
    "The flags of each mapping of a file whose name has this part, as /proc/self/smaps has them."
    found, name, access = [], "", ""
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if words[0].endswith(":"):
            if words[0] == "VmFlags:" and part in name:
                found.append((access, words[1:]))
        else:
            name, access = (words[5] if len(words) > 5 else ""), words[1]
    return found

def filled(path, **options):
    with Log.open(path, flush_policy=MANUAL, **options) as log:
        log.append_many([b"x" * 100] * 30000)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the log is to be."""
    return tmp_path / "log"


def seen(
    path: Path, code: str, events: str, lacking: str, prologue: str = PROLOGUE
) -> tuple[Any, list[Call]]:
    """What a process answers that runs the code, and its calls; the whole trace lies beside the log."""
    return traced(prologue + code, path, events=events, trace=path.with_name("trace"), lacking=lacking)


def test_readers_map_shared_and_read_only(path: Path) -> None:
    """A reader that can store to a log can damage it."""
    code = """
filled(arguments[0], segment_bytes=1 << 20)
log = Log.open(arguments[0], "r")
list(log.replay())
answer([sorted({access for access, _ in areas(part)}) for part in (".seg", "CONTROL")])
"""
    assert run_python(PROLOGUE + code, path) == [["r--s"], ["r--s"]]


def test_a_scan_is_announced(path: Path) -> None:
    """VM_SEQ_READ, `sr`: the kernel reads further ahead. Not for a look-up, which reads a few pages.

    Nor for look-ups that come after: it stayed as it was, and the kernel kept what they read for less long.
    """
    code = """
filled(arguments[0], segment_bytes=1 << 20)
log = Log.open(arguments[0], "r")
log[0], log[15000]
def announced():
    return sum("sr" in flags for _, flags in areas(".seg"))
found = [announced()]
replay, other = log.replay(), log.replay()
next(replay), next(other)
found.append(announced())
del other
found.append(announced())
for entry in replay:
    found.append(announced()) if entry.seq % 1000 == 0 else None
assert entry.seq == 29999
answer([found[:3], min(found[3:13]), max(found[3:]), announced()])
"""
    assert run_python(PROLOGUE + code, path) == [[0, 1, 1], 1, 1, 0]


def test_verify_asks_ahead_by_the_piece(path: Path) -> None:
    """MADV_WILLNEED for the piece to come, and one look at each byte."""
    code = """
filled(arguments[0])
log = Log.open(arguments[0], "r")
log.verify()
answer(log.stats()["segments"])
"""
    large = PROLOGUE.replace("30000", "300000")
    _, calls = seen(path, code, "madvise", "what verify asks the kernel for", prologue=large)
    asked = [call for call in calls if call.arguments[2] in ("MADV_WILLNEED", "3")]
    # 36 MB in pieces of 8.
    assert len(asked) >= 4


def test_growth_allocates_and_never_moves(path: Path) -> None:
    """fallocate for every window; no mremap, and a view from before is where it was."""
    code = """
import numpy
log = Log.open(arguments[0], flush_policy=MANUAL)
log.append(b"first" * 10)
view = numpy.frombuffer(log[0].payload, dtype="u1")
before = view.ctypes.data
log.append_many([b"x" * 1000] * 30000)
again = numpy.frombuffer(log[0].payload, dtype="u1")
answer([before == view.ctypes.data == again.ctypes.data, bytes(view) == b"first" * 10])
"""
    answer, calls = seen(path, code, "fallocate,mremap", "how a segment grows")
    assert answer == [True, True]
    assert sum(call.name == "fallocate" for call in calls) >= 8
    assert not [call for call in calls if call.name == "mremap" and "MREMAP" in call.arguments[3:4]]


def test_appends_are_stores_and_syncs_are_of_the_segment(path: Path) -> None:
    """One fdatasync makes a record durable; appending it made no call at all, and CONTROL is never synced."""
    code = """
log = Log.open(arguments[0], flush_policy=MANUAL)
log.append(b"x", durable=True)
os.getppid()
for _ in range(100):
    log.append(b"x" * 10)
os.getppid()
log.append(b"x", durable=True)
os.getppid()
answer(log.durable)
"""
    answer, calls = seen(path, code, "all", "which calls an append makes")
    assert answer == 102
    marks = [at for at, call in enumerate(calls) if call.name == "getppid"][-3:]
    assert [call.name for call in calls[marks[0] + 1 : marks[1]]] == []
    durable = [call.name for call in calls[marks[1] + 1 : marks[2]]]
    # Beside it a look whether the file is as long as it was, and a wake-up for who waits. Not by fstat: it
    # asks for the file's times, too, and that once doubled what every durable append had to write.
    assert durable.count("fdatasync") == 1
    assert set(durable) <= {"fdatasync", "statx", "futex"}


def test_a_reserved_record_is_written_where_it_stays(path: Path) -> None:
    """Its bytes are in the file as soon as they are stored, and no call was made for that."""
    code = """
log = Log.open(arguments[0], flush_policy=MANUAL)
log.append(b"first")
(segment,) = pathlib.Path(arguments[0]).glob("*.seg")
with log.reserve(8) as buffer:
    os.getppid()
    buffer[0:8] = b"in place"
    os.getppid()
    seen = b"in place" in segment.read_bytes()
answer([seen, {access for access, _ in areas(segment.name)} >= {"rw-s"}])
"""
    answer, calls = seen(path, code, "all", "how a reserved record is written")
    assert answer == [True, True]
    marks = [at for at, call in enumerate(calls) if call.name == "getppid"][-2:]
    assert calls[marks[0] + 1 : marks[1]] == []


def test_a_thread_syncs_within_the_time_of_the_policy(path: Path) -> None:
    """One that does nothing else: who appends makes no call for that."""
    code = """
log = Log.open(arguments[0], flush_policy=FlushPolicy.every_millis(20))
os.getppid()
log.append(b"x")
while log.durable == 0:
    os.sched_yield()
os.getppid()
answer(log.durable)
"""
    trace = path.with_name("trace")
    answer, _ = seen(path, code, "getppid,fdatasync", "who syncs in the background")
    assert answer == 1
    lines = trace.read_text().splitlines()
    begin, end = [at for at, line in enumerate(lines) if "getppid()" in line][-2:]
    who = {line.split()[0] for line in lines[begin:end] if "fdatasync(" in line}
    assert who
    assert lines[begin].split()[0] not in who


def test_a_directory_is_watched_by_the_kernel(path: Path) -> None:
    """inotify tells of segments that come and go; nobody lists the directory every so often."""
    pytest.importorskip("watchfiles", reason="no watchfiles: NOT TESTED what watches a directory")
    code = """
log = Log.open(arguments[0], flush_policy=MANUAL, segment_bytes=1 << 16)
told = threading.Event()
watch = log.watch_segments(lambda change: told.set())
log.append_many([b"x" * 1000] * 200)
answer(told.wait(60))
watch.stop()
"""
    answer, calls = seen(path, code, "inotify_init1,inotify_add_watch", "what watches a directory")
    assert answer is True
    watched = [call for call in calls if call.name == "inotify_add_watch"]
    assert any(str(path) in call.arguments[1] for call in watched)


def test_control_is_words_in_shared_memory(path: Path) -> None:
    """Another process sees each append at once, without a call of either: the page is the same."""
    code = """
import mmap
log = Log.open(arguments[0], flush_policy=MANUAL)
with open(arguments[0] + "/CONTROL", "rb") as file:
    words = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
def seq():
    turn = int.from_bytes(words[4096:4104], "little")
    return int.from_bytes(words[4104 + 24 * (turn & 1):][:8], "little")
answer([(log.append(b"x"), seq())[1] for _ in range(3)])
"""
    assert run_python(PROLOGUE + code, path) == [1, 2, 3]


def test_followers_sleep_in_the_kernel(path: Path) -> None:
    """On a futex, whose wake-up is one call; and while they sleep no call is made."""
    code = """
log = Log.open(arguments[0], flush_policy=MANUAL)
follower = log.follow()
got = []
thread = threading.Thread(target=lambda: got.append(next(follower)))
thread.start()
# The word by which a follower says that he may be asleep.
while not any(pathlib.Path(arguments[0], "CONTROL").read_bytes()[4096 + 136:][:8]):
    os.sched_yield()
# And then it is: until then it has nothing else to wait for.
stat = pathlib.Path("/proc/self/task", str(thread.native_id), "stat")
while stat.read_text().rpartition(")")[2].split()[0] != "S":
    os.sched_yield()
log.append(b"x")
thread.join()
answer(len(got))
"""
    answer, _ = seen(path, code, "futex,membarrier", "how a follower sleeps")
    assert answer == 1
    # Whole lines: a call that another thread's comes in between is told in two parts.
    lines = path.with_name("trace").read_text().splitlines()
    assert any(" futex(" in line and "FUTEX_WAKE, " in line for line in lines)
    assert any(" futex(" in line and "FUTEX_WAIT, " in line for line in lines)
    assert any("membarrier(" in line for line in lines)


def test_locks_are_the_kernels(path: Path) -> None:
    """Of the open file description, so that they go with it; the bytes are named in docs/format-log.md."""
    code = """
log = Log.open(arguments[0], flush_policy=MANUAL)
inode = os.stat(arguments[0] + "/LOCK").st_ino
held = [line.split() for line in open("/proc/locks") if f":{inode} " in line]
answer(sorted([words[1], words[3], int(words[6]), int(words[7])] for words in held))
"""
    assert run_python(PROLOGUE + code, path) == [["OFDLCK", "READ", 2, 2], ["OFDLCK", "WRITE", 1, 1]]


def test_several_writers_share_a_mutex_in_the_file(path: Path) -> None:
    """A robust one, which the kernel gives to the next when its owner is killed."""
    code = """
import signal
a = Log.open(arguments[0], flush_policy=MANUAL, shared=True)
a.append(b"first")
pid = os.fork()
if pid == 0:
    b = Log.open(arguments[0], flush_policy=MANUAL, shared=True)
    b.reserve(100).__enter__()[0:5] = b"never"
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(pid, 0)
word = int.from_bytes(pathlib.Path(arguments[0], "CONTROL").read_bytes()[4352 + 64:][:4], "little")
seq = a.append(b"second")
answer([bool(word & 0x40000000), seq, [bytes(entry.payload).decode() for entry in a.replay()]])
"""
    assert run_python(PROLOGUE + code, path) == [True, 1, ["first", "second"]]


def test_huge_pages_are_not_asked_for(path: Path) -> None:
    """They would multiply what every durable append has to write; nor does the kernel give them by itself."""
    code = """
log = Log.open(arguments[0], flush_policy=MANUAL)
for _ in range(8000):
    log.append(b"x" * 2000)
lines = pathlib.Path("/proc/self/smaps").read_text().splitlines()
huge = [line for line in lines if line.startswith("FilePmdMapped")]
answer([sum(int(line.split()[1]) for line in huge), any("hg" in flags for _, flags in areas(".seg"))])
"""
    assert run_python(PROLOGUE + code, path) == [0, False]


def test_what_was_written_is_resident_without_being_read(path: Path) -> None:
    """mincore: a log that was just written is replayed from memory."""
    code = """
from mmapio import MemoryMappedFile
filled(arguments[0])
(segment,) = pathlib.Path(arguments[0]).glob("*.seg")
with MemoryMappedFile.open_ro(segment) as file:
    answer(file.resident(0, 3_000_000))
"""
    assert run_python(PROLOGUE + code, path) >= 3_000_000


def test_the_table_names_these_tests() -> None:
    """A row without a proof, and a proof without a row, are noticed."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    section = page.split("## What of the mapping layer serves what", 1)[1].split("\n## ", 1)[0]
    named = set(re.findall(r"`(test_\w+)`", section))
    here = {name for name in globals() if name.startswith("test_")}
    elsewhere = {
        name
        for each in (ROOT / "tests" / "unit").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", each.read_text(), re.MULTILINE)
    }
    assert here - {"test_the_table_names_these_tests"} <= named <= elsewhere


def test_a_dry_run_works_on_copy_on_write_mappings(path: Path) -> None:
    """`rw-p`: it can be stored to, and no store reaches the file; what is changed are pages of its own."""
    code = """
from mmaplog import remains, repair
filled(arguments[0], segment_bytes=1 << 20)
segment = sorted(pathlib.Path(arguments[0]).glob("*.seg"))[0]
with segment.open("r+b") as file:
    file.seek(100_000)
    file.write(b"damage")
before = segment.read_bytes()
modes, scan = set(), remains.scan
def changing(data, *rest):
    found = scan(data, *rest)
    modes.update(access for access, _ in areas(".seg"))
    data[100_000:100_006] = b"stores"
    return found
remains.scan = changing
lost = repair(arguments[0], dry_run=True).lost
answer([sorted(modes), len(lost), segment.read_bytes() == before])
"""
    assert run_python(PROLOGUE + code, path) == [["rw-p"], 1, True]
