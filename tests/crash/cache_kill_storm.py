"""`python -m tests.crash.cache_kill_storm`: kill writers of a cache, and look for what was written last.

What is there must be what was written last; what is not there was evicted, or deleted. Operations and delays
follow from the seed; the instruction that a kill hits does not.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from mmapio import FlushPolicy
from mmapkv import KVStore
from tests.crash import defects
from tests.crash.ack_page import AckPage
from tests.crash.child import Child
from tests.crash.model import Model
from tests.crash.operations import Operation, operations, value_of
from tests.crash.plan import Plan
from tests.crash.storm_command import VIOLATIONS_MAX, run_storm
from tests.crash.writer import write

MAX_BYTES = 256 << 10
# So much of what was written last is not evicted when no more is written in a round, though all that was
# there has been read, and for each byte that goes three are spared. Records have more than key and value.
SAFE_BYTES = MAX_BYTES // 16
OVERHEAD = 64
KEYS = 5000
PREPARED = 400
STORE_ROUNDS_MAX = 100
LOST: tuple[tuple[str, ...], ...] = ((), (), (), (), ("INDEX",), ("CONTROL",), ("VISITED",))
DEFECTS = (defects.EARLY_ACK, "dropped-entry", "invented-write")


class Storm:
    """A cache, what it may hold, and the counts so far."""

    def __init__(self, seed: int, directory: Path, defect: str | None, report: Callable[[str], None]) -> None:
        self.seed = seed
        self.directory = directory
        self.defect = defect
        self.report = report
        self.page = AckPage()
        self.counts: Counter[str] = Counter()
        self.path = directory / "none"
        self.written = 0
        self.model = Model(0)

    def run(self, first_round: int, kills: int, violations_max: int) -> None:
        """Rounds, until so many writers were killed; or too many rounds had a violation."""
        for number in range(first_round, first_round + kills):
            if not self.path.exists() or number % STORE_ROUNDS_MAX == 0:
                self._begin(number)
            wrong = self._round(number)
            self.counts["kills"] += 1
            if wrong:
                self.counts["rounds with a violation"] += 1
                kept = self.path.rename(self.path.with_name(f"violation-{number}"))
                self.report(f"VIOLATION in round {number}; the store is kept in {kept}; seed {self.seed}")
                for text in wrong:
                    self.report(f"  {text}")
                if self.counts["rounds with a violation"] == violations_max:
                    return

    def _begin(self, number: int) -> None:
        if self.path.exists():
            shutil.rmtree(self.path)
        self.path = self.directory / f"cache-{number}"
        self.model = Model(0)
        self._opened().close()

    def _opened(self) -> KVStore:
        return KVStore.open(self.path, flush_policy=FlushPolicy.MANUAL, max_bytes=MAX_BYTES)

    def _round(self, number: int) -> list[str]:
        plan = dataclasses.replace(Plan.draw(self.seed, number, KEYS), max_bytes=MAX_BYTES)
        draw = random.Random(f"cache {self.seed} {number}")
        self.page.reset(number)
        prepared = list(itertools.islice(operations(plan), PREPARED))

        def body(started: Callable[[], None]) -> None:
            write(self.path, plan, prepared, self.page, self.defect, started)

        writer = Child(body)
        if not plan.at_once:
            writer.wait_started()
        time.sleep(plan.delay_us / 1e6)
        failure = writer.kill()
        if failure:
            return [f"the writer failed: {failure}"]
        pending = self._follow(plan)
        if self.defect in defects.AFTER_KILL:
            defects.plant(self.defect, self.path)
        for name in draw.choice(LOST):
            (self.path / name).unlink(missing_ok=True)
        try:
            with self._opened() as kv:
                return self._look(kv, number, pending)
        except Exception as error:
            return [f"{type(error).__name__}: {error}"]

    def _follow(self, plan: Plan) -> Operation | None:
        # What was acknowledged is in the model then, the newest last. Returns what was in flight.
        stream = operations(plan)
        self.written = 0
        for operation in itertools.islice(stream, self.page.acknowledged):
            self.written += sum(map(_size, operation.parts or (operation,)))
            for effect in self.model.apply(operation):
                version = self.model.versions.pop(effect.key, None)
                if version is not None:
                    self.model.versions[effect.key] = version
        self.counts["acknowledged calls"] += self.page.acknowledged
        return next(stream) if self.page.submitted > self.page.acknowledged else None

    def _look(self, kv: KVStore, round_number: int, pending: Operation | None) -> list[str]:
        found = dict(kv.items())
        wrong = [f"verify: {damage}" for damage in kv.verify().damages]
        if len(kv) != len(found) or {key: kv.get(key) for key in found} != found:
            wrong.append("look-ups, walk and count differ")
        after = Model(0)
        after.versions = dict(self.model.versions)
        if pending is not None:
            after.apply(pending)
            # Way is made before it is written.
            self.written += sum(map(_size, pending.parts or (pending,)))
        room = SAFE_BYTES if self.written <= SAFE_BYTES else 0
        self.counts["rounds after which what was written last must be there"] += room > 0
        for key, value in found.items():
            if value not in (self.model.value(key), after.value(key)):
                wrong.append(f"{key[:40]!r} has a value that is not its last ({len(value)} bytes)")
        for key, version in reversed(self.model.versions.items()):
            room -= len(key) + version.size + OVERHEAD
            if room < 0:
                break
            # What was there before may be next when the writer came: each has leave to spare as much again.
            if key not in found and after.versions.get(key) == version and version.round == round_number:
                wrong.append(f"{key[:40]!r} was written lately and is gone")
        self.counts["keys evicted, at looks"] += len(self.model.versions.keys() - found.keys())
        # Of what was in flight, what is there now is the newest.
        settled = {}
        for versions in (self.model.versions, after.versions):
            for key, version in versions.items():
                if found.get(key) == value_of(key, version) and settled.get(key) != version:
                    settled.pop(key, None)
                    settled[key] = version
        self.model.versions = settled
        return wrong[:VIOLATIONS_MAX]


def _size(operation: Operation) -> int:
    return len(operation.key) + operation.version.size + OVERHEAD


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the storm that the command line asks for; 0 when nothing was violated."""
    return run_storm("cache_kill_storm", __doc__, Storm, DEFECTS, arguments)


if __name__ == "__main__":
    sys.exit(main())
