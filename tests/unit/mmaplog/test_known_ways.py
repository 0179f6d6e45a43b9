"""Records by their numbers, for a handle that was there before: what it knows is true, or it looks anew."""

from __future__ import annotations

import os
import random
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from mmapio import Closed
from mmaplog import CorruptionError, Entry, FlushPolicy, FormatError, Log
from mmaplog.errors import TooOld
from tests.unit.mmapio.processes import TIMEOUT_SECONDS, run_python
from tests.unit.mmapio.tracing import calls_between
from tests.unit.mmaplog.segment_file import HEADER_SIZE, SegmentFile, segment_paths

COUNT = 6000
SEGMENT = 64 << 10
#: What is remembered lies so many bytes apart, or a record more.
SPACING = 1024


def payload(number: int, turn: int = 0) -> bytes:
    """Of no fixed size, and of all sizes on which ways of finding it might depend."""
    return b"%d of %d." % (number, turn) * (number * number % 7) + bytes(3000) * (number % 500 == 499)


def opened(path: Path, mode: str = "c", *, timestamps: bool = False) -> Log:
    """The log, with small segments."""
    return Log.open(path, mode, flush_policy=FlushPolicy.NEVER, segment_bytes=SEGMENT, timestamps=timestamps)


@pytest.fixture(params=[False, True], ids=["plain", "times"])
def handles(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Log, Log]]:
    """Who writes a log of several segments and who reads it, both of whom have looked at each record."""
    path = tmp_path / "log"
    with opened(path, timestamps=request.param) as writer:
        writer.append_many([payload(number) for number in range(COUNT)])
        with opened(path, "r") as reader:
            for log in (writer, reader):
                assert contents(log, range(COUNT)) == [payload(number) for number in range(COUNT)]
            yield writer, reader


def is_in(kept: set[int], entry: Entry) -> bool:
    """What a compaction keeps."""
    return entry.seq in kept


def contents(log: Log, numbers: range | list[int]) -> list[bytes]:
    """What the log has there, each looked up by itself, in no order."""
    shuffled = list(numbers)
    random.Random(7).shuffle(shuffled)
    found = {}
    for number in shuffled:
        entry = log[number]
        assert entry.seq == number
        found[number] = bytes(entry.payload)
    assert [bytes(entry.payload) for entry in log.read_many(shuffled)] == [found[each] for each in shuffled]
    return [found[number] for number in numbers]


def test_a_look_up_asks_the_system_for_nothing(tmp_path: Path) -> None:
    """Neither what is in the directory, nor how long the file is that is written."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("no strace: NOT TESTED what a look-up asks of the system")
    # The segment could grow.
    with Log.open(tmp_path / "log", flush_policy=FlushPolicy.NEVER) as writer:
        writer.append_many([payload(number) for number in range(COUNT)])
        code = """
from mmaplog import Log
log = Log.open(arguments[0], "r")
numbers = [0, 1, 2500, 5998, 5999, -1]
log.read_many(numbers)
print("begin", flush=True)
for _ in range(100):
    log.read_many(numbers)
    for number in numbers:
        log[number]
