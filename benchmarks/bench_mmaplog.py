"""`python -m benchmarks.bench_mmaplog`: the log against what else records can be appended to."""

from __future__ import annotations

import argparse
import mmap
import signal
import sys
from collections.abc import Sequence

from .adapters import LOG_PEERS, load_log_peer
from .adapters.mmaplog_log import THREADS
from .command import EXIT_TERMINATED, add_common_options, at_least, check_common_options, summary
from .log_workloads import STORED_BYTES, WORKLOADS, Amounts
from .staged import run_suite
from .targets import Limit, Suite, Target

SUBJECT = "mmaplog"
FILE = "buffered-file"

SECOND_NS = 1e9
LOG_MIB = 10 << 10

SUITE = Suite(
    name="mmaplog",
    subjects=(SUBJECT,),
    rivals=tuple(name for name in LOG_PEERS if name != SUBJECT),
    workloads=tuple(WORKLOADS),
    targets=(
        # At most 0.35 times its time.
        Target("append", SUBJECT, FILE, ratio_min=1 / 0.35),
        Target("append", SUBJECT, "persist-queue", ratio_min=100),
        Target("append", SUBJECT, "lmdb", ratio_min=4),
        # 12 and 7 million a second.
        Limit("append-many", SUBJECT, ns_max=SECOND_NS / 12e6),
        Limit("replay", SUBJECT, ns_max=SECOND_NS / 7e6),
        # 3 GB/s.
        Limit("verify", SUBJECT, ns_max=STORED_BYTES / 3),
        Target("look-up", SUBJECT, "lmdb", ratio_min=1),
        Target("durable", SUBJECT, "pwrite", ratio_min=1 / 1.1),
        Limit("durable-bytes", SUBJECT, ns_max=2 * mmap.PAGESIZE, unit="KiB", unit_size=1024, times=False),
        Target("group", SUBJECT, FILE, ratio_min=1 / 0.8),
        Target("threads", SUBJECT, SUBJECT, ratio_min=4, rival_spelling=THREADS.format(1)),
        Limit("wake", SUBJECT, ns_max=30e3, unit="us", unit_size=1e3),
        Limit("reopen", SUBJECT, ns_max=20e6, unit="ms", unit_size=1e6, log_mib=LOG_MIB),
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; missed targets are reported, they are not a failure."""
    parser = _parser()
    options = parser.parse_args(arguments)
    check_common_options(parser, options)
    amounts = Amounts(
        options.records, options.threaded, options.wakes, options.log_mib << 20, options.sample_us * 1e3
    )
    parameters = {
        "rounds": options.rounds,
        "records": options.records,
        "threaded": options.threaded,
        "wakes": options.wakes,
        "log_mib": options.log_mib,
        "sample_us": options.sample_us,
    }
    workloads = [WORKLOADS[name](amounts) for name in options.workloads or SUITE.workloads]
    return run_suite(SUITE, options, workloads, load_log_peer, parameters)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_mmaplog",
        description="Time the log and its peers in turn, in one run, and print medians and ratios.",
        epilog=f"workloads: {summary({name: each.__doc__ for name, each in WORKLOADS.items()})}",
    )
    add_common_options(parser, list(WORKLOADS), list(LOG_PEERS))
    parser.add_argument(
        "--records", type=at_least(2), default=200_000, help="in a log, of 100 B each (%(default)s)"
    )
    parser.add_argument(
        "--threaded", type=at_least(8), default=1600, help="durable records of all threads (%(default)s)"
    )
    parser.add_argument(
        "--wakes", type=at_least(1), default=300, help="how often a follower is woken (%(default)s)"
    )
    parser.add_argument(
        "--log-mib", type=at_least(1), default=LOG_MIB, help="the log of mmaplog to reopen (%(default)s)"
    )
    parser.add_argument(
        "--sample-us",
        type=at_least(1),
        default=2_500,
        help="a measurement of what waits for the device takes 20 times so long, in us (%(default)s)",
    )
    return parser


if __name__ == "__main__":
    # Otherwise a plain kill would leave the logs behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(EXIT_TERMINATED))
    sys.exit(main())
