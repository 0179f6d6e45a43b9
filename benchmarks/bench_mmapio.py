"""`python -m benchmarks.bench_mmapio`: mapped files against what Python and PyPI offer for the same."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from .adapters import PEERS, load_peer
from .command import EXIT_TERMINATED, add_common_options, at_least, check_common_options, summary
from .mapping_workloads import WORKLOADS, Sizes
from .staged import run_suite
from .targets import Limit, Suite, Target

SUBJECT = "mmapio"
SUBJECT_READ_ONLY = "mmapio-ro"
STDLIB = "stdlib-mmap"

SUITE = Suite(
    name="mmapio",
    subjects=(SUBJECT, SUBJECT_READ_ONLY),
    rivals=(STDLIB, "pwrite", "numpy-memmap", "multiprocessing", "atomics"),
    workloads=tuple(WORKLOADS),
    targets=(
        Limit("slice-64", SUBJECT, ns_max=100),
        Limit("slice-64", SUBJECT_READ_ONLY, ns_max=100),
        # At most 1.3 times its time.
        Target("slice-64", SUBJECT, STDLIB, ratio_min=1 / 1.3),
        Target("slice-64", SUBJECT_READ_ONLY, STDLIB, ratio_min=1 / 1.3),
        Target("slice-64k", SUBJECT, STDLIB, ratio_min=10),
        Target("slice-64k", SUBJECT_READ_ONLY, STDLIB, ratio_min=10),
        Limit("fetch-add", SUBJECT, ns_max=45),
        Target("fetch-add", SUBJECT, "multiprocessing", ratio_min=10),
        Limit("chunks", SUBJECT, ns_max=60, touch_mib=1024),
        Target("touch", SUBJECT, STDLIB, ratio_min=3, touch_mib=1024),
        Target("touch-write", SUBJECT, STDLIB, ratio_min=1, touch_mib=1024),
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; missed targets are reported, they are not a failure."""
    parser = _parser()
    options = parser.parse_args(arguments)
    check_common_options(parser, options)
    sizes = Sizes(options.touch_mib << 20, options.grow_mib << 20, options.sample_us * 1e3)

    parameters = {
        "rounds": options.rounds,
        "sample_us": options.sample_us,
        "touch_mib": options.touch_mib,
        "grow_mib": options.grow_mib,
    }
    workloads = [WORKLOADS[name](sizes) for name in options.workloads or SUITE.workloads]
    return run_suite(SUITE, options, workloads, load_peer, parameters)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_mmapio",
        description="Time mapped files and their peers in turn, in one run, and print medians and ratios.",
        epilog=f"workloads: {summary({name: each.__doc__ for name, each in WORKLOADS.items()})}",
    )
    add_common_options(parser, list(WORKLOADS), list(PEERS))
    parser.add_argument(
        "--touch-mib", type=at_least(1), default=1024, help="the file to touch and to walk (%(default)s)"
    )
    parser.add_argument("--grow-mib", type=at_least(1), default=64, help="a growth (%(default)s)")
    parser.add_argument(
        "--sample-us",
        type=at_least(1),
        default=2_500,
        help="how long a measurement of a small operation takes at least, in us (%(default)s)",
    )
    return parser


if __name__ == "__main__":
    # Otherwise a plain kill would leave the files behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(EXIT_TERMINATED))
    sys.exit(main())
