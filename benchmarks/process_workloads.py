"""Workloads of several processes."""

from __future__ import annotations

import gc
import multiprocessing
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter_ns

from .adapters import Form, Rival, load_rival
from .adapters.other_process import PATIENCE_SECONDS
from .dataset import KEY_SIZE, Dataset, Order, fresh_copies
from .lookup_workloads import time_lookups
from .workload import Operands, Workload

LOOKED_UP_MAX = 200_000
SHOWN = 100
"""How many answers each sends back, to be checked."""

PROCESSES = {Form.TWO: 2, Form.ONE: 1}

READY = b"ready"

HEAD_START_NS = 5_000_000
"""For all of them to be awake when they start."""


class Processes(Workload):
    """Look up stored keys in two processes at once, each with a handle of its own, and in one alone.

    Each looks up 200,000 keys, or all where there are fewer, in an order of its own: once untimed, so that
    the pages are mapped, then once more. The figure is the time from the first one's start to the last one's
    end for a look-up of any. The store is not open for writing meanwhile.
    """

    name = "processes"
    operation = "look-up of a stored key, by any of the processes"
    has_loop = False

    def prepare(self, data: Dataset, order: Order) -> Operands:
        return Operands(
            order.first_to_store(data.keys, LOOKED_UP_MAX), order.first_to_store(data.values, LOOKED_UP_MAX)
        )

    def run(self, rival: Rival, form: Form, operands: Operands, directory: Path) -> float:
        rival.close()
        count = PROCESSES[form]
        try:
            with ExitStack() as stack:
                pipes = [
                    stack.enter_context(_reader(rival, directory, operands.keys, seed))
                    for seed in range(count)
                ]
                for pipe in pipes:
                    pipe.recv_bytes()
                start_at = perf_counter_ns() + HEAD_START_NS
                for pipe in pipes:
                    pipe.send(start_at)
                starts, ends, answers = zip(*[pipe.recv() for pipe in pipes], strict=True)
        finally:
            rival.open(directory)
        for answered in answers:
            for key, expected, value in zip(operands.keys, operands.values, answered, strict=False):
                self.check_key(rival, key, value, expected)
        return float(max(ends) - min(starts)) / (count * len(operands.keys))

    def check(self, rival: Rival, data: Dataset, operands: Operands) -> None:
        self.check_pairs(rival, data, data.values)


@contextmanager
def _reader(rival: Rival, directory: Path, keys: Sequence[bytes], seed: int) -> Iterator[Connection]:
    ours, theirs = multiprocessing.Pipe()
    # Started afresh: what the parent has open is not there.
    process = multiprocessing.get_context("spawn").Process(
        target=_read,
        args=(theirs, rival.name, rival.keys_expected, rival.bytes_expected, str(directory), seed),
        daemon=True,
    )
    process.start()
    theirs.close()
    with ours:
        try:
            ours.send_bytes(b"".join(keys))
            yield ours
        finally:
            process.join(PATIENCE_SECONDS)
            if process.exitcode is None:
                process.kill()
                process.join()
            process.close()


def _read(
    pipe: Connection, name: str, keys_expected: int, bytes_expected: int, directory: str, seed: int
) -> None:
    """What a reading process does."""
    joined = pipe.recv_bytes()
    keys = [joined[at : at + KEY_SIZE] for at in range(0, len(joined), KEY_SIZE)]
    shown = keys[:SHOWN]
    random.Random(seed).shuffle(keys)
    rival = load_rival(name)(keys_expected, bytes_expected)
    form = next(iter(rival.spellings["get"]))
    rival.open_reader(Path(directory))
    with rival.reading() as session:
        time_lookups(session, form, keys)
        keys = fresh_copies(keys)
        random.Random(-1 - seed).shuffle(keys)
        pipe.send_bytes(READY)
        start_at = pipe.recv()
        gc.disable()
        while perf_counter_ns() < start_at:
            pass
        start = perf_counter_ns()
        elapsed = time_lookups(session, form, keys)
        # The clock is the machine's, not a process's: its differences count between processes too.
        pipe.send((start, start + elapsed, [session.get(key) for key in shown]))
    rival.close()
