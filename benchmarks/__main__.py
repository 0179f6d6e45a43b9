"""`python -m benchmarks`: run a suite, print its tables and whether its targets were met."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from . import bench_mmapkv, environment, report
from .adapters import RIVALS, Rival, RivalMissing, load_rival
from .dataset import Dataset, Layout, WrongAnswer
from .harness import Harness, Result
from .workloads import WORKLOADS

SUITES = {suite.name: suite for suite in (bench_mmapkv.SUITE,)}

EXIT_WRONG_ANSWER = 1
EXIT_UNUSABLE = 2
EXIT_TERMINATED = 128 + signal.SIGTERM


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite that the command line asks for; missed targets are reported, they are not a failure."""
    parser = _parser()
    options = parser.parse_args(arguments)
    suite = SUITES[options.suite]
    workload_names = options.workloads or suite.workloads
    wanted = options.rivals or (*suite.subjects, *suite.rivals)
    directory: Path = options.dir
    if not directory.is_dir():
        parser.error(f"--dir {directory}: not a directory; make it first, or leave the option out")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        parser.error(f"--json {options.json}: its directory does not exist; make it first")

    contestants, missing = _load(wanted)
    for reason in missing.values():
        print(f"SKIPPED {reason}. It is not in this run; `pip install --group bench` installs the rivals.")
    if suite.subjects[0] in missing or not contestants:
        print("Nothing to measure. `pip install -e .` builds the subject.", file=sys.stderr)
        return EXIT_UNUSABLE

    surroundings = environment.describe(directory)
    if environment.is_memory(surroundings["file system"]):
        print(
            "WARNING: this file system has no device below it, so writes cost nothing real. Choose a --dir."
        )
    if environment.is_busy():
        print("WARNING: others are using this machine; times mean little and even ratios are unsteady.")
    data = Dataset(options.keys, options.seed, Layout(options.layout))
    print(report.header(surroundings, contestants, data, options.rounds), flush=True)

    results: dict[str, Result] = {}
    try:
        with tempfile.TemporaryDirectory(prefix=".run-", dir=directory) as scratch:
            harness = Harness(data, contestants, Path(scratch), options.rounds, _progress)
            for result in harness.run([WORKLOADS[name] for name in workload_names]):
                results[result.workload.name] = result
                _progress("")
                print(f"\n{report.table(result, suite.rivals, data)}", flush=True)
    except WrongAnswer as error:
        _progress("")
        print(f"WRONG ANSWER, no figure of this run counts: {error}", file=sys.stderr)
        return EXIT_WRONG_ANSWER
    print(f"\n{report.verdicts(suite.targets, results, options.keys)}")

    if options.json is not None:
        parameters = {
            "keys": options.keys,
            "rounds": options.rounds,
            "seed": options.seed,
            "layout": options.layout,
        }
        document = report.as_json(surroundings, contestants, missing, parameters, results, suite.targets)
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time the store and its rivals in turn, in one run, and print medians and ratios.",
        epilog="workloads: " + "; ".join(f"{name}: {_summary(name)}" for name in WORKLOADS),
    )
    parser.add_argument(
        "suite", nargs="?", choices=list(SUITES), default=bench_mmapkv.SUITE.name, help="what is measured"
    )
    parser.add_argument(
        "--workloads", type=_names_among(list(WORKLOADS)), metavar="A,B,...", help="default: all of the suite"
    )
    parser.add_argument(
        "--rivals",
        type=_names_among(list(RIVALS)),
        metavar="A,B,...",
        help=f"among {', '.join(RIVALS)}; default: all",
    )
    parser.add_argument("--keys", type=_at_least(2), default=1_000_000, help="pairs in a store (%(default)s)")
    parser.add_argument("--rounds", type=_at_least(1), default=5, help="samples of each figure (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the keys, values and orders (%(default)s)")
    parser.add_argument(
        "--layout",
        choices=[layout.value for layout in Layout],
        default=Layout.MIXED.value,
        help="how the objects that the loops walk lie in memory; mixed: look-up keys scattered, pairs to "
        "store sequential (%(default)s)",
    )
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path(__file__).parent,
        help="where the stores are made and removed; it must be on a real file system, not on a tmpfs "
        "(default: the directory of the benchmarks)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there as well")
    return parser


def _load(names: Sequence[str]) -> tuple[list[type[Rival]], dict[str, str]]:
    """Return the rivals that import, and why the others do not."""
    rivals = []
    missing = {}
    for name in names:
        try:
            rivals.append(load_rival(name))
        except RivalMissing as error:
            missing[name] = str(error)
    return rivals, missing


def _names_among(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return a type for argparse: comma-separated names, each of them known, in the known order."""

    def parse(text: str) -> tuple[str, ...]:
        asked = text.split(",")
        unknown = [name for name in asked if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}; choose among {', '.join(known)}")
        return tuple(name for name in known if name in asked)

    return parse


def _at_least(minimum: int) -> Callable[[str], int]:
    """Return a type for argparse: a number that is not below `minimum`."""

    def parse(text: str) -> int:
        number = int(text.replace("_", "").replace(",", ""))
        if number < minimum:
            raise argparse.ArgumentTypeError(f"{number} is too few, the least is {minimum}")
        return number

    return parse


def _summary(name: str) -> str:
    """Return the first sentence of a workload's entry in the glossary."""
    return (type(WORKLOADS[name]).__doc__ or "").strip().partition(".")[0].replace("\n    ", " ")


def _progress(message: str) -> None:
    """Show what is being done, on a terminal only."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{message}")
        sys.stderr.flush()


if __name__ == "__main__":
    # Otherwise a plain kill would leave the stores behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(EXIT_TERMINATED))
    sys.exit(main())
