"""What opening a store or log asks the system for: the same whatever the number of segments, and once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mmapkv import KVStore
from mmaplog import FlushPolicy, Log
from tests.unit.mmapio.processes import killed_after, living_child
from tests.unit.mmapio.tracing import Call, traced
from tests.unit.mmapkv.stores import SEGMENT, opened

FEW, MANY = 2, 40
VALUE = b"v" * 1000
# Calls on files. Memory is left out: an allocator asks for it when it likes.
EVENTS = (
    "openat,newfstatat,fstat,statx,pread64,pwrite64,read,fcntl,getdents64,lseek,close,rename,renameat,unlink,"
    "unlinkat,fdatasync,fsync,clone,clone3"
)
BEGIN, END = "the opening begins", "the opening ends"

OPENING = f"""
import os
from mmapkv import KVStore
from mmaplog import FlushPolicy, Log
paths, kind, mode, other, patient = arguments
opening = KVStore.open if kind == "store" else Log.open
policy = FlushPolicy.MANUAL if patient else FlushPolicy.every_millis(1000)
opening(other).close()  # what is imported, or asked for once in a process
for path in paths:
    os.path.exists("{BEGIN}")
    opened = opening(path, mode, flush_policy=policy)
    os.path.exists("{END}")
    opened.close()
    del opened  # whose descriptors the next one would close
answer(None)
"""


def filled(path: Path, kind: str, segments: int) -> KVStore | Log:
    """A store or log of so many segments, the last with some records that are not durable."""
    if kind == "log":
        log = Log.open(path, flush_policy=FlushPolicy.MANUAL, segment_bytes=SEGMENT)
        while len(log.segments.bases()) < segments:
            log.append(VALUE)
        log.flush()
        log.append(VALUE)
        return log
    kv = opened(path)
    number = 0
    while len(kv._log.segments.bases()) < segments:
        kv[b"%d" % number] = VALUE
        number += 1
    kv.flush()
    kv[b"last"] = VALUE
    return kv


def calls_of_openings(paths: list[Path], kind: str, how: str) -> list[list[Call]]:
    """For each of them the calls between the two marks."""
    mode = "w" if how in ("closed", "killed") else "r"
    trace = paths[0].parent / "trace"
    # Where something is not durable there is a thread by default, whose calls would come in between.
    arguments = ([str(path) for path in paths], kind, mode, paths[0].parent / "other", how == "killed")
    _, calls = traced(
        OPENING, *arguments, events=EVENTS, trace=trace, lacking="what opening asks the system for"
    )
    at = [
        number
        for number, call in enumerate(calls)
        if any(BEGIN in each or END in each for each in call.arguments)
    ]
    assert len(at) == 2 * len(paths)
    return [calls[begin + 1 : end] for begin, end in zip(at[::2], at[1::2], strict=True)]


@pytest.mark.parametrize("kind", ["store", "log"])
@pytest.mark.parametrize("how", ["closed", "closed, read", "beside a writer", "killed"])
def test_opening_touches_no_segment_but_the_last(tmp_path: Path, kind: str, how: str) -> None:
    """Nor does it read the directory twice, where nobody else changes it: that took most of the time."""
    counts, names = [], []
    # Another writer may be at work meanwhile: then it is read until nothing has changed.
    looks = 2 if how == "beside a writer" else 1
    paths = {segments: tmp_path / str(segments) for segments in (FEW, MANY)}

    def fill() -> list[KVStore | Log]:
        return [filled(path, kind, segments) for segments, path in paths.items()]

    if how == "killed":
        killed_after(fill)
        openings = calls_of_openings([*paths.values()], kind, how)
    elif how == "beside a writer":
        with living_child(fill):
            openings = calls_of_openings([*paths.values()], kind, how)
    else:
        for each in fill():
            each.close()
        openings = calls_of_openings([*paths.values()], kind, how)
    for path, calls in zip(paths.values(), openings, strict=True):
        found = Counter(
            call.arguments[1].strip('"').replace(str(path), "/") for call in calls if call.name == "openat"
        )
        # Where a writer is at work, he vouches for the end.
        assert sum(name.endswith(".seg") for name in found.elements()) == (how != "beside a writer")
        assert found["."] == looks
        # Whether it is one of ours, before anything is made beside it; then under the lock. What was listed
        # shows whether a writer drops the end just now, so MANIFEST is read before and after that.
        assert found["MANIFEST"] == (4 if how == "beside a writer" else 2)
        assert not any(call.name in ("clone", "clone3") for call in calls)
        # A larger directory takes more calls to read it.
        counts.append(Counter(call.name for call in calls if call.name != "getdents64"))
        names.append({name for name in found if not name.endswith(".seg")})
    assert counts[0] == counts[1]
    assert names[0] == names[1]
