"""The store's benchmarks: against the dict, which keeps nothing, and against LMDB, which keeps it all."""

from __future__ import annotations

from .targets import Suite, Target

SUBJECT = "mmapkv"
SUBJECT_UNSYNCED = "mmapkv-manual"

MILLION = 1_000_000

SUITE = Suite(
    name="mmapkv",
    subjects=(SUBJECT, SUBJECT_UNSYNCED),
    rivals=("dict", "lmdb"),
    workloads=("get", "miss", "scan", "open", "disk", "put", "overwrite", "delete"),
    targets=(
        Target("get", SUBJECT, "lmdb", ratio_min=1.5, key_count=MILLION),
        Target("get", SUBJECT, "dict", ratio_min=1.0, key_count=MILLION),
        Target("put", SUBJECT, "lmdb", ratio_min=3.0, key_count=MILLION),
        Target("put", SUBJECT_UNSYNCED, "lmdb", ratio_min=3.0, key_count=MILLION),
    ),
)
