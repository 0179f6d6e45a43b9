"""Four processes count in one file, and no count is lost.

An atomic is a word of the file. Each operation on it is one machine instruction, seen whole by every thread
and process that maps the file: no lock, no system call. The second counter shows why that matters: "load, add
one, store" are two operations, and what another process did in between is overwritten.

Prints::

    4 processes added 200000 each
    in two steps: ..., the rest is lost
    atomically: 800000
"""

import multiprocessing
import tempfile
from pathlib import Path

import mmapio

PROCESSES = 4
ROUNDS = 200_000

# Words that different processes write are put 64 bytes apart: a cache line is what processors hand around.
READY, ATOMIC, TWO_STEPS = 0, 64, 128


def count(path: Path) -> None:
    """What each process does. It opens the file itself: an inherited handle could not write."""
    with mmapio.MemoryMappedFile.open_rw(path) as mapped:
        # So that none is through before the last has begun.
        ready = mapped.atomic_u32(READY)
        ready.fetch_add(1)
        ready.notify()
        while (seen := ready.load()) < PROCESSES:
            ready.wait(seen)

        atomic, two_steps = mapped.atomic_u64(ATOMIC), mapped.atomic_u64(TWO_STEPS)
        for _ in range(ROUNDS):
            atomic.fetch_add(1)
            two_steps.store(two_steps.load() + 1)


def main() -> None:
    # A fresh interpreter each, on every platform.
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "counters")
        with mmapio.MemoryMappedFile.create_rw(path, mmapio.PAGE_SIZE) as mapped:
            processes = [spawn.Process(target=count, args=(path,)) for _ in range(PROCESSES)]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
                if process.exitcode != 0:
                    raise SystemExit(f"a process ended with {process.exitcode}")
            print(f"{PROCESSES} processes added {ROUNDS} each")
            print(f"in two steps: {mapped.atomic_u64(TWO_STEPS).load()}, the rest is lost")
            print("atomically:", mapped.atomic_u64(ATOMIC).load())


if __name__ == "__main__":
    main()
