"""`python -m tests.crash.shared_kill_storm`: kill some of several writers of a store, and look at the others.

Those that are left must go on, whatever the dead ones were at; then what the store holds is compared with
what was acknowledged. Operations, victims and delays follow from the seed; the instruction that a kill hits
does not, so a violation may take a few repetitions to show again.
"""

from __future__ import annotations

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
from tests.crash.child import Child
from tests.crash.crowd.model import Model
from tests.crash.crowd.operations import WRITERS, Kind, Operation, operations
from tests.crash.crowd.writer import EARLY_ACK, HALF_CLEAR, LOST_UPDATE, Board, open_shared, write
from tests.crash.storm_command import run_storm

# How far each of the others must come after a kill, and how long that may take.
PROGRESS = 20
STUCK_SECONDS = 300
LOOK_SECONDS = 0.001
# In so many rounds all writers compact in the background.
BACKGROUND = 0.6
DELAY_SECONDS_MAX = 0.02
# A new store now and then: what splits is young.
STORE_ROUNDS_MAX = 25
DEFECTS = (EARLY_ACK, LOST_UPDATE, HALF_CLEAR, defects.LOSSY_STEP, *defects.AFTER_KILL)
LOST: tuple[tuple[str, ...], ...] = ((), (), (), (), ("INDEX",), ("CONTROL",))


class Stuck(Exception):
    """A writer does not go on, or not away."""


class Storm:
    """A store, what it must hold, a reader that is there all the time, and the counts so far."""

    def __init__(self, seed: int, directory: Path, defect: str | None, report: Callable[[str], None]) -> None:
        self.seed = seed
        self.directory = directory
        self.defect = defect
        self.report = report
        self.board = Board()
        self.counts: Counter[str] = Counter()
        self.path = directory / "none"
        self.loaded_in = 0
        self.model = Model()
        self.reader: KVStore | None = None

    def run(self, first_round: int, kills: int, violations_max: int) -> None:
        """Rounds, until so many were killed; or too many rounds had a violation."""
        number = first_round
        while self.counts["kills"] < kills and self.counts["rounds with a violation"] < violations_max:
            if not self.path.exists() or number >= self.loaded_in + STORE_ROUNDS_MAX:
                self._begin_store(number)
            wrong = self._round(number)
            if wrong:
                self.counts["rounds with a violation"] += 1
                self._keep(number, wrong)
            number += 1
        self._drop_reader()

    def _begin_store(self, number: int) -> None:
        self._drop_reader()
        if self.path.exists():
            shutil.rmtree(self.path)
        self.path = self.directory / f"store-{number}"
        self.model = Model()
        self.loaded_in = number
        open_shared(self.path).close()
        self.reader = KVStore.open(self.path, "r")

    def _drop_reader(self) -> None:
        if self.reader is not None:
            self.reader.close()
            self.reader = None

    def _round(self, number: int) -> list[str]:
        draw = random.Random(f"round {self.seed} {number}")
        victims = draw.sample(range(WRITERS), draw.choice((1, 1, 1, 2, WRITERS)))
        background = draw.random() < BACKGROUND
        self.counts["rounds with compaction in the background"] += background
        self.board.reset()
        children = [self._start(number, writer, background) for writer in range(WRITERS)]
        if draw.random() < 0.9:
            for child in children:
                child.wait_started()
        time.sleep(draw.random() * DELAY_SECONDS_MAX)
        wrong = [self._kill(children[writer]) for writer in victims]
        self.counts["killed inside a step of one in the background"] += sum(map(self.board.stepping, victims))
        survivors = [writer for writer in range(WRITERS) if writer not in victims]
        try:
            self._watch(survivors)
            if draw.random() < 0.7:
                self.board.end()
                self._wait_for(lambda: all(self.board.finished(writer) for writer in survivors))
        except Stuck:
            wrong.append(f"a writer is stuck after writers {victims} were killed")
        wrong += [children[writer].kill() for writer in survivors]
        wrong = [text for text in wrong if text]
        self.counts["rounds"] += 1
        self.counts["acknowledged calls"] += sum(map(self.board.acknowledged, range(WRITERS)))
        pending = {}
        for writer in range(WRITERS):
            acknowledged = self.board.acknowledged(writer)
            following = self.model.follow(self.seed, number, writer, acknowledged)
            if self.board.submitted(writer) > acknowledged:
                pending[writer] = following
                self.counts[f"killed in a call: {following.kind.value}"] += 1
        clears = sum(each.kind is Kind.CLEAR for done in self.model.done for each in done)
        self.counts["clears"] += clears
        self.counts["rounds with clears"] += clears > 0
        try:
            return wrong + self._look(draw, pending)
        except Exception as error:
            return [*wrong, f"{type(error).__name__}: {error}"]

    def _start(self, number: int, writer: int, background: bool) -> Child:
        work = operations(self.seed, number, writer)

        def body(started: Callable[[], None]) -> None:
            write(self.path, writer, work, self.board, self.defect, background, started)

        return Child(body)

    def _kill(self, child: Child) -> str:
        self.counts["kills"] += 1
        return child.kill()

    def _watch(self, survivors: list[int]) -> None:
        begun = {writer: self.board.acknowledged(writer) for writer in survivors}
        self._wait_for(
            lambda: all(
                self.board.acknowledged(writer) >= done + PROGRESS or self.board.finished(writer)
                for writer, done in begun.items()
            )
        )

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + STUCK_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise Stuck
            time.sleep(LOOK_SECONDS)

    def _look(self, draw: random.Random, pending: dict[int, Operation]) -> list[str]:
        if self.defect in defects.AFTER_KILL:
            defects.plant(self.defect, self.path)
        lost = draw.choice(LOST)
        for name in lost:
            # Who has a lost file mapped goes on with it and sees nothing of its successor.
            self._drop_reader()
            (self.path / name).unlink()
        shared = draw.random() < 0.5
        with KVStore.open(self.path, "w", shared=shared, flush_policy=FlushPolicy.MANUAL) as store:
            items = list(store.items())
            found = dict(items)
            wrong = self.model.differences(found, pending)
            wrong += [f"verify: {damage}" for damage in store.verify().damages]
            if len(store) != len(items) or len(found) != len(items):
                wrong.append(f"len() is {len(store)}, {len(items)} pairs with {len(found)} keys are there")
            if {key: store.get(key) for key in found} != found:
                wrong.append("look-ups and iteration differ")
            if self.reader is not None and (
                dict(self.reader.items()) != found or len(self.reader) != len(found)
            ):
                wrong.append("a reader that was there all the time sees something else")
        return wrong

    def _keep(self, number: int, wrong: list[str]) -> None:
        self._drop_reader()
        kept = self.path.with_name(f"violation-{number}")
        self.path.rename(kept)
        command = f"python -m tests.crash.shared_kill_storm --seed {self.seed} --round {number} --kills 50"
        command += "" if self.defect is None else f" --defect {self.defect}"
        self.report(f"VIOLATION in round {number}; the store is kept in {kept}; {command}")
        for text in wrong:
            self.report(f"  {text}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the storm that the command line asks for; 0 when nothing was violated."""
    return run_storm("shared_kill_storm", __doc__, Storm, DEFECTS, arguments)


if __name__ == "__main__":
    sys.exit(main())
