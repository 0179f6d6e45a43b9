"""The storm itself: in each round a writer is forked and killed, and what it left is opened and compared."""

from __future__ import annotations

import itertools
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mmapio import FlushPolicy
from mmapkv import KVStore
from tests.crash import checks, defects
from tests.crash.ack_page import AckPage
from tests.crash.child import Child
from tests.crash.model import Model
from tests.crash.operations import Kind, Operation, loaded_key, loaded_version, operations, value_of
from tests.crash.plan import Plan
from tests.crash.reader import Reader, ReaderFailed
from tests.crash.summary import Summary
from tests.crash.wreck import Wreck, inspect, segment_path
from tests.crash.writer import write

STORE_BYTES_MAX = 200 << 20
SEGMENTS_MAX = 800
# Small ones roll all the time, and each roll waits for the disk; so they are rare.
SEGMENT_BYTES = {64 << 10: 1, 256 << 10: 2, 1 << 20: 4, 4 << 20: 4}
# Stores of different segment sizes, and young ones whose index splits, get their turn.
STORE_ROUNDS_MAX = 150
ITERATE_EVERY = 20
REBUILD_EVERY = 50
READER_SHARE = 0.2
READER_ROUNDS = 12
SAMPLED_KEYS = 200
# So many writes are made up before the writer starts; it makes up further ones as it goes.
PREPARED = 800


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    seed: int
    first_round: int
    kills: int
    keys: int
    directory: Path
    defect: str | None
    report: Callable[[str], None]
    progress: Callable[[int], None]
    violations_max: int


@dataclass
class Aftermath:
    """What one killed writer had done, as far as its parent can know."""

    effects: list[Operation]
    """Acknowledged operations that wrote a record, in order."""
    touched: set[bytes]
    pending: Operation | None
    """The operation in flight, if it could write."""
    compacted: bool
    """Whether compactions were among the operations, that in flight included."""
    in_compaction: bool
    """Whether that is one."""


