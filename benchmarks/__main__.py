"""`python -m benchmarks`: run a suite, print its tables and whether its targets were met."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from . import bench_mmapkv, environment, report
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
from .workloads import WORKLOADS

SUITES = {suite.name: suite for suite in (bench_mmapkv.SUITE,)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite that the command line asks for; missed targets are reported, they are not a failure."""
    parser = _parser()
    options = parser.parse_args(arguments)
    suite = SUITES[options.suite]
    workload_names = options.workloads or suite.workloads
    wanted = options.rivals or (*suite.subjects, *suite.rivals)
    check_common_options(parser, options)

    contestants, missing = load(wanted, load_rival)
    if suite.subjects[0] in missing or not contestants:
        print("Nothing to measure. `pip install -e .` builds the subject.", file=sys.stderr)
        return EXIT_UNUSABLE

    surroundings = environment.describe(options.dir)
    warn(surroundings)
    data = Dataset(options.keys, options.seed, Layout(options.layout))
    parameters = {
        "keys": options.keys,
        "rounds": options.rounds,
        "seed": options.seed,
        "layout": options.layout,
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
            for result in harness.run([WORKLOADS[name] for name in workload_names]):
                results[result.workload.name] = result
                show_progress("")
                print(f"\n{report.table(result, suite.rivals, data.bytes_stored)}", flush=True)
    except WrongAnswer as error:
        show_progress("")
        print(f"WRONG ANSWER, no figure of this run counts: {error}", file=sys.stderr)
        return EXIT_WRONG_ANSWER
    print(f"\n{report.verdicts(suite.targets, results, parameters)}")
    write_json(
        options.json,
        report.as_json(surroundings, contestants, missing, parameters, results, suite.targets),
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time the store and its rivals in turn, in one run, and print medians and ratios.",
        epilog=f"workloads: {summary({name: type(each).__doc__ for name, each in WORKLOADS.items()})}",
    )
    parser.add_argument(
        "suite", nargs="?", choices=list(SUITES), default=bench_mmapkv.SUITE.name, help="what is measured"
    )
    add_common_options(parser, list(WORKLOADS), list(RIVALS))
    parser.add_argument("--keys", type=at_least(2), default=1_000_000, help="pairs in a store (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the keys, values and orders (%(default)s)")
    parser.add_argument(
        "--layout",
        choices=[layout.value for layout in Layout],
        default=Layout.MIXED.value,
        help="how the objects that the loops walk lie in memory; mixed: look-up keys scattered, pairs to "
        "store sequential (%(default)s)",
    )
    return parser


if __name__ == "__main__":
    # Otherwise a plain kill would leave the stores behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(EXIT_TERMINATED))
    sys.exit(main())
