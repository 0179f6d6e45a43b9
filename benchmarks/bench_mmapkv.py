"""`python -m benchmarks.bench_mmapkv`: the store against a dict, which keeps nothing, and other stores."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from . import environment, report
from .adapters import RIVALS, load_rival
from .command import (
    EXIT_TERMINATED,
    EXIT_UNUSABLE,
    EXIT_WRONG_ANSWER,
    add_common_options,
    at_least,
    check_common_options,
    load,
    scratch_directory,
    show_progress,
    summary,
    warn,
    write_json,
)
from .dataset import KEY_SIZE, VALUE_SIZE, Dataset, Layout, WrongAnswer
from .harness import LOOP, Harness, Result
from .targets import Limit, Suite, Target
from .workload import Amounts
from .workloads import WORKLOADS

SUBJECT = "mmapkv"
SUBJECT_UNSYNCED = "mmapkv-manual"
SUBJECT_ORDERED = "mmapkv-ordered"
SUBJECT_HALF = "mmapkv-half"
SUBJECT_UNCOMPACTED = "mmapkv-uncompacted"
SUBJECTS = (SUBJECT, SUBJECT_UNSYNCED, SUBJECT_ORDERED, SUBJECT_HALF, SUBJECT_UNCOMPACTED)

MILLION = 1_000_000
SECOND_NS = 1e9

PUBLISHED = {100_000: "100k", MILLION: "1m", 10 * MILLION: "10m"}
"""Numbers of keys whose whole runs are kept among the results, and how they are called there."""


def _ratio(workload: str, rival: str, ratio_min: float, spelling: str | None = None) -> Target:
    return Target(workload, SUBJECT, rival, ratio_min, key_count=MILLION, rival_spelling=spelling)


def _limit(workload: str, ns_max: float, unit: str = "ns", unit_size: float = 1) -> Limit:
    return Limit(workload, SUBJECT, ns_max, key_count=MILLION, unit=unit, unit_size=unit_size)


SUITE = Suite(
    name="mmapkv",
    subjects=SUBJECTS,
    rivals=tuple(name for name in RIVALS if name not in SUBJECTS),
    workloads=tuple(WORKLOADS),
    targets=(
        # At most 0.75 times the dict's time, and with many keys a call 0.2 times.
        _ratio("get", "dict", 1 / 0.75),
        _ratio("get", "lmdb", 2),
        _ratio("get-many", "dict", 1 / 0.2),
        _ratio("get-many", "lmdb", 10),
        _ratio("miss", "lmdb", 4),
        _ratio("put", "lmdb", 3.5),
        _ratio("put", "tkrzw", 1.5),
        _ratio("put", "rocksdict", 10),
        _ratio("overwrite", "lmdb", 3.5),
        _ratio("delete", "lmdb", 4),
        _ratio("scan", "lmdb", 1.2),
        _ratio("durable", "pwrite", 1 / 1.1),
        _limit("commit", 900),
        # As in batches of a thousand.
        _limit("put-all", 900),
        Limit("put-tail", SUBJECT, 1e6, key_count=10 * MILLION, unit="us", unit_size=1e3),
        _ratio("processes", SUBJECT, 1.7, "one process: kv[k]"),
        _limit("open", 2e6, "ms", 1e6),
        _limit("reopen", 20e6, "ms", 1e6),
        # 3 and 1.5 million keys a second.
        _limit("rebuild-hints", SECOND_NS / 3e6),
        _limit("rebuild", SECOND_NS / 1.5e6),
        Limit("disk", SUBJECT, 1.45, key_count=MILLION, unit="bytes on disk", times=False),
        Limit("space", SUBJECT, 1.6, key_count=MILLION, unit="bytes on disk", times=False),
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; missed targets are reported, they are not a failure."""
    parser = _parser()
    options = parser.parse_args(arguments)
    check_common_options(parser, options)
    wanted = options.rivals or (*SUITE.subjects, *SUITE.rivals)
    contestants, missing = load(wanted, load_rival)
    if SUBJECT in missing or not contestants:
        print("Nothing to measure. `pip install -e .` builds the subject.", file=sys.stderr)
        return EXIT_UNUSABLE

    surroundings = environment.describe(options.dir)
    warn(surroundings)
    data = Dataset(options.keys, options.seed, Layout(options.layout))
    amounts = Amounts(options.operations, options.durable, options.commits)
    parameters = {
        "keys": options.keys,
        "rounds": options.rounds,
        "seed": options.seed,
        "layout": options.layout,
        "operations": options.operations,
        "durable": options.durable,
        "commits": options.commits,
        "key_size": KEY_SIZE,
        "value_size": VALUE_SIZE,
    }
    figures = (
        f"median, lowest and highest of {options.rounds} rounds, and how many times as fast as each rival; "
        f"{LOOP} is contained in all"
    )
    pairs = (
        f"{data.count:,} distinct ones, keys of {KEY_SIZE} B, values of {VALUE_SIZE} B; "
        f"handed out as new objects in shuffled order, layout {data.layout.value}"
    )
    print(report.header(surroundings, contestants, figures, pairs=pairs), flush=True)

    results: dict[str, Result] = {}
    try:
        with scratch_directory(options.dir) as scratch:
            harness = Harness(data, contestants, scratch, options.rounds, show_progress)
            workloads = [WORKLOADS[name](amounts) for name in options.workloads or SUITE.workloads]
            for result in harness.run(workloads):
                results[result.workload.name] = result
                show_progress("")
                print(f"\n{report.table(result, SUITE.rivals, data.bytes_stored)}", flush=True)
    except WrongAnswer as error:
        show_progress("")
        print(f"WRONG ANSWER, no figure of this run counts: {error}", file=sys.stderr)
        return EXIT_WRONG_ANSWER
    print(f"\n{report.verdicts(SUITE.targets, results, parameters)}")
    document = report.as_json(surroundings, contestants, missing, parameters, results, SUITE.targets)
    write_json(options.json or _published(options), document)
    return 0


