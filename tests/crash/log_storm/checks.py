"""What must be true of a log opened after a kill. A check returns what it finds wrong, as sentences."""

from __future__ import annotations

from typing import Any

from mmaplog import Log
from tests.crash.checks import shortened
from tests.crash.log_storm.model import Model, Pending
from tests.crash.log_storm.plan import Kind
from tests.crash.log_storm.records import payload_of, shown, shown_origin


def first_of(log: Log) -> int:
    """The number of the first record that a log has."""
    native: Any = log
    return int(native.first_seq) if hasattr(native, "first_seq") else int(log.stats()["first_seq"])


def read(log: Log, start: int, timestamps: bool) -> tuple[dict[int, bytes], list[str]]:
    """The payloads from a number on, and what is wrong with the order of their numbers and times."""
    wrong = []
    found: dict[int, bytes] = {}
    before, time_before = start - 1, 0
    for entry in log.replay(start):
        if entry.seq <= before:
            wrong.append(f"record {entry.seq} comes after {before}")
        if (entry.timestamp is not None) != timestamps or (entry.timestamp or 0) < time_before:
            wrong.append(f"record {entry.seq} has the time {entry.timestamp}, that before it {time_before}")
        before, time_before = entry.seq, entry.timestamp or 0
        found[entry.seq] = bytes(entry.payload)
    return found, shortened(wrong)


def settle_drops(log: Log, model: Model, pending: list[Pending], found: dict[int, bytes]) -> list[str]:
    """Bring the model to what became of a call in flight that drops records."""
    first, committed = first_of(log), log.committed
    for made in pending:
        kind = made.call.kind
        if kind in (Kind.TRUNCATE_BEFORE, Kind.RETAIN) and first != model.first:
            limit = model.limit(made.call)
            if not model.first < first <= limit or (
                kind is Kind.TRUNCATE_BEFORE and first != limit and not model.is_shared
            ):
                return [f"{kind.name} in flight left {first}: was {model.first}, was to become {limit}"]
            model.drop_before(first)
        elif kind is Kind.TRUNCATE_AFTER and committed != model.end:
            limit = model.limit(made.call)
            if committed != limit:
                return [f"TRUNCATE_AFTER({limit}) in flight left {committed} of {model.end} records"]
            model.drop_after(limit)
        elif kind in (Kind.COMPACT, Kind.COMPACT_BY_KEY):
            model.removable |= model.not_kept(made.call)
    model.take_out(found)
    if first != model.first:
        return [f"the log begins with record {first}, should begin with {model.first}"]
    return []


def compare(found: dict[int, bytes], model: Model, start: int) -> list[str]:
    """Every record of the model from a number on, byte for byte, and no other."""
    wrong = []
    for seq in range(max(start, model.first), model.end):
        origin = model.records.get(seq)
        payload = found.get(seq)
        if origin is None and payload is not None:
            wrong.append(f"record {seq} is {shown(payload)}, should have been removed")
        elif origin is not None and payload is None:
            wrong.append(f"record {seq} is lost: {shown_origin(origin)}")
        elif origin is not None and payload != payload_of(origin):
            wrong.append(f"record {seq} is {shown(payload)}, should be {shown_origin(origin)}")
    return shortened(wrong)


def check_marks(log: Log, acknowledged_durable: int) -> list[str]:
    """That the durable number is between what was said to be durable and what is there."""
    if not acknowledged_durable <= log.durable <= log.committed:
        return [f"durable is {log.durable}, committed {log.committed}, acknowledged {acknowledged_durable}"]
    return []


def check_length(log: Log, model: Model) -> list[str]:
    """That the log knows how many records are between its ends, those that were taken out not counted."""
    if len(log) != len(model.records):
        return [f"len() is {len(log)}, should be {len(model.records)}"]
    return []


def check_verify(log: Log) -> list[str]:
    """That the log itself finds no damage."""
    return shortened([f"verify: {damage}" for damage in log.verify().damages])
