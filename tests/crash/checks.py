"""What must be true of a store opened after a kill. A check returns what it finds wrong, as sentences."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmapio import FlushPolicy
from mmapkv import KVStore
from tests.crash.model import Model
from tests.crash.operations import LOADED, Kind, Operation, value_of, version_in

REPORTED_MAX = 5
# Key length, kind, flags, value length; then perhaps the previous version and the expiry, the key, and the
# value, which starts on a multiple of 8.
_PAYLOAD = struct.Struct("<HBBL")
_FLAG_PREVIOUS, _FLAG_EXPIRY = 2, 4
_PREVIOUS_SIZE, _EXPIRY_SIZE = 16, 8


def committed(store: KVStore) -> int:
    """How many records the log of a store has."""
    return store.stats()["committed"]


def check_keys(store: KVStore, model: Model, keys: Iterable[bytes]) -> list[str]:
    """The values of some keys."""
    return differences(((key, store.get(key)) for key in keys), model)


def differences(found: Iterable[tuple[bytes, bytes | None]], model: Model) -> list[str]:
    """Where pairs of key and value, None for absent, are not those of the model."""
    wrong = []
    for key, value in found:
        expected = model.value(key)
        if value != expected:
            wrong.append(f"{shown(key)} is {shown_value(key, value)}, should be {shown_value(key, expected)}")
    return shortened(wrong)


def check_count(store: KVStore, model: Model) -> list[str]:
    """The number of keys."""
    if len(store) != len(model):
        return [f"len() is {len(store)}, should be {len(model)}"]
    return []


def check_log(store: KVStore, start: int, effects: list[Operation], *, compacted: bool = False) -> list[str]:
    """The log from record `start` on: exactly the operations that had an effect, numbered without a gap.

    When it was `compacted` meanwhile, some of them, each with its number.
    """
    wrong = []
    log = store._parts()[0]
    # What was cleared, a compaction takes off the beginning.
    records = list(log.replay(max(start, log.stats()["first_seq"]) if compacted else start))
    numbers = [entry.seq for entry in records]
    if compacted:
        if numbers != sorted({*numbers} & {*range(start, start + len(effects))}):
            wrong.append(f"the records from {start} on are not numbered in order, or are too many")
    elif numbers != list(range(start, start + len(records))):
        wrong.append(f"the records from {start} on are not numbered one after the other")
    elif len(records) != len(effects):
        wrong.append(f"the log has {len(records)} records of this round, should have {len(effects)}")
    for entry in records:
        if not start <= entry.seq < start + len(effects):
            continue
        operation = effects[entry.seq - start]
        kind, key, value = _parse(bytes(entry.payload))
        expected = value_of(operation.key, operation.version) if operation.kind is Kind.PUT else b""
        if operation.kind is Kind.CLEAR:
            expected = struct.pack("<Q", entry.seq)
        if (kind, key, value) != (operation.kind, operation.key, expected):
            wrong.append(
                f"record {entry.seq} is {kind.name} {shown(key)} {shown_value(key, value)}, should be "
                f"{operation.kind.name} {shown(operation.key)} {shown_value(operation.key, expected)}"
            )
    return shortened(wrong)


def check_items(items: Iterable[tuple[bytes, bytes]], model: Model) -> list[str]:
    """All that iteration yields: every key once, with its value."""
    seen: set[bytes] = set()
    twice = 0
    wrong = []
    for key, value in items:
        twice += key in seen
        seen.add(key)
        if value != model.value(key):
            wrong += differences([(key, value)], model)
    wrong = shortened(wrong)
    if twice:
        wrong.append(f"iteration yields {twice} keys twice")
    missing = [key for key in model.versions if key not in seen]
    return wrong + shortened([f"iteration leaves out {shown(key)}" for key in missing])


def check_rebuilt(store_path: Path, copy: Path, model: Model) -> list[str]:
    """The index of a closed store against one built anew from the segments, for every key."""
    copy.mkdir()
    try:
        # Only the last segment is ever written again; the others are linked, which costs nothing.
        segments = sorted(store_path.glob("*.seg"))
        for segment in segments[:-1]:
            (copy / segment.name).hardlink_to(segment)
        for source in (segments[-1], store_path / "MANIFEST"):
            shutil.copyfile(source, copy / source.name)
        with (
            KVStore.open(copy, "w", flush_policy=FlushPolicy.NEVER) as rebuilt,
            KVStore.open(store_path, "w", flush_policy=FlushPolicy.NEVER) as live,
        ):
            wrong = [
                f"rebuilt: {text}"
                for text in check_count(rebuilt, model) + check_items(rebuilt.items(), model)
            ]
            if committed(rebuilt) != committed(live):
                wrong.append(
                    f"rebuilt: the log has {committed(rebuilt)} records, the live one {committed(live)}"
                )
            wrong += [
                f"with the index that was kept, {text}" for text in check_keys(live, model, model.versions)
            ]
        return shortened(wrong)
    finally:
        shutil.rmtree(copy)


def shown(what: bytes | None) -> str:
    """A key in a message, or a value of unknown origin."""
    if what is None:
        return "absent"
    return repr(what) if len(what) <= 40 else f"{what[:40]!r}... ({len(what)} bytes)"


def shown_value(key: bytes, value: bytes | None) -> str:
    """A value in a message: which write it comes from, if it comes from one of this key."""
    origin = None if value is None else version_in(key, value)
    if origin is None:
        return shown(value)
    where = "loading" if origin.round == LOADED else f"round {origin.round}"
    return f"write {origin.number} of {where} ({origin.size} bytes)"


def shortened(wrong: list[str]) -> list[str]:
    """The first few of many findings."""
    more = len(wrong) - REPORTED_MAX
    return [*wrong[:REPORTED_MAX], f"... and {more} more"] if more > 0 else wrong


def absent_keys(count: int) -> Iterator[bytes]:
    """Keys that nothing ever writes."""
    return (b"never-%d" % number for number in range(count))


def _parse(payload: bytes) -> tuple[Kind, bytes, bytes]:
    key_length, kind, flags, value_length = _PAYLOAD.unpack_from(payload)
    start = _PAYLOAD.size + (_PREVIOUS_SIZE if flags & _FLAG_PREVIOUS else 0)
    start += _EXPIRY_SIZE if flags & _FLAG_EXPIRY else 0
    key = payload[start : start + key_length]
    value_at = (start + key_length + 7) & ~7
    return Kind(kind), key, payload[value_at : value_at + value_length]
