"""The storm itself: in each round writers are forked and killed, and what they left is compared."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

from mmapio import FlushPolicy
from mmaplog import Log
from tests.crash.child import Child
from tests.crash.log_storm import checks, defects
from tests.crash.log_storm.model import Model, Pending
from tests.crash.log_storm.page import Page
from tests.crash.log_storm.plan import AVAILABLE, WRITERS_MAX, Call, Kind, LogPlan, Plan, calls
from tests.crash.log_storm.reader import Reader, ReaderFailed, RereadingReader
from tests.crash.log_storm.records import payload_of
from tests.crash.log_storm.wreck import Wreck, inspect, segment_path
from tests.crash.log_storm.writer import set_trap, write

LOG_BYTES_MAX = 24 << 20
LOG_ROUNDS_MAX = 60
READER_ROUNDS = 10
READER_EVERY = 4
WHOLE_EVERY = 8
# The checker appends too; its records are those of a writer that the plan does not know.
CHECKER = WRITERS_MAX
# So long those that are not killed go on after those that are.
GO_ON_SECONDS = 0.003
CHILD_SECONDS_MAX = 300


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    seed: int
    first_round: int
    kills: int
    shared: bool
    directory: Path
    defect: str | None
    report: Callable[[str], None]
    progress: Callable[[int], None]
    violations_max: int


@dataclass
class Summary:
    """Counts over all rounds."""

    acknowledged: list[int] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    traces: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    reopen_ms: list[float] = field(default_factory=list)
    violations: int = 0

    @property
    def kills(self) -> int:
        """How many writers were killed."""
        return len(self.acknowledged)

    def table(self) -> str:
        """For people."""
        rows = [
            ("kills", f"{self.kills:,}"),
            ("rounds with a violation", f"{self.violations:,}"),
            ("acknowledged calls, in all", f"{sum(self.acknowledged):,}"),
            ("acknowledged calls per kill, median", f"{statistics.median(self.acknowledged or [0]):,.0f}"),
            ("reopening, ms, median", f"{statistics.median(self.reopen_ms or [0]):.1f}"),
        ]
        for counter in (self.calls, self.traces):
            rows += [(what, f"{n:,} ({n / max(self.kills, 1):.1%})") for what, n in sorted(counter.items())]
        rows += [(what, f"{count:,}") for what, count in sorted(self.counts.items())]
        width = max(len(name) for name, _ in rows) + 2
        return "\n".join(f"{name:<{width}}{value}" for name, value in rows)


class Storm:
    """A log, what it must hold, perhaps a reader, and the counts so far."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.summary = Summary()
        self.page = Page()
        self.path = options.directory / "none"
        self.log_plan = LogPlan(0, False, False)
        self.made_in = 0
        self.model = Model()
        self.reader: Reader | None = None
        self.reader_until = 0
        self.evidence: dict[str, bytes] = {}
        self.violations: list[str] = []

    def run(self) -> Summary:
        """Rounds until enough writers are killed. Stops early after too many violations."""
        try:
            for number in itertools.count(self.options.first_round):
                if self.summary.kills >= self.options.kills or not self._survives(number):
                    break
                self.options.progress(self.summary.kills)
        except KeyboardInterrupt:
            self.options.report("interrupted")
        self._drop_reader()
        return self.summary

    def _survives(self, number: int) -> bool:
        # One round, and whether to go on.
        if not self.path.exists():
            self._make(number)
        self.violations = []
        self._round(Plan.draw(self.options.seed, number, self.options.shared))
        if self.violations:
            self._drop_reader()
            self.summary.violations += 1
            self._report(number)
            return self.summary.violations < self.options.violations_max
        used = sum(entry.stat().st_size for entry in self.path.iterdir())
        if number >= self.made_in + LOG_ROUNDS_MAX or used > LOG_BYTES_MAX:
            self._drop_reader()
            shutil.rmtree(self.path)
        return True

    def _make(self, number: int) -> None:
        self.path = self.options.directory / f"log-{number}"
        self.log_plan = LogPlan.draw(self.options.seed, number)
        if self.options.defect == defects.STALE_READER:
            self.log_plan = dataclasses.replace(self.log_plan, reaches_back=False)
        self.made_in = number
        self.model = Model(is_shared=self.options.shared)
        Log.open(
            self.path, "n", flush_policy=FlushPolicy.MANUAL, segment_bytes=self.log_plan.segment_bytes
        ).close()
        self.summary.counts["logs made"] += 1

    # ---- a round ----

    def _round(self, plan: Plan) -> None:
        self._start_reader(plan)
        before = self.model.end
        self._write_and_kill(plan)
        self._preserve()
        pending = self._apply_acknowledged(plan)
        floor = self.model.end
        seen = self._ask_reader(before, "before recovery")
        if self.options.defect is not None:
            defects.plant(self.options.defect, self.path)
        if plan.loses_control and (self.path / "CONTROL").exists():
            # Who has the lost file mapped goes on with it and sees nothing of its successor.
            self._drop_reader()
            (self.path / "CONTROL").unlink()
            self.summary.counts["rounds that lost CONTROL"] += 1
        if plan.recovery_delay_us is not None:
            self._kill_recovery(plan)
        if plan.reader_first and self.reader is None:
            self._new_reader(plan)
        try:
            self._reopen_and_check(plan, pending, before)
        except Exception as error:
            self._wrong(f"{type(error).__name__}: {error}")
            return
        if seen is not None:
            self._compare_seen(seen, before, "before recovery")
            if before + len(seen) < floor:
                self._wrong(f"the reader saw {before + len(seen)} records, {floor} were acknowledged")
        self._compare_reread()
        seen = self._ask_reader(before, "after recovery")
        if seen is not None:
            self._compare_seen(seen, before, "after recovery")
            if before + len(seen) != self.model.end:
                self._wrong(f"the reader sees {before + len(seen)} records of {self.model.end}")

    def _work(self, plan: Plan, writer: int) -> itertools.chain[Call]:
        # The first calls are drawn before the fork, so that the kill meets a writer that writes.
        work = calls(plan, self.log_plan, writer)
        return itertools.chain(list(itertools.islice(work, 200)), work)

    def _write_and_kill(self, plan: Plan) -> None:
        early = self.options.defect == defects.EARLY_ACK
        children = []
        for writer in range(plan.writers):
            line, work = self.page.lines[writer], self._work(plan, writer)
            line.reset()

            def body(started: Callable[[], None], writer=writer, line=line, work=work) -> None:
                write(self.path, plan, self.log_plan, writer, work, line, early, started)

            children.append(Child(body))
        if not plan.at_once:
            for child in children:
                child.wait_started()
        time.sleep(plan.delay_us / 1e6)
        for writer, child in enumerate(children[: plan.victims]):
            self._failed(f"writer {writer}", child.kill())
            line = self.page.lines[writer]
            self.summary.acknowledged.append(line.acknowledged)
        if plan.victims < plan.writers:
            time.sleep(GO_ON_SECONDS)
        for line in self.page.lines[plan.victims : plan.writers]:
            line.stop()
        for writer, child in enumerate(children[plan.victims :], start=plan.victims):
            if not _ended(child):
                self._wrong(f"writer {writer} did not end when it was asked to; it was killed")
            self._failed(f"writer {writer}", child.kill())

    def _apply_acknowledged(self, plan: Plan) -> list[Pending]:
        # The model takes part in every call that was acknowledged; those in flight are returned.
        pending: list[Pending] = []
        # The others first: what the first one drops may be theirs.
        for writer in reversed(range(plan.writers)):
            line = self.page.lines[writer]
            stream = calls(plan, self.log_plan, writer)
            before = -1
            for number, call in enumerate(itertools.islice(stream, line.acknowledged), start=1):
                seq = line.seq_of(number)
                self._wrong(*self.model.apply(Pending(plan.round, writer, number, call), seq))
                if call.kind.appends and self.options.shared:
                    if seq <= before:
                        self._wrong(f"call {number} of writer {writer} got {seq}, the one before {before}")
                    before = seq if call.sizes else before
            where = "between two calls"
            if line.submitted > line.acknowledged:
                call = next(stream)
                pending.append(Pending(plan.round, writer, line.submitted, call))
                where = f"in {call.kind.name.lower()}{', durable' if call.durable else ''}"
            if writer < plan.victims:
                self.summary.calls[f"killed {where}"] += 1
        return pending

    def _kill_recovery(self, plan: Plan) -> None:
        def body(started: Callable[[], None]) -> None:
            if plan.recovery_trap is not None:
                set_trap(plan.recovery_trap)
            Log.open(self.path, "w", flush_policy=FlushPolicy.MANUAL).close()
            started()

        opener = Child(body)
        time.sleep((plan.recovery_delay_us or 0) / 1e6)
        self._failed("the first to open", opener.kill())
        self.summary.counts["rounds in which the recovering process was killed too"] += 1

    def _reopen_and_check(self, plan: Plan, pending: list[Pending], before: int) -> None:
        policy = FlushPolicy.MANUAL if plan.closes_cleanly else FlushPolicy.NEVER
        begun = time.perf_counter()
        log = Log.open(self.path, "w", flush_policy=policy, timestamps=self.log_plan.timestamps)
        self.summary.reopen_ms.append((time.perf_counter() - begun) * 1e3)
        with log:
            whole = plan.round % WHOLE_EVERY == 0 or plan.loses_control or self._drops
            start = checks.first_of(log) if whole else max(checks.first_of(log), before - 20)
            found, wrong = checks.read(log, start, self.log_plan.timestamps)
            self._wrong(*wrong)
            self._wrong(*checks.settle_drops(log, self.model, pending, found))
            self._wrong(*self.model.resolve(pending, found, log.committed))
            self._wrong(*checks.compare(found, self.model, start))
            self._wrong(*checks.check_length(log, self.model))
            said = max(line.durable for line in self.page.lines[: plan.writers])
            self._wrong(*checks.check_marks(log, min(said, self.model.end)))
            if whole:
                self._wrong(*checks.check_verify(log))
                self.summary.counts["rounds compared from the first record on"] += 1
            self._append_afterwards(log, plan)

    def _append_afterwards(self, log: Log, plan: Plan) -> None:
        made = Pending(plan.round, CHECKER, 1, Call(Kind.BATCH, (100, 200, 300), False, 0))
        seqs = log.append_many([payload_of(origin) for origin in made.origins], atomic=True)
        self._wrong(*self.model.apply(made, seqs.start))
        found, wrong = checks.read(log, max(self.model.first, self.model.end - 4), self.log_plan.timestamps)
        self._wrong(*wrong)
        self._wrong(*checks.compare(found, self.model, min(found)))

    # ---- the reader ----

    def _start_reader(self, plan: Plan) -> None:
        if self.reader is not None and plan.round >= self.reader_until:
            self._drop_reader()
        wanted = plan.round % READER_EVERY == 0 or self.options.defect == defects.STALE_READER
        if self.reader is None and wanted:
            self._new_reader(plan)
        if self.reader is not None:
            self.summary.counts["rounds with a reader that was there before"] += 1

    def _new_reader(self, plan: Plan) -> None:
        is_stale = self.options.defect == defects.STALE_READER
        kind = RereadingReader if self._drops and not is_stale else Reader
        self.reader = kind(self.path, max(self.model.end - 1, self.model.first), is_stale)
        self.reader_until = plan.round + READER_ROUNDS
        self.summary.counts["readers"] += 1

    def _ask_reader(self, since: int, when: str) -> list[int] | None:
        if self.reader is None or self.reader.start > since or isinstance(self.reader, RereadingReader):
            return None
        try:
            return self.reader.seen(since)
        except ReaderFailed as error:
            self.reader = None
            self._wrong(f"the reader failed {when}: {error}")
            return None

    def _compare_seen(self, seen: list[int], start: int, when: str) -> None:
        for seq, total in enumerate(seen, start=start):
            origin = self.model.records.get(seq)
            if origin is None or crc32(payload_of(origin)) != total:
                self._wrong(f"the reader saw a record {seq} {when} that is not in the log")
                return

    def _compare_reread(self) -> None:
        if not isinstance(self.reader, RereadingReader):
            return
        try:
            found = self.reader.records()
        except ReaderFailed as error:
            self.reader = None
            self._wrong(f"the reader failed: {error}")
            return
        expected = {seq: crc32(payload_of(origin)) for seq, origin in self.model.records.items()}
        if found != expected:
            wrong = sorted(seq for seq, _ in found.items() ^ expected.items())
            self._wrong(
                f"the reader sees {len(found)} records, of {len(expected)}; first differences: {wrong[:5]}"
            )

    @property
    def _drops(self) -> bool:
        return self.log_plan.reaches_back and bool(AVAILABLE)

    def _drop_reader(self) -> None:
        if self.reader is not None:
            self._failed("the reader", self.reader.close())
        self.reader = None

    # ---- what is wrong ----

    def _wrong(self, *texts: str) -> None:
        self.violations += texts

    def _failed(self, who: str, failure: str) -> None:
        if failure:
            self._wrong(f"{who} failed: {failure}")

    def _preserve(self) -> None:
        # Opening changes what a kill left. What it will look at is kept until that has gone well.
        try:
            wreck: Wreck = inspect(self.path)
            for trace in wreck.traces:
                self.summary.traces[f"left {trace}"] += 1
            tails = [segment_path(self.path, wreck.segment_id)]
        except (FileNotFoundError, StopIteration):
            # Killed while CONTROL was made anew, or replaced by a roll in that moment.
            self.summary.traces["left no CONTROL, or none of its segment"] += 1
            tails = []
        sources = [self.path / "CONTROL", self.path / "MANIFEST", *tails]
        self.evidence = {source.name: source.read_bytes() for source in sources if source.exists()}
        listing = (f"{entry.stat().st_size:>12} {entry.name}\n" for entry in sorted(self.path.iterdir()))
        self.evidence["listing"] = "".join(listing).encode()

    def _report(self, number: int) -> None:
        kept = self.path.with_name(f"violation-{number}")
        self.path.rename(kept)
        before = kept.with_name(f"{kept.name}-before-reopening")
        before.mkdir()
        for name, content in self.evidence.items():
            (before / name).write_bytes(content)
        command = f"python -m tests.crash.log_kill_storm --seed {self.options.seed} --first-round {number}"
        command += " --kills 50" + (" --shared" if self.options.shared else "")
        if self.options.defect is not None:
            command += f" --defect {self.options.defect}"
        self.options.report(f"VIOLATION in round {number}; the log is kept in {kept}; {command}")
        for text in self.violations:
            self.options.report(f"  {text}")


def _ended(child: Child) -> bool:
    # Whether a child that was asked to end does so in time.
    for _ in range(CHILD_SECONDS_MAX * 1000):
        if os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
            return True
        time.sleep(0.001)
    return False