print("end", flush=True)
answer(len(log))
"""
        trace = tmp_path / "trace"
        asked = "write,getdents64,openat,fstat,newfstatat,statx,pread64"
        command = (strace, "-qq", "-o", str(trace), "-e", f"trace={asked}")
        assert run_python(code, tmp_path / "log", prefix=command) == COUNT
    assert calls_between(trace) == []


def test_numbers_given_out_again(handles: tuple[Log, Log]) -> None:
    """After the end was dropped, within a segment and several segments before the end, again and again."""
    writer, reader = handles
    expected = [payload(number) for number in range(COUNT)]
    for turn, cut in enumerate((5990, 5000, 2500, 2501, 10), 1):
        writer.truncate_after(cut)
        for log in (reader, writer):
            with pytest.raises(IndexError):
                log[cut]
            assert bytes(log[cut - 1].payload) == expected[cut - 1]
        again = [payload(number, turn) for number in range(cut, COUNT)]
        writer.append_many(again)
        expected[cut:] = again
        for log in (reader, writer):
            assert contents(log, range(COUNT)) == expected


def test_numbers_that_were_compacted(handles: tuple[Log, Log]) -> None:
    """What was removed is not there any more; the rest is, in segments with gaps, compacted once more."""
    writer, reader = handles
    writer.flush()
    kept = set(range(COUNT))
    chance = random.Random(3)
    for share in (0.9, 0.2, 0.05):
        last = SegmentFile(segment_paths(Path(os.fspath(writer.path)))[-1]).base_seq
        kept = {number for number in kept if number >= last or chance.random() < share}
        writer.compact(partial(is_in, kept))
        gone = [number for number in range(COUNT) if number not in kept]
        for log in (reader, writer):
            for _ in range(2):
                left = sorted(kept)
                assert contents(log, left) == [payload(number) for number in left]
                for number in chance.sample(gone, 200):
                    with pytest.raises(IndexError, match="removed by a compaction"):
                        log[number]


def test_a_beginning_that_was_dropped(handles: tuple[Log, Log]) -> None:
    """Within a segment, too."""
    writer, reader = handles
    for first in (1, 3000):
        writer.truncate_before(first)
        for log in (reader, writer):
            for number in (0, first - 1):
                with pytest.raises(TooOld):
                    log[number]
                with pytest.raises(TooOld):
                    log.read_many([first, number])
            assert contents(log, range(first, COUNT)) == [payload(each) for each in range(first, COUNT)]


def test_segments_that_came_since(handles: tuple[Log, Log]) -> None:
    """While more is appended, to the segment that was the last and to others, one larger than all."""
    writer, reader = handles
    expected = [payload(number) for number in range(COUNT)]
    chance = random.Random(11)
    for turn in range(60):
        added = [payload(number) for number in range(len(expected), len(expected) + chance.randrange(1, 120))]
        if turn % 20 == 10:
            added.append(bytes(2 * SEGMENT))
        for data in added:
            writer.append(data)
        expected += added
        for log in (reader, writer):
            numbers = [len(expected) - 1, -1, -len(added), *chance.sample(range(-COUNT, len(expected)), 20)]
            wanted = [expected[number] for number in numbers]
            assert [bytes(log[number].payload) for number in numbers] == wanted
            assert [bytes(entry.payload) for entry in log.read_many(numbers)] == wanted
            with pytest.raises(IndexError):
                log[len(expected)]


def test_a_process_beside_the_writer(tmp_path: Path) -> None:
    """It looks records up while they are appended, dropped and compacted: it has what is there now."""
    path = tmp_path / "log"
    expected = [payload(number) for number in range(1000)]
    with opened(path) as writer:
        writer.append_many(expected)
        question, answer = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            _answer(path, question[0], answer[1])
        chance = random.Random(13)
        for turn in range(30):
            if turn % 10 == 5:
                cut = chance.randrange(len(expected) - 600, len(expected))
                writer.truncate_after(cut)
                del expected[cut:]
            added = [payload(number, turn) for number in range(len(expected), len(expected) + 300)]
            writer.append_many(added)
            expected += added
            if turn % 10 == 8:
                writer.compact(lambda entry: True)
            for number in (0, len(expected) - 1, *chance.sample(range(len(expected)), 20)):
                os.write(question[1], struct.pack("<q", number))
                size = int.from_bytes(os.read(answer[0], 4), "little")
                assert os.read(answer[0], size or 1) == (expected[number] or b"-")
        os.write(question[1], struct.pack("<q", -1))
        assert os.waitpid(pid, 0)[1] == 0
    for descriptor in (*question, *answer):
        os.close(descriptor)


def _answer(path: Path, question: int, answer: int) -> None:
    # What the other process does: a size, and what the log has at that number.
    try:
        signal.alarm(TIMEOUT_SECONDS)
        with opened(path, "r") as log:
            while (number := struct.unpack("<q", os.read(question, 8))[0]) >= 0:
                found = bytes(log[number].payload)
                os.write(answer, len(found).to_bytes(4, "little") + (found or b"-"))
        os._exit(0)
    finally:
        os._exit(1)


@pytest.fixture(params=["dense", "sparse"])
def damaged(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, dict[int, bytes]]]:
    """The file of a full segment, and what its records are; with gaps, too."""
    path = tmp_path / "log"
    with opened(path) as log:
        log.append_many([payload(number) for number in range(COUNT)])
        if request.param == "sparse":
            log.flush()
            log.compact(lambda entry: entry.seq % 5 not in (2, 3))
        segment = segment_paths(path)[0]
        yield segment, {each.seq: each.payload for each in SegmentFile(segment).records()}


def test_a_flipped_bit_on_the_way(damaged: tuple[Path, dict[int, bytes]]) -> None:
    """Of a record that is passed or found: whoever was there before gets what was appended, or is told.

    Of the records behind the damage, those are found whose way does not lead over it.
    """
    path, records = damaged
    segment = SegmentFile(path)
    found = list(segment.records())
    stop = next(at for at, each in enumerate(found) if each.offset > HEADER_SIZE + 3 * SPACING)
    log = opened(path.parent, "r")
    told = right = 0
    chance = random.Random(17)
    with log, path.open("r+b", buffering=0) as file:
        contents(log, sorted(records))
        for at, each in enumerate(found[:stop]):
            for place in range(each.offset, each.offset + min(each.size, 24)):
                _put(file.fileno(), place, segment.data[place] ^ 1 << chance.randrange(8))
                for other in found[max(at - 1, 0) : at + 3]:
                    try:
                        assert bytes(log[other.seq].payload) == other.payload
                        right += 1
                    except (CorruptionError, FormatError):
                        told += 1
                        # Not of one in front of it.
                        assert other.offset >= each.offset
                # Its way begins behind the damage.
                beyond = next(later for later in found if later.offset > each.offset + 2 * SPACING + 3100)
                assert bytes(log[beyond.seq].payload) == beyond.payload
                _put(file.fileno(), place, segment.data[place])
        assert contents(log, sorted(records)) == [records[number] for number in sorted(records)]
    assert told > 100
    assert right > 100


def test_a_flipped_bit_on_the_first_way(damaged: tuple[Path, dict[int, bytes]]) -> None:
    """Nor does who comes for the first time take it for something else, or remember what is not true."""
    path, records = damaged
    segment = SegmentFile(path)
    found = list(segment.records())
    chance = random.Random(19)
    for each in found[1:40]:
        with path.open("r+b", buffering=0) as file:
            place = each.offset + chance.choice((0, 1, 8, 9, 12, 13))
            _put(file.fileno(), place, segment.data[place] ^ 1 << chance.randrange(8))
            with opened(path.parent, "r") as log:
                for other in found[:60]:
                    try:
                        assert bytes(log[other.seq].payload) == other.payload
                    except (CorruptionError, FormatError):
                        assert other.offset >= each.offset
                _put(file.fileno(), place, segment.data[place])
                assert contents(log, sorted(records)) == [records[number] for number in sorted(records)]


def _put(file: int, place: int, value: int) -> None:
    os.pwrite(file, bytes([value]), place)


def test_what_numbers_may_be(handles: tuple[Log, Log]) -> None:
    """Whatever has an index, in a call of one and of many; what has none is a TypeError."""

    class Index:
        def __init__(self, number: int) -> None:
            self.number = number

        def __index__(self) -> int:
            return self.number

    for log in handles:
        numbers = [Index(7), True, -1, 3, Index(-COUNT)]
        seqs = [7, 1, COUNT - 1, 3, 0]
        assert [log[number].seq for number in numbers] == seqs
        assert [entry.seq for entry in log.read_many(iter(numbers))] == seqs
        for wrong in ("1", 1.0, None):
            with pytest.raises(TypeError):
                log.read_many([1, wrong])  # type: ignore[list-item]
        for beyond in (COUNT, -COUNT - 1, 1 << 64, -(1 << 64)):
            with pytest.raises(IndexError, match=rf"record {beyond} is not in the log"):
                log.read_many([1, beyond])


def test_numbers_that_end_the_log(handles: tuple[Log, Log]) -> None:
    """The iterable closes it while it gives them, or a number does."""
    writer, reader = handles

    def closing(close: Callable[[], None]) -> Iterator[int]:
        yield from range(20)
        close()
        yield from range(20)

    class Closing:
        def __index__(self) -> int:
            writer.close()
            return 0

    with pytest.raises(Closed):
        reader.read_many(closing(reader.close))
    with pytest.raises(Closed):
        writer.read_many([1, Closing(), 2])
    with pytest.raises(Closed):
        writer.read_many([])
