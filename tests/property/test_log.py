"""A log is a list with gaps that one can append to and take from at both ends, whatever happens to the
process and its derived files.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mmapio import FlushPolicy
from mmaplog import Follower, Log, TooOld
from tests.support.plain_log import read_log
from tests.unit.mmapio.processes import killed_after

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


class LogAgainstModel(RuleBasedStateMachine):
    """Every rule does the same to a log and to a dict of its records, of which the first and the next
    number are known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="log-"))
        self.path = self.directory / "log"
        self.model: dict[int, bytes] = {}
        self.first = 0
        self.stop = 0
        self.reader: Log | None = None
        self.other: Log | None = None
        self.follower: Follower | None = None
        # Which record had each number last, also of those that were dropped at the beginning.
        self.history: list[int] = []
        self.appended = 0
        # Of those who stopped reading: the epoch, and the records that they had read.
        self.readers: list[tuple[int, list[int]]] = []
        self.manifest_was_lost = False

    @initialize(policy=policies, timestamps=st.booleans(), shared=st.booleans())
    def begin(self, policy: str, timestamps: bool, shared: bool) -> None:
        self.timestamps = timestamps
        self.open(policy, shared)

    def open(self, policy: str, shared: bool = False) -> None:
        self.log = Log.open(
            self.path,
            flush_policy=POLICIES[policy],
            timestamps=self.timestamps,
            segment_bytes=SEGMENT,
            shared=shared,
        )
        self.shared = shared

    def close(self) -> None:
        if self.other is not None:
            self.other.close()
            self.other = None
        self.log.close()

    def add(self, batch: list[bytes]) -> None:
        self.model.update(zip(itertools.count(self.stop), batch, strict=False))
        self.stop += len(batch)
        self.history += range(self.appended, self.appended + len(batch))
        self.appended += len(batch)

    def drop(self, first: int, stop: int) -> None:
        self.first, self.stop = max(first, self.first), stop
        del self.history[stop:]
        self.model = {seq: data for seq, data in self.model.items() if self.first <= seq < stop}

    def between(self, start: int, stop: int) -> dict[int, bytes]:
        return {seq: data for seq, data in self.model.items() if start <= seq < stop}

    @rule(payload=payloads, durable=st.booleans(), other=st.booleans())
    def append(self, payload: bytes, durable: bool, other: bool) -> None:
        log = self.other if other and self.other is not None else self.log
        assert log.append(payload, durable=durable) == self.stop
        self.add([payload])
        if durable:
            assert self.log.durable == self.stop

    @rule(
        batch=st.lists(payloads, max_size=30), atomic=st.booleans(), joined=st.booleans(), other=st.booleans()
    )
    def append_many(self, batch: list[bytes], atomic: bool, joined: bool, other: bool) -> None:
        log = self.other if other and self.other is not None else self.log
        expected = range(self.stop, self.stop + len(batch))
        if joined:
            offsets = [0, *itertools.accumulate(map(len, batch))]
            assert log.append_many(b"".join(batch), offsets, atomic=atomic) == expected
        else:
            assert log.append_many(batch, atomic=atomic) == expected
        self.add(batch)

    @precondition(lambda self: self.first < self.stop)
    @rule(data=st.data())
    def look_up(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(self.first, self.stop - 1))
        if number in self.model:
            assert bytes(self.log[number].payload) == self.model[number]
            entry = self.log[number - self.stop]
            assert (entry.seq, bytes(entry.payload)) == (number, self.model[number])
        else:
            with pytest.raises(IndexError, match="removed by a compaction"):
                self.log[number]

    @precondition(lambda self: self.first > 0)
    @rule(data=st.data())
    def look_up_what_was_truncated(self, data: st.DataObject) -> None:
        with pytest.raises(TooOld):
            self.log[data.draw(st.integers(0, self.first - 1))]

    @rule()
    def verify(self) -> None:
        found = self.log.verify()
        assert (found.records, found.damages) == (len(self.model), ())

    @rule()
    def flush(self) -> None:
        self.log.flush()
        assert self.log.durable == self.stop

    @rule(data=st.data())
    def replay_a_range(self, data: st.DataObject) -> None:
        start = data.draw(st.integers(self.first, self.stop))
        stop = data.draw(st.integers(start, self.stop))
        expected = self.between(start, stop)
        if start == 0 < self.first:
            return
        entries = {entry.seq: bytes(entry.payload) for entry in self.log.replay(start, stop)}
        assert list(entries.items()) == list(expected.items())
        back = [(entry.seq, bytes(entry.payload)) for entry in self.log.replay(start, stop, reverse=True)]
        assert back == list(expected.items())[::-1]

    @rule(data=st.data())
    def truncate_before(self, data: st.DataObject) -> None:
        seq = data.draw(st.integers(max(self.first - 2, 0), self.stop))
        self.log.truncate_before(seq)
        self.drop(seq, self.stop)

    @rule(data=st.data())
    def truncate_after(self, data: st.DataObject) -> None:
        seq = data.draw(st.integers(self.first, self.stop))
        epoch = self.log.epoch
        self.log.truncate_after(seq)
        assert self.log.epoch == epoch + (seq < self.stop)
        if seq < self.stop:
            self.follower = None
        self.drop(self.first, seq)

    @rule(records=st.integers(0, 60))
    def retain(self, records: int) -> None:
        before = len(self.model)
        first = self.log.retain(max_records=records)
        self.drop(first, self.stop)
        assert len(self.model) >= min(records, before)

    @rule(divisor=st.integers(1, 4), by_key=st.booleans())
    def compact(self, divisor: int, by_key: bool) -> None:
        before = self.model
        wanted = {seq for seq in before if seq % divisor == 0}
        if by_key:
            newest = {seq % divisor: seq for seq in before}
            self.log.compact(key=lambda entry: entry.seq % divisor)
            wanted = set(newest.values())
        else:
            self.log.compact(lambda entry: entry.seq % divisor == 0)
        self.model = {entry.seq: bytes(entry.payload) for entry in self.log.replay()}
        # What is in the segment being written stays in any case.
        assert wanted <= self.model.keys()
        assert self.model.items() <= before.items()
        extra = self.model.keys() - wanted
        if extra:
            assert set(self.between(min(extra), self.stop)) == {seq for seq in before if seq >= min(extra)}

    @rule(policy=policies, shared=st.booleans())
    def reopen(self, policy: str, shared: bool) -> None:
        self.close()
        self.open(policy, shared)

    @precondition(lambda self: self.shared)
    @rule(policy=policies)
    def open_another(self, policy: str) -> None:
        if self.other is not None:
            self.other.close()
        self.other = Log.open(
            self.path, "w", flush_policy=POLICIES[policy], timestamps=self.timestamps, shared=True
        )

    @rule(policy=policies, batch=st.lists(payloads, max_size=10), atomic=st.booleans())
    def a_killed_writer(self, policy: str, batch: list[bytes], atomic: bool) -> None:
        if not self.shared:
            self.close()

        def write() -> Log:
            log = Log.open(
                self.path,
                flush_policy=POLICIES[policy],
                timestamps=self.timestamps,
                segment_bytes=SEGMENT,
                shared=self.shared,
            )
            log.append_many(batch, atomic=atomic)
            return log

        killed_after(write)
        self.add(batch)
        if not self.shared:
            self.open(policy)
        assert not self.log.recovered or self.shared

    @precondition(lambda self: self.reader is None)
    @rule(policy=policies, shared=st.booleans())
    def lose_control(self, policy: str, shared: bool) -> None:
        self.close()
        (self.path / "CONTROL").unlink()
        self.open(policy, shared)
        assert self.log.recovered

    @precondition(lambda self: self.reader is None)
    @rule(policy=policies)
    def lose_manifest(self, policy: str) -> None:
        # Where in its first segment the log begins is forgotten, so that is said again.
        self.close()
        (self.path / "MANIFEST").unlink()
        self.open(policy)
        assert self.log.first_seq <= self.first
        self.log.truncate_before(self.first)
        self.manifest_was_lost = True

    @precondition(lambda self: self.reader is None)
    @rule(policy=policies, garbage=st.binary(min_size=1, max_size=100).filter(any))
    def a_torn_tail(self, policy: str, garbage: bytes) -> None:
        _, segment_id, end, _ = self.log.control.tail
        self.close()
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
        self.close()
        shutil.copytree(self.path, self.directory / "copy")
        shutil.rmtree(self.path)
        (self.directory / "copy").rename(self.path)
        self.open(policy)

    @rule(data=st.data())
    def stop_reading(self, data: st.DataObject) -> None:
        seq = data.draw(st.integers(self.first, self.stop))
        self.readers = [*self.readers[-7:], (self.log.epoch, self.history[:seq])]

    @rule()
    def open_a_reader(self) -> None:
        self.close_the_reader()
        self.reader = Log.open(self.path, "r")
        self.follower = self.reader.follow(self.first, timeout=0)

    @rule()
    def close_the_reader(self) -> None:
        if self.reader is not None:
            self.reader.close()
            self.reader = self.follower = None

    @invariant()
    def the_reader_follows(self) -> None:
        if self.reader is not None:
            assert {entry.seq: bytes(entry.payload) for entry in self.reader.replay()} == self.model
            assert len(self.reader) == len(self.model)
        if self.follower is not None and self.follower.seq >= self.first:
            expected = self.between(self.follower.seq, self.stop)
            assert {entry.seq: bytes(entry.payload) for entry in self.follower} == expected

    @invariant()
    def who_stopped_reading_misses_nothing(self) -> None:
        for log in (self.log, self.reader) if hasattr(self, "log") else ():
            for epoch, seen in self.readers if log is not None else ():
                both = zip(seen, self.history, strict=False)
                known = sum(1 for _ in itertools.takewhile(lambda each: each[0] == each[1], both))
                found = log.resume(epoch, len(seen))
                assert found == known or (found == 0 and self.manifest_was_lost)

    @invariant()
    def the_log_is_the_model(self) -> None:
        if hasattr(self, "log"):
            assert (self.log.first_seq, self.log.committed) == (self.first, self.stop)
            assert len(self.log) == len(self.model)
            assert self.log.durable <= self.stop
            assert {entry.seq: bytes(entry.payload) for entry in self.log.replay()} == self.model
        if self.other is not None:
            assert {entry.seq: bytes(entry.payload) for entry in self.other.replay()} == self.model

    def teardown(self) -> None:
        if hasattr(self, "log"):
            self.close()
            found = read_log(self.path)
            assert (found.first_seq, found.committed) == (self.first, self.stop)
            assert {record.seq: record.payload for record in found.records} == self.model
        if self.reader is not None:
            self.reader.close()
        shutil.rmtree(self.directory)


TestLogAgainstModel = LogAgainstModel.TestCase
