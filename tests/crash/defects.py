"""Planted defects, to see that the storm catches them. Some do to the files what a faulty store would do.

Others live in a process: `early-ack` and those of compactions in the writer, three in the reader.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from mmapio import FlushPolicy
from mmapkv import KVStore, compaction, pins, relocation
from mmaplog.compaction import rewrite
from tests.crash.wreck import SLOT_TABLE_OFFSET, STATE_OFFSET, Wreck, inspect, segment_path

EARLY_ACK = "early-ack"
CACHING_READER = "caching-reader"
BACKWARD_READER = "backward-reader"
MOVING_SNAPSHOT = "moving-snapshot"
UNPINNED_SNAPSHOT = "unpinned-snapshot"
LOSSY_COMPACTION = "lossy-compaction"
LOSSY_STEP = "lossy-step"
FORGOTTEN_MOVE = "forgotten-move"

_HEADER = struct.Struct("<LL")
_STEP = compaction.step


def lose_the_last_record(store: Path, wreck: Wreck) -> None:
    """Zero the last committed record, as if it had been made visible before it was written."""
    with segment_path(store, wreck.segment_id).open("r+b") as file:
        file.seek(wreck.last)
        file.write(bytes(wreck.end - wreck.last))


def forge_the_last_record(store: Path, wreck: Wreck) -> None:
    """Change the last committed record and fix its checksum, as if two writers had used the same place."""
    with segment_path(store, wreck.segment_id).open("r+b") as file:
        file.seek(wreck.last)
        record = bytearray(file.read(wreck.end - wreck.last))
        length, _ = _HEADER.unpack_from(record)
        # The last byte of the payload: the record ends with as many zeros as three bits of its flags say.
        record[-1 - (record[13] & 7)] ^= 0xFF
        seed = wreck.segment_id ^ (length | wreck.last // 8 << 32)
        _HEADER.pack_into(record, 0, length, xxhash.xxh3_64_intdigest(record[8:], seed) & 0xFFFFFFFF)
        file.seek(wreck.last)
        file.write(record)


def drop_an_index_entry(store: Path, wreck: Wreck) -> None:
    """Zero the index entry of the last record, as if it had been stored in a place just abandoned."""
    index = bytearray((store / "INDEX").read_bytes())
    slots = [struct.unpack_from("<Q", index, SLOT_TABLE_OFFSET + 8 * slot)[0] for slot in range(16384)]
    address = (slots.index(wreck.segment_id) << 26 | wreck.last // 8).to_bytes(5, "little")
    at = -1
    while (at := index.find(address, at + 1)) != -1:
        if at % 8 == 0:
            index[at : at + 8] = bytes(8)
    (store / "INDEX").write_bytes(index)


def invent_a_write(store: Path, wreck: Wreck) -> None:
    """Write what nobody asked for."""
    with KVStore.open(store, "w", flush_policy=FlushPolicy.NEVER) as opened:
        opened[b"key-00000000"] = b"invented"


def miscount(store: Path, wreck: Wreck) -> None:
    """Add one to the number of keys, as if a repeated record had been counted twice."""
    with (store / "INDEX").open("r+b") as file:
        for pair in range(2):
            file.seek(STATE_OFFSET + 16 + 16 * pair)
            count = int.from_bytes(file.read(8), "little")
            file.seek(STATE_OFFSET + 16 + 16 * pair)
            file.write((count + 1).to_bytes(8, "little"))


AFTER_KILL: dict[str, Callable[[Path, Wreck], None]] = {
    "lost-record": lose_the_last_record,
    "forged-record": forge_the_last_record,
    "dropped-entry": drop_an_index_entry,
    "invented-write": invent_a_write,
    "miscount": miscount,
}

OF_READERS = (CACHING_READER, BACKWARD_READER, MOVING_SNAPSHOT, UNPINNED_SNAPSHOT)
"""Those that a reader shows."""

DEFECTS = (EARLY_ACK, LOSSY_COMPACTION, LOSSY_STEP, FORGOTTEN_MOVE, *OF_READERS, *AFTER_KILL)


def plant_in_all(name: str | None) -> None:
    """Plant what lives in every process that opens the store."""
    if name == FORGOTTEN_MOVE:
        # Entries that a killed compaction had not led to the copies yet stay as they are.
        vars(relocation)["finish"] = lambda index, log: True


def plant_in_writer(name: str | None) -> None:
    """Plant what lives in the writer's process."""
    if name == UNPINNED_SNAPSHOT:
        vars(pins)["Pins"].oldest = lambda held, index: index.progress()[0]
    elif name == LOSSY_COMPACTION:
        vars(compaction)["rewrite"] = _rewrite_all_but_one
    elif name == LOSSY_STEP:
        vars(compaction)["step"] = _step_to_all_but_one


def _rewrite_all_but_one(log: Any, group: Any, *arguments: Any) -> None:
    if len(group.kept[0]):
        group.kept[0] = group.kept[0][:-1]
        group.records -= 1
    rewrite(log, group, *arguments)


def _step_to_all_but_one(*arguments: Any) -> Any:
    vars(compaction)["rewrite"] = _rewrite_all_but_one
    try:
        return _STEP(*arguments)
    finally:
        vars(compaction)["rewrite"] = rewrite


def plant(name: str, store: Path) -> None:
    """Do to a killed store what the defect of this name does. Those that need a record wait for one."""
    wreck = inspect(store)
    if name in AFTER_KILL and wreck.last and wreck.applied == wreck.seq:
        AFTER_KILL[name](store, wreck)