class Storm:
    """A store, what it must hold, perhaps a reader, and the counts so far."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.summary = Summary()
        self.page = AckPage()
        self.prepared: list[Operation] = []
        self.path = options.directory / "none"
        self.loaded_in = 0
        self.evidence: dict[str, bytes] = {}
        self.model = Model(0)
        self.reader: Reader | None = None
        self.reader_until = 0
        self.violations: list[str] = []
        defects.plant_in_all(options.defect)

    def run(self) -> Summary:
        """All rounds. Stops early after too many with a violation, or when interrupted."""
        try:
            for number in range(self.options.first_round, self.options.first_round + self.options.kills):
                if not self._survives(number):
                    break
                self.options.progress(self.summary.kills)
        except KeyboardInterrupt:
            self.options.report("interrupted")
        self._drop_reader()
        return self.summary

    def _survives(self, number: int) -> bool:
        # One round, and whether to go on.
        if not self.path.exists():
            self._load(number)
        self.violations = []
        is_last = number == self.options.first_round + self.options.kills - 1
        self._round(Plan.draw(self.options.seed, number, self.options.keys), is_last)
        outgrown = number >= self.loaded_in + STORE_ROUNDS_MAX or self._outgrown()
        if is_last or outgrown:
            self._end_reader()
        if self.violations:
            self.summary.violations += 1
            self._report(number)
            return self.summary.violations < self.options.violations_max
        if outgrown:
            shutil.rmtree(self.path)
        return True

    # ---- a round ----

    def _round(self, plan: Plan, is_last: bool) -> None:
        self._start_reader(plan)
        before = inspect(self.path)
        self._write_and_kill(plan)
        wreck = inspect(self.path)
        self._preserve(wreck)
        aftermath = self._replay_plan(plan)
        in_call = self.page.submitted > self.page.acknowledged
        place = wreck.place(before, in_call, self.model.committed, in_compaction=aftermath.in_compaction)
        self.summary.places[place] += 1
        self.summary.acknowledged.append(self.page.acknowledged)
        self.summary.counts["rounds with compaction in the background"] += plan.background
        if self.page.stepping:
            self.summary.steps[wreck.phase or "before it writes"] += 1
        self._check_reader(plan, aftermath)
        if self.options.defect in defects.AFTER_KILL:
            defects.plant(self.options.defect, self.path)
        self._lose_files(plan)
        if plan.recovery_kill_us is not None:
            self._kill_recovery(plan.recovery_kill_us)
        if plan.reader_first and self.reader is None:
            self._new_reader(plan.round)
        try:
            self._reopen_and_check(plan, aftermath, is_last)
        except Exception as error:
            self._wrong(f"{type(error).__name__}: {error}")

    def _write_and_kill(self, plan: Plan) -> None:
        self.page.reset(plan.round)
        self.prepared = list(_first_of(operations(plan)))

        def body(started: Callable[[], None]) -> None:
            write(self.path, plan, self.prepared, self.page, self.options.defect, started)

        writer = Child(body)
        if not plan.at_once:
            writer.wait_started()
        if plan.reader_meanwhile and self.reader is None:
            self._new_reader(plan.round)
        time.sleep(plan.delay_us / 1e6)
        failure = writer.kill()
        if failure:
            self._wrong(f"the writer failed: {failure}")

    def _replay_plan(self, plan: Plan) -> Aftermath:
        # The model takes part in every operation that was acknowledged.
        effects: list[Operation] = []
        touched: set[bytes] = set()
        misses = 0
        compacted = plan.compactions > 0 or plan.background
        stream = iter(self.prepared)
        if self.page.submitted > len(self.prepared):
            stream = operations(plan)
        for operation in itertools.islice(stream, self.page.acknowledged):
            touched |= self.model.touched(operation)
            written = self.model.apply(operation)
            effects += written
            compacted = compacted or operation.kind is Kind.COMPACT
            if operation.kind is Kind.DELETE and not written:
                misses += 1
        pending = None
        in_compaction = False
        expected_misses = {misses}
        if self.page.submitted > self.page.acknowledged:
            following = next(stream)
            in_compaction = following.kind is Kind.COMPACT
            if self.model.effects(following):
                pending = following
                touched |= self.model.touched(following)
            elif following.kind is Kind.DELETE:
                expected_misses.add(misses + 1)
        if self.page.misses not in expected_misses:
            self._wrong(
                f"{self.page.misses} deletions found their key absent, should be {sorted(expected_misses)}"
            )
        return Aftermath(effects, touched, pending, compacted or in_compaction, in_compaction)

    def _lose_files(self, plan: Plan) -> None:
        if plan.lost:
            # Who has a lost file mapped goes on with it and sees nothing of its successor.
            self._drop_reader()
        for name in plan.lost:
            (self.path / name).unlink()
            self.summary.counts[f"rounds that lost {name}"] += 1

    def _kill_recovery(self, delay_us: int) -> None:
        def body(started: Callable[[], None]) -> None:
            KVStore.open(self.path, "w", flush_policy=FlushPolicy.MANUAL).close()
            started()

        opener = Child(body)
        time.sleep(delay_us / 1e6)
        failure = opener.kill()
        if failure:
            self._wrong(f"opening failed, before it was to be killed: {failure}")
        self.summary.counts["rounds in which the recovering process was killed too"] += 1

    def _reopen_and_check(self, plan: Plan, aftermath: Aftermath, is_last: bool) -> None:
        policy = FlushPolicy.MANUAL if plan.closes_cleanly else FlushPolicy.NEVER
        begun = time.perf_counter()
        store = KVStore.open(self.path, "w", flush_policy=policy)
        took_ms = (time.perf_counter() - begun) * 1e3
        kind = f"without {' and '.join(plan.lost)}" if plan.lost else "after the kill"
        if plan.recovery_kill_us is None and not (plan.reader_first and plan.lost):
            self.summary.reopen_ms.setdefault(kind, []).append(took_ms)
        with store:
            start = self.model.committed - len(aftermath.effects)
            self._resolve_pending(checks.committed(store), aftermath)
            rng = random.Random(f"sample {plan.seed} {plan.round}")
            sample = rng.sample(range(plan.keys), min(plan.keys, SAMPLED_KEYS))
            keys = [*aftermath.touched, *map(loaded_key, sample), *checks.absent_keys(3)]
            self._wrong(*checks.check_count(store, self.model))
            log = checks.check_log(store, start, aftermath.effects, compacted=aftermath.compacted)
            self._wrong(*log)
            self._wrong(*checks.check_keys(store, self.model, keys))
            if plan.round % ITERATE_EVERY == 0 or is_last:
                self._wrong(*checks.check_items(store.items(), self.model))
                self.summary.counts["rounds compared by iteration"] += 1
            if self.reader is not None:
                self._compare_reader(keys, "after recovery")
        if plan.round % REBUILD_EVERY == 0 or is_last:
            copy = self.options.directory / "copy"
            self._wrong(*checks.check_rebuilt(self.path, copy, self.model))
            self.summary.counts["rounds compared with a rebuilt index"] += 1

    def _resolve_pending(self, committed: int, aftermath: Aftermath) -> None:
        # Whether the write in flight took effect is the store's choice; the log's length tells.
        if aftermath.pending is None:
            self.summary.pending["there was none"] += 1
        elif committed == self.model.committed:
            self.summary.pending["did not take effect"] += 1
        else:
            self.summary.pending["took effect"] += 1
            aftermath.effects += self.model.apply(aftermath.pending)
        if committed != self.model.committed:
            difference = committed - self.model.committed
            self._wrong(
                f"the log has {committed} records, should have {self.model.committed}: "
                f"{abs(difference)} {'lost' if difference < 0 else 'invented'}"
            )

    # ---- the reader ----

    def _start_reader(self, plan: Plan) -> None:
        rng = random.Random(f"reader {plan.seed} {plan.round}")
        if self.reader is not None and plan.round >= self.reader_until:
            self._end_reader()
        share = 1.0 if self.options.defect in defects.OF_READERS else READER_SHARE / 3
        if self.reader is None and rng.random() < share:
            self._new_reader(plan.round)
        if self.reader is not None:
            first = [made.key for made in itertools.islice(operations(plan), SAMPLED_KEYS) if made.key]
            try:
                self.reader.watch(first, plan.compacts)
            except OSError:
                self._wrong(f"the reader failed: {self._drop_reader()}")
            self.summary.counts["rounds with a reader that was there before"] += 1

    def _new_reader(self, number: int) -> None:
        self.reader = Reader(self.path, self.page, self.options.defect)
        self.reader_until = number + READER_ROUNDS
        self.summary.counts["readers"] += 1

    def _check_reader(self, plan: Plan, aftermath: Aftermath) -> None:
        # Nobody has recovered the store yet; what was acknowledged is to be seen all the same.
        if self.reader is None:
            return
        pending = [] if aftermath.pending is None else self.model.effects(aftermath.pending)
        keys, slack = aftermath.touched, len(pending)
        if aftermath.pending is not None:
            keys = keys - self.model.touched(aftermath.pending)
            slack = len(self.model) if aftermath.pending.kind is Kind.CLEAR else slack
        self._compare_reader(list(keys), "before recovery", slack)

    def _compare_reader(self, keys: list[bytes], when: str, slack: int = 0) -> None:
        assert self.reader is not None
        try:
            count, values = self.reader.get(keys)
        except ReaderFailed as error:
            self.reader = None
            self._wrong(f"the reader failed {when}: {error}")
            return
        if abs(count - len(self.model)) > slack:
            self._wrong(f"the reader's len() {when} is {count}, should be {len(self.model)}")
        found = checks.differences(zip(keys, values, strict=True), self.model)
        self._wrong(*(f"for the reader {when}, {text}" for text in found))

    def _end_reader(self) -> None:
        if self.reader is None:
            return
        try:
            wrong = self.model.versions.keys() ^ self.reader.keys()
            self._wrong(*(f"for the reader, iteration is wrong about {checks.shown(key)}" for key in wrong))
        except ReaderFailed as error:
            self.reader = None
            self._wrong(f"the reader failed at its end: {error}")
        self._drop_reader()

    def _drop_reader(self) -> str:
        failure = ""
        if self.reader is not None:
            failure = self.reader.close()
            self.reader = None
        return failure

    # ---- the store ----

    def _load(self, number: int) -> None:
        self.path = self.options.directory / f"store-{number}"
        rng = random.Random(f"load {self.options.seed} {number}")
        (segment_bytes,) = rng.choices(list(SEGMENT_BYTES), list(SEGMENT_BYTES.values()))
        with KVStore.open(
            self.path, "n", flush_policy=FlushPolicy.MANUAL, segment_bytes=segment_bytes
        ) as store:
            for index in range(self.options.keys):
                key = loaded_key(index)
                store[key] = value_of(key, loaded_version(index))
        self.model = Model(self.options.keys)
        self.loaded_in = number
        self.summary.counts["stores loaded"] += 1

    def _outgrown(self) -> bool:
        segments = [entry.stat().st_size for entry in self.path.glob("*.seg")]
        return sum(segments) > STORE_BYTES_MAX or len(segments) > SEGMENTS_MAX

    def _preserve(self, wreck: Wreck) -> None:
        # Opening changes what a kill left. What it will look at is kept until that has gone well: enough to
        # study a violation.
        tail = segment_path(self.path, wreck.segment_id)
        sources = (self.path / "CONTROL", self.path / "INDEX", self.path / "MANIFEST", tail)
        self.evidence = {source.name: source.read_bytes() for source in sources}
        listing = (f"{entry.stat().st_size:>12} {entry.name}\n" for entry in sorted(self.path.iterdir()))
        self.evidence["listing"] = "".join(listing).encode()

    # ---- what is wrong ----

    def _wrong(self, *texts: str) -> None:
        self.violations += texts

    def _report(self, number: int) -> None:
        self._drop_reader()
        kept = self.path.with_name(f"violation-{number}")
        self.path.rename(kept)
        before = kept.with_name(f"{kept.name}-before-reopening")
        before.mkdir()
        for name, content in self.evidence.items():
            (before / name).write_bytes(content)
        command = f"python -m tests.crash.kill_storm --seed {self.options.seed} --round {number}"
        command += f" --keys {self.options.keys} --kills 50"
        if self.options.defect is not None:
            command += f" --defect {self.options.defect}"
        self.options.report(f"VIOLATION in round {number}; the store is kept in {kept}; {command}")
        for text in self.violations:
            self.options.report(f"  {text}")


def _first_of(stream: Iterator[Operation]) -> Iterator[Operation]:
    writes = 0
    for operation in stream:
        yield operation
        writes += 1 + len(operation.parts)
        if writes >= PREPARED:
            return