def run_as_program() -> None:
    """Run, and end the process."""
    # Otherwise a plain kill would leave the stores behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(EXIT_TERMINATED))
    sys.exit(main())


def _published(options: argparse.Namespace) -> Path | None:
    """Where a run belongs that measured everything."""
    if options.workloads or options.rivals or options.keys not in PUBLISHED:
        return None
    return Path(__file__).parent / "results" / f"store-{PUBLISHED[options.keys]}.json"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_mmapkv",
        description="Time the store and its rivals in turn, in one run, and print medians and ratios. A run "
        f"of everything with {', '.join(PUBLISHED.values())} keys is also kept in benchmarks/results.",
        epilog=f"workloads: {summary({name: each.__doc__ for name, each in WORKLOADS.items()})}",
    )
    add_common_options(parser, list(WORKLOADS), list(RIVALS))
    parser.add_argument(
        "--keys",
        type=at_least(2),
        default=MILLION,
        help="pairs in a store, such as 100k, 1M, 10M (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the keys, values and orders (%(default)s)")
    parser.add_argument(
        "--layout",
        choices=[layout.value for layout in Layout],
        default=Layout.MIXED.value,
        help="how the objects that the loops walk lie in memory; mixed: look-up keys scattered, pairs to "
        "store sequential (%(default)s)",
    )
    usual = Amounts()
    parser.add_argument(
        "--operations",
        type=at_least(1),
        default=usual.operations,
        help="of each YCSB mix, at most one a key (%(default)s)",
    )
    parser.add_argument(
        "--durable",
        type=at_least(1),
        default=usual.durable,
        help="puts that each wait for the device (%(default)s)",
    )
    parser.add_argument(
        "--commits", type=at_least(1), default=usual.commits, help="of 1,000 pairs that wait (%(default)s)"
    )
    return parser


if __name__ == "__main__":
    run_as_program()
