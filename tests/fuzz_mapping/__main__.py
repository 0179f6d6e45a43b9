"""Run the fuzzer: threads that do random operations on one file, each against a model of its part of it.

What each thread does follows from the seed. When, does not, but for `--threads 1`.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import logging
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz_mapping.arena import COUNTER, GUARDED, LANE, SMALL_COUNTER, Arena
from tests.fuzz_mapping.worker import Worker

# A lock that nobody gives back must not look like a slow machine.
SILENCE_SECONDS_MAX = 300


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz as the command line asks; 0 when all was as the models have it."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_mapping", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long (60)")
    parser.add_argument(
        "--operations", type=int, help="how many operations of each thread, however long it takes"
    )
    parser.add_argument("--seed", type=int, default=1, help="what everything is drawn from (1)")
    parser.add_argument("--threads", type=int, default=4, help="how many threads (4)")
    parser.add_argument("--dir", type=Path, help="where the file goes; a temporary directory if not given")
    parser.add_argument(
        "--plant", action="store_true", help="flip bytes behind the models' back: must be caught"
    )
    chosen = parser.parse_args(arguments)
    if chosen.threads < 1 or chosen.seconds <= 0 or (chosen.operations or 1) < 1:
        parser.error("--threads, --seconds and --operations must be positive")
    faulthandler.enable()
    # What is there now stays, and need not be looked through by every collection.
    gc.freeze()
    # A handle that is dropped when it is marked says so when it is closed: that is part of the game.
    logging.disable(logging.ERROR)
    directory = Path(tempfile.mkdtemp(prefix="fuzz-mapping-", dir=chosen.dir))
    try:
        return fuzz(chosen, Arena(directory, chosen.threads))
    finally:
        shutil.rmtree(directory)


def fuzz(chosen: argparse.Namespace, arena: Arena) -> int:
    """Start the threads, wait, and say how it went."""
    workers = [Worker(arena, number, chosen.seed, chosen.operations) for number in range(chosen.threads)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    if chosen.plant:
        threading.Thread(target=plant, args=(arena, workers[0]), daemon=True).start()
    reached = -1
    while any(worker.is_alive() for worker in workers):
        if reached != (reached := sum(worker.done for worker in workers)):
            faulthandler.dump_traceback_later(SILENCE_SECONDS_MAX, exit=True)
        over = chosen.operations is None and time.perf_counter() - began > chosen.seconds
        if over or any(worker.failure for worker in workers):
            for worker in workers:
                worker.stopping.set()
        for worker in workers:
            worker.join(0.05)
    faulthandler.cancel_dump_traceback_later()
    seconds = time.perf_counter() - began
    failures = [worker.failure for worker in workers if worker.failure] or sums(arena, workers)
    done = sum(worker.done for worker in workers)
    faults, closed = sum(worker.faults for worker in workers), sum(worker.closed for worker in workers)
    print(
        f"{done:,} operations in {seconds:.1f} s, {done / seconds:,.0f} operations/s; seed {chosen.seed}, ",
        end="",
    )
    print(f"{chosen.threads} threads; {faults:,} met a fault and {closed:,} a handle that was closed")
    for failure in failures:
        print(f"FAILED: {failure}")
    if failures:
        count = max(worker.done for worker in workers) + 64
        again = f"--seed {chosen.seed} --threads {chosen.threads} --operations {count}"
        print(f"again: python -m tests.fuzz_mapping {again}{' --plant' if chosen.plant else ''}")
        return 1
    for worker in workers:
        worker.views.clear()
    arena.close()
    return 0


def plant(arena: Arena, worker: Worker) -> None:
    """A defect: bytes of a lane change, one now and then, and no model knows."""
    chance = random.Random(worker.number)
    while worker.is_alive():
        offset = worker.begin + chance.randrange(LANE)
        os.pwrite(arena.descriptor, bytes([arena.read(offset, 1)[0] ^ 1]), offset)
        worker.join(0.001)


def sums(arena: Arena, workers: list[Worker]) -> list[str]:
    """What is wrong with the numbers that all threads have added to."""
    words = (
        int.from_bytes(arena.read(COUNTER, 8), "little"),
        int.from_bytes(arena.read(SMALL_COUNTER, 4), "little"),
    )
    guarded = int.from_bytes(arena.read(GUARDED, 8), "little")
    wanted = sum(worker.added for worker in workers), sum(worker.guarded for worker in workers)
    if (sum(words), guarded) == wanted:
        return []
    return [f"the threads added {wanted[0]} and {wanted[1]}, the file has {sum(words)} and {guarded}"]


if __name__ == "__main__":
    sys.exit(main())
