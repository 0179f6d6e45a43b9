"""Planted defects, to see that the storm catches them. Each does to the files what a faulty log would do.

Two live elsewhere: `early-ack` in the writer, `stale-reader` in the reader.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import xxhash

from mmapio import FlushPolicy
from mmaplog import Log
from tests.crash.log_storm.wreck import Wreck, inspect, segment_path

EARLY_ACK = "early-ack"
STALE_READER = "stale-reader"

_HEADER = struct.Struct("<LL")


def lose_the_last_record(directory: Path, wreck: Wreck) -> None:
    """Zero the last committed record, as if it had been published before it was written."""
    _overwrite(directory, wreck, bytes(wreck.end - wreck.last))


def forget_the_last_record(directory: Path, wreck: Wreck) -> None:
    """The same, and nothing is left that says that it ever was."""
    lose_the_last_record(directory, wreck)
    (directory / "CONTROL").unlink()


def replace_the_last_record(directory: Path, wreck: Wreck) -> None:
    """Change the last committed record and fix its checksum, as if two writers had used the same place."""
    with segment_path(directory, wreck.segment_id).open("rb") as file:
        file.seek(wreck.last)
        record = bytearray(file.read(wreck.end - wreck.last))
    length, _ = _HEADER.unpack_from(record)
    start = 24 if record[13] & 8 else 16
    stop = len(record) - (record[13] & 7)
    if stop == start:
        return
    record[stop - 1] ^= 0xFF
    seed = wreck.segment_id ^ (length | wreck.last // 8 << 32)
    _HEADER.pack_into(record, 0, length, xxhash.xxh3_64_intdigest(record[8:], seed) & 0xFFFFFFFF)
    _overwrite(directory, wreck, bytes(record))


def repeat_the_last_record(directory: Path, wreck: Wreck) -> None:
    """Append the last record once more, as if a call that had been carried out were carried out again."""
    with Log.open(directory, "w", flush_policy=FlushPolicy.NEVER) as log:
        times = log[-1].timestamp is not None
        payload = bytes(log[-1].payload)
    with Log.open(directory, "w", flush_policy=FlushPolicy.NEVER, timestamps=times) as log:
        log.append(payload)


def invent_a_record(directory: Path, wreck: Wreck) -> None:
    """Append what nobody asked for."""
    with Log.open(directory, "w", flush_policy=FlushPolicy.NEVER) as log:
        log.append(b"invented by a defect, and large enough to be told")


AFTER_KILL: dict[str, Callable[[Path, Wreck], None]] = {
    "lost-record": lose_the_last_record,
    "forgotten-record": forget_the_last_record,
    "replaced-record": replace_the_last_record,
    "repeated-record": repeat_the_last_record,
    "invented-record": invent_a_record,
}

DEFECTS = (EARLY_ACK, STALE_READER, *AFTER_KILL)


def plant(name: str, directory: Path) -> None:
    """Do to a log after the kill what the defect of this name does. They need a record, and wait for one."""
    wreck = inspect(directory)
    if name in AFTER_KILL and wreck.last:
        AFTER_KILL[name](directory, wreck)


def _overwrite(directory: Path, wreck: Wreck, data: bytes) -> None:
    with segment_path(directory, wreck.segment_id).open("r+b") as file:
        file.seek(wreck.last)
        file.write(data)
