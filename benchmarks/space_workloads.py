"""Workloads that overwrite a store again and again: what it takes on the disk, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter_ns

from .adapters import Form, Rival
from .change_workloads import Overwrite
from .opening_workloads import bytes_on_disk
from .workload import Operands

TURNS = 10
"""How often each key is overwritten, every time in another order than the one before."""

SAMPLES = 400
"""How often the files are looked at, evenly between the puts."""

STEP = 7_919
"""A prime: so far apart are the keys that are overwritten one after the other, once more in each turn."""


class Space(Overwrite):
    """Bytes on disk for each byte of key and value, at most, while each key is overwritten ten times.

    The blocks of all files, looked at 400 times. Afterwards every tenth key is deleted and put again.
    """

    name = "space"
    operation = "byte of key and value, at most"
    unit = "bytes on disk"
    life = "space"
    has_loop = False
    times = False

    def run(self, rival: Rival, form: Form, operands: Operands, directory: Path) -> float:
        keys, values = operands.keys, operands.values
        most = 0
        every = max(TURNS * len(keys) // SAMPLES, 1)
        with rival.writing() as session:
            put, delete = session.put, session.delete
            for number, at in enumerate(scattered(len(keys), TURNS)):
                put(keys[at], values[at])
                if number % every == 0:
                    most = max(most, bytes_on_disk(directory))
            for at in range(0, len(keys), TURNS):
                delete(keys[at])
                put(keys[at], values[at])
                if at % every == 0:
                    most = max(most, bytes_on_disk(directory))
        return most / rival.bytes_expected


class Churn(Space):
    """The same, timed: what one put costs on average, the tenth turn like the first. Nothing is deleted."""

    name = "churn"
    operation = f"put of a stored key, {TURNS} times each"
    unit = "ns"
    life = "churn"
    times = True

    def run(self, rival: Rival, form: Form, operands: Operands, directory: Path) -> float:
        keys, values = operands.keys, operands.values
        start = perf_counter_ns()
        with rival.writing() as session:
            put = session.put
            for at in scattered(len(keys), TURNS):
                put(keys[at], values[at])
        return (perf_counter_ns() - start) / (TURNS * len(keys))


def scattered(count: int, turns: int) -> Iterator[int]:
    """Each number below `count`, so many times, in an order that takes no memory and hardly any time."""
    for turn in range(turns):
        step = STEP ** (turn + 1) % count
        while math.gcd(step, count) != 1:
            step += 1
        yield from (at * step % count for at in range(count))
