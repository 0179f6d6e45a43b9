"""A log is a list that one can only append to, whatever happens to the process and its derived files."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mmapio import FlushPolicy
from mmaplog import Log
from tests.unit.mmapio.processes import killed_after
from tests.unit.mmaplog.segment_file import payloads_on_disk

SEGMENT = 64 << 10
payloads = st.binary(max_size=40) | st.builds(
    lambda byte, size: bytes([byte]) * size,
    st.integers(0, 255),
    st.integers(0, 3000) | st.sampled_from([SEGMENT - 4096 - 16, SEGMENT - 4096 - 15, SEGMENT, 3 * SEGMENT]),
)
POLICIES = {
    "never": FlushPolicy.NEVER,
    "manual": FlushPolicy.MANUAL,
    "every 5000 bytes": FlushPolicy.every_bytes(5000),
    "every 7 writes": FlushPolicy.every_writes(7),
}
# By name: a failure prints them.
policies = st.sampled_from(sorted(POLICIES))


class LogAgainstList(RuleBasedStateMachine):
    """Every rule does the same to a log and to a list."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="log-"))
        self.path = self.directory / "log"
        self.model: list[bytes] = []
        self.reader: Log | None = None
        self.seen = 0

    @initialize(policy=policies, timestamps=st.booleans())
    def begin(self, policy: str, timestamps: bool) -> None:
        self.timestamps = timestamps
        self.open(policy)

    def open(self, policy: str) -> None:
        self.log = Log.open(
            self.path, flush_policy=POLICIES[policy], timestamps=self.timestamps, segment_bytes=SEGMENT
        )

    @rule(payload=payloads, durable=st.booleans())
    def append(self, payload: bytes, durable: bool) -> None:
        assert self.log.append(payload, durable=durable) == len(self.model)
        self.model.append(payload)
        if durable:
            assert self.log.durable == len(self.model)

    @rule(batch=st.lists(payloads, max_size=30), atomic=st.booleans(), joined=st.booleans())
    def append_many(self, batch: list[bytes], atomic: bool, joined: bool) -> None:
        expected = range(len(self.model), len(self.model) + len(batch))
        if joined:
            offsets = [0, *itertools.accumulate(map(len, batch))]
            assert self.log.append_many(b"".join(batch), offsets, atomic=atomic) == expected
        else:
            assert self.log.append_many(batch, atomic=atomic) == expected
        self.model += batch

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def look_up(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(-len(self.model), len(self.model) - 1))
        entry = self.log[number]
        assert (entry.seq, bytes(entry.payload)) == (number % len(self.model), self.model[number])

    @rule()
    def verify(self) -> None:
        found = self.log.verify()
        assert (found.records, found.damages) == (len(self.model), ())

    @rule()
    def flush(self) -> None:
        self.log.flush()
        assert self.log.durable == len(self.model)

    @rule(data=st.data())
    def replay_a_range(self, data: st.DataObject) -> None:
        start = data.draw(st.integers(0, len(self.model)))
        stop = data.draw(st.integers(start, len(self.model)))
        entries = list(self.log.replay(start, stop))
        assert [entry.seq for entry in entries] == list(range(start, stop))
        assert [bytes(entry.payload) for entry in entries] == self.model[start:stop]
        back = self.log.replay(start, stop, reverse=True)
        assert [bytes(entry.payload) for entry in back] == self.model[start:stop][::-1]

    @rule(policy=policies)
    def reopen(self, policy: str) -> None:
        self.log.close()
        self.open(policy)

    @rule(policy=policies, batch=st.lists(payloads, max_size=10), atomic=st.booleans())
    def a_killed_writer(self, policy: str, batch: list[bytes], atomic: bool) -> None:
        self.log.close()

        def write() -> Log:
            self.open(policy)
            self.log.append_many(batch, atomic=atomic)
            return self.log

        killed_after(write)
        self.model += batch
        self.open(policy)
        assert not self.log.recovered

    @precondition(lambda self: self.reader is None)
    @rule(policy=policies)
    def lose_control(self, policy: str) -> None:
        self.log.close()
        (self.path / "CONTROL").unlink()
        self.open(policy)
        assert self.log.recovered

    @precondition(lambda self: self.reader is None)
    @rule(policy=policies, garbage=st.binary(min_size=1, max_size=100).filter(any))
    def a_torn_tail(self, policy: str, garbage: bytes) -> None:
        segment_id, end = self.log.end_of_tail
        self.log.close()
        (tail,) = self.path.glob(f"*-{segment_id:016x}.seg")
        if end + 256 <= tail.stat().st_size:
            with tail.open("r+b") as file:
                file.seek(end + 16)
                file.write(garbage)
            (self.path / "CONTROL").unlink()
        self.open(policy)

    @precondition(lambda self: self.reader is None)
    @rule(policy=policies)
    def copy(self, policy: str) -> None:
        self.log.close()
        shutil.copytree(self.path, self.directory / "copy")
        shutil.rmtree(self.path)
        (self.directory / "copy").rename(self.path)
        self.open(policy)

    @rule()
    def open_a_reader(self) -> None:
        if self.reader is not None:
            self.reader.close()
        self.reader, self.seen = Log.open(self.path, "r"), 0

    @rule()
    def close_the_reader(self) -> None:
        if self.reader is not None:
            self.reader.close()
            self.reader = None

    @invariant()
    def the_reader_follows(self) -> None:
        if self.reader is not None:
            assert [bytes(entry.payload) for entry in self.reader.replay(self.seen)] == self.model[
                self.seen :
            ]
            self.seen = len(self.model)

    @invariant()
    def the_log_is_the_list(self) -> None:
        if hasattr(self, "log"):
            assert len(self.log) == self.log.committed == len(self.model)
            assert self.log.durable <= len(self.model)
            assert [bytes(entry.payload) for entry in self.log.replay()] == self.model

    def teardown(self) -> None:
        if hasattr(self, "log"):
            self.log.close()
            assert payloads_on_disk(self.path) == self.model
        if self.reader is not None:
            self.reader.close()
        shutil.rmtree(self.directory)


TestLogAgainstList = LogAgainstList.TestCase
