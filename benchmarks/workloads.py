"""The glossary of the store: every workload by name; its class says what it does and what exactly is timed.

A loop is written once and runs for every rival: `for k in keys: f(k)` with `f` bound before the loop, or
the operator of the same, `for k in keys: m[k]`. The row `(loop)` is the walk over the keys alone; it is
contained in all other rows and subtracted from none.

Keys are new objects for every run, in shuffled order. Those to look up or delete lie in memory in another
order than they are used in, so that walking them costs every rival a cache miss a key, and more than the bare
loop shows, in which the misses overlap. Pairs to store lie in the order they are stored in, as a program has
them that has just read or computed them. `--layout` changes either.
"""

from __future__ import annotations

from .change_workloads import Commit, Delete, Durable, Overwrite, Put, PutAll, PutMany, PutTail
from .lookup_workloads import Get, GetMany, GetManyInto, Miss, Scan
from .opening_workloads import Disk, Open, Rebuild, RebuildFromHints, Reopen
from .process_workloads import Processes
from .space_workloads import Churn, Space
from .workload import Workload
from .ycsb_workloads import YcsbA, YcsbB, YcsbC, YcsbD, YcsbE, YcsbF

WORKLOADS: dict[str, type[Workload]] = {
    workload.name: workload
    for workload in (
        Get, GetMany, GetManyInto, Miss, Scan, Processes, Open, Disk, Reopen, RebuildFromHints, Rebuild,
        Put, Overwrite, Delete, PutMany, PutAll, PutTail, Durable, Commit, Space, Churn,
        YcsbA, YcsbB, YcsbC, YcsbF, YcsbD, YcsbE,
    )
}  # fmt: skip
"""In the order they run: those that change nothing first, then a store's lives, from empty to empty."""
