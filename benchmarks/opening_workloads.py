"""Workloads of an opening: after a clean close, after a kill, without the index; and of the size on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import perf_counter_ns

from .adapters import Form, NotThere, Rival, load_rival
from .adapters.other_process import killed
from .dataset import Dataset, Order, fresh_copies
from .workload import Operands, Workload

OPENS = 10

LAST_PUTS = 1_000
"""How many pairs a process has put at least that is killed."""

BLOCK_BYTES = 512  # what st_blocks counts in, whatever the file system's own block size


class Open(Workload):
    """Open a full store that was closed cleanly, and look one key up. The mean of 10 times.

    Its files are in the page cache. The look-up is timed too: an open that puts its work off is not shorter.
    Closing is not timed.
    """

    name = "open"
    has_loop = False
    operation = "open of a full store and first look-up"
    unit = "us"
    unit_size = 1e3

    def prepare(self, data: Dataset, order: Order) -> Operands:
        return Operands(fresh_copies([data.keys[order.first]] * OPENS), [data.values[order.first]] * OPENS)

    def run(self, rival: Rival, form: Form, operands: Operands, directory: Path) -> float:
        elapsed = 0
        for key, value in zip(operands.keys, operands.values, strict=True):
            rival.close()
            elapsed += _time_opening(self, rival, directory, key, value)
        return elapsed / len(operands.keys)

    def check(self, rival: Rival, data: Dataset, operands: Operands) -> None:
        self.check_pairs(rival, data, data.values)


class Reopen(Open):
    """Open a full store whose writer was killed by `kill -9`, and look one key up.

    The writer was another process. It had opened the store, put 1,000 stored pairs once more and left it so.
    All of them are looked up afterwards.
    """

    name = "reopen"
    operation = "open after kill -9 of the writer, and first look-up"

    def prepare(self, data: Dataset, order: Order) -> Operands:
        return Operands(
            order.first_to_store(data.keys, LAST_PUTS), order.first_to_store(data.values, LAST_PUTS)
        )

    def run(self, rival: Rival, form: Form, operands: Operands, directory: Path) -> float:
        rival.close()
        pairs = list(zip(operands.keys, operands.values, strict=True))
        killed(partial(_put_and_die, rival.name, rival.keys_expected, rival.bytes_expected, pairs), directory)
        elapsed = _time_opening(self, rival, directory, *pairs[-1])
        with rival.reading() as session:
            for key, value in pairs:
                self.check_key(rival, key, session.get(key), value)
        return elapsed


class Rebuild(Workload):
    """Open a full store whose index was removed, so that it is built anew from the log, and look one key up.

    The figure is for one key.
    """

    name = "rebuild"
    has_loop = False
    operation = "key of an index built from the log"
    needs_new_pages = True
    hints = False

    def prepare(self, data: Dataset, order: Order) -> Operands:
        return Operands([data.keys[order.first]], [data.values[order.first]])

    def run(self, rival: Rival, form: Form, operands: Operands, directory: Path) -> float:
        rival.close()
        try:
            with rival.drop_index(directory, hints=self.hints):
                elapsed = _time_opening(self, rival, directory, operands.keys[0], operands.values[0])
        except NotThere:
            # The others' workloads find it open, as they left it.
            rival.open(directory)
            raise
        return elapsed / rival.count()

    def check(self, rival: Rival, data: Dataset, operands: Operands) -> None:
        self.check_pairs(rival, data, data.values)


class RebuildFromHints(Rebuild):
    """The same with what was kept beside the log in order to do it sooner."""

    name = "rebuild-hints"
    operation = "key of an index built from hint files"
    hints = True


class Disk(Workload):
    """Bytes on disk for each byte of key and value: the blocks of all files, after load, close and reopen.

    Index, preallocation and free pages are included; holes in sparse files are not.
    """

    name = "disk"
    has_loop = False
    operation = "byte of key and value"
    unit = "bytes on disk"
    times = False

    def run(self, rival: Rival, form: Form, operands: Operands, directory: Path) -> float:
        rival.close()
        rival.open(directory)
        return bytes_on_disk(directory) / rival.bytes_expected

    def check(self, rival: Rival, data: Dataset, operands: Operands) -> None:
        self.check_count(rival, data.count)


def bytes_on_disk(directory: Path) -> int:
    """Return the bytes in allocated blocks of all files below a directory, but of those that go meanwhile."""
    found = 0
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file():
                found += path.stat().st_blocks * BLOCK_BYTES
    return found


def _time_opening(workload: Workload, rival: Rival, directory: Path, key: bytes, value: bytes) -> int:
    start = perf_counter_ns()
    rival.open(directory)
    with rival.reading() as session:
        answer = session.get(key)
        elapsed = perf_counter_ns() - start
    workload.check_key(rival, key, answer, value)
    return elapsed


def _put_and_die(
    name: str,
    keys_expected: int,
    bytes_expected: int,
    pairs: Sequence[tuple[bytes, bytes]],
    ready: Callable[[], None],
    directory: Path,
) -> None:
    """What the process does that is killed."""
    rival = load_rival(name)(keys_expected, bytes_expected)
    rival.open(directory)
    with rival.writing() as session:
        for key, value in pairs:
            session.put(key, value)
    ready()
