"""`python -m tests.property.together`: threads and a process at one store, while it is compacted.

Each value says which key it is of. Nobody may come to another one, to a snapshot that changes, to damage that
is none, or to an error. What fails is printed; it does not come again by the same seed, for who is faster is
up to the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from mmapkv import FlushPolicy, KVStore, victims
from mmapkv.pins import Pin, Pins
from tests.support.tree import PROJECT

KEYS = [b"%06d" % number for number in range(3_000)]
SEGMENT_BYTES = 256 << 10
#: The least size of a segment here, so that one is rewritten all the time.
UNIT = 64 << 10
WRITERS = 2
READERS = 2
EXIT_FAILED = 1

Action = Callable[[KVStore, random.Random], object]


def value_of(chance: random.Random, key: bytes) -> bytes:
    """A new value of a key."""
    return key + chance.randbytes(chance.choice((10, 100, 300)))


def require(key: bytes, value: bytes | None) -> None:
    """Fail where a value is of another key."""
    assert value is None or value.startswith(key), (key, value)


def put(kv: KVStore, chance: random.Random) -> None:
    """Some puts, with a time to live now and then."""
    for key in chance.sample(KEYS, 50):
        kv.put(key, value_of(chance, key), ttl=chance.random() / 5 if chance.random() < 0.1 else None)


def put_many(kv: KVStore, chance: random.Random) -> None:
    """A batch."""
    kv.put_many({key: value_of(chance, key) for key in chance.sample(KEYS, 20)})


def delete(kv: KVStore, chance: random.Random) -> None:
    """One by one, and many at once."""
    for key in chance.sample(KEYS, 10):
        kv.pop(key, None)
    kv.delete_many(chance.sample(KEYS, 5))


def transact(kv: KVStore, chance: random.Random) -> None:
    """A transaction that reads and writes."""

    def change(transaction: Any) -> None:
        one, other = chance.sample(KEYS, 2)
        require(one, transaction.get(one))
        transaction[other] = value_of(chance, other)

    kv.retry(change, attempts=100)


def touch(kv: KVStore, chance: random.Random) -> None:
    """Times to live of what is there; what is over is swept now and then."""
    for key in chance.sample(KEYS, 20):
        kv.touch(key, chance.random() / 2)
    if chance.random() < 0.02:
        kv.sweep()


def clear_or_compact(kv: KVStore, chance: random.Random) -> None:
    """Rarely."""
    drawn = chance.random()
    if drawn < 0.02:
        kv.clear()
    elif drawn < 0.06:
        kv.compact()
    else:
        kv.flush()


def walk(kv: KVStore, _: random.Random) -> None:
    """All pairs, in the order of the log."""
    for key, value in kv.items():
        require(key, value)


def scan(kv: KVStore, _: random.Random) -> None:
    """All pairs, in the order of the keys."""
    for key, value in kv.scan():
        require(key, value)


def get(kv: KVStore, chance: random.Random) -> None:
    """One by one, and many at once."""
    chosen = chance.sample(KEYS, 300)
    for key in chosen:
        require(key, kv.get(key))
    for key, value in zip(chosen, kv.get_many(chosen), strict=True):
        require(key, value)


def hold(kv: KVStore, chance: random.Random) -> None:
    """A snapshot, read twice."""
    with kv.snapshot() as held:
        first = dict(held)
        time.sleep(chance.random() / 20)
        assert dict(held) == first
        for key in chance.sample(KEYS, 100):
            assert held.get(key) == first.get(key), key


def changes(kv: KVStore, _: random.Random) -> None:
    """From the first on; what is missing of a key, newer changes make up for."""
    for change in kv.changes(0, too_old="skip"):
        if change.key is not None:
            require(change.key, change.value)


def verify(kv: KVStore, _: random.Random) -> None:
    """Nothing is damaged."""
    assert kv.verify().damages == ()


def backup(kv: KVStore, _: random.Random) -> None:
    """A copy is in order, too."""
    with tempfile.TemporaryDirectory(dir=Path(kv.path).parent) as made:
        kv.backup(Path(made) / "copy")
        with KVStore.open(Path(made) / "copy", "r") as copy:
            assert copy.verify().damages == ()
            walk(copy, random.Random())


WRITES: list[Action] = [put, put, put, put_many, delete, transact, touch, clear_or_compact]
READS: list[Action] = [walk, scan, get, hold, changes, verify, backup]


class Run:
    """Threads that act until the time is over, or one of them fails."""

    def __init__(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []

    def work(self, kv: KVStore, actions: Sequence[Action], seed: int) -> None:
        """Act at random."""
        chance = random.Random(seed)
        while not self.failures and time.monotonic() < self.deadline:
            action = chance.choice(actions)
            try:
                action(kv, chance)
            except Exception:
                self.failures.append(f"{action.__name__}: {traceback.format_exc()}")
            self.done[action.__name__] += 1

    def end_with(self, child: subprocess.Popen[str]) -> None:
        """Wait for another process; for none that has nothing more to say, since something failed here."""
        stopped = bool(self.failures)
        if stopped:
            child.terminate()
        printed, _ = child.communicate()
        if child.returncode and not stopped:
            self.failures.append(f"in another process: {printed}")


def no_defect() -> contextlib.AbstractContextManager[object]:
    """As it is."""
    return contextlib.nullcontext()


def unpinned() -> contextlib.AbstractContextManager[object]:
    """Nobody says what he looks at, so compaction removes it."""
    return mock.patch.object(Pins, "hold", lambda self, seq: _Unheld(self, seq))


class _Unheld(Pin):
    def release(self) -> None:
        pass


DEFECTS: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "none": no_defect,
    "unpinned": unpinned,
}


@contextlib.contextmanager
def reading_process(path: Path, seconds: float, seed: int) -> Iterator[subprocess.Popen[str]]:
    """Another process that reads meanwhile."""
    command = [sys.executable, "-m", "tests.property.together", "--dir", str(path), "--seed", str(seed)]
    child = subprocess.Popen(
        [*command, "--seconds", str(seconds), "--only-read"],
        cwd=PROJECT.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with child:
        yield child


def run_all(path: Path, seconds: float, seed: int) -> tuple[Run, int]:
    """Everything at once: what came of it, and how many compactions there were."""
    with KVStore.open(path, flush_policy=FlushPolicy.every_millis(50), segment_bytes=SEGMENT_BYTES) as kv:
        kv.update({key: key for key in KEYS})
        with reading_process(path, seconds, seed) as child:
            run = Run(seconds)
            threads = [
                threading.Thread(target=run.work, args=(kv, actions, 1_000 * seed + number))
                for number, actions in enumerate([WRITES] * WRITERS + [READS] * READERS)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            run.end_with(child)
        if not run.failures:
            verify(kv, random.Random(seed))
        figures = kv.stats()
        assert figures["compaction_error"] == 0, figures
        return run, int(figures["compactions"])


def run_reader(path: Path, seconds: float, seed: int) -> Run:
    """What the other process does."""
    run = Run(seconds)
    with KVStore.open(path, "r") as kv:
        run.work(kv, READS, seed)
    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; 0 when nothing failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.property.together", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="where the store is made")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--seed", type=int, default=1, help="what the actions are drawn from (1)")
    parser.add_argument("--defect", choices=DEFECTS, default="none", help="what is to be found (none)")
    parser.add_argument("--only-read", action="store_true", help="a store that another process has made")
    chosen = parser.parse_args(arguments)
    compactions = 0
    with mock.patch.object(victims, "SEGMENT_BYTES_MIN", UNIT), DEFECTS[chosen.defect]():
        if chosen.only_read:
            run = run_reader(chosen.dir, chosen.seconds, chosen.seed)
        else:
            run, compactions = run_all(chosen.dir, chosen.seconds, chosen.seed)
    for failure in run.failures:
        print(failure)
    for name, count in sorted(run.done.items()):
        print(f"{name:<20}{count:,}")
    print(f"{'compactions':<20}{compactions:,}")
    print(f"{'failures':<20}{len(run.failures)}")
    return EXIT_FAILED if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
