"""Runs a suite whose peers give statements, and prints what came of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

from . import environment, report
from .adapters import Peer
from .command import (
    EXIT_UNUSABLE,
    EXIT_WRONG_ANSWER,
    load,
    scratch_directory,
    show_progress,
    warn,
    write_json,
)
from .dataset import WrongAnswer
from .harness import LOOP
from .mapping_rounds import run
from .mapping_workloads import MappedWorkload
from .targets import Suite


def run_suite(
    suite: Suite,
    options: argparse.Namespace,
    asked: Sequence[MappedWorkload],
    load_one: Callable[[str], type[Peer]],
    parameters: Mapping[str, object],
) -> int:
    """Run the workloads and return the exit code; missed targets are reported, they are not a failure."""
    peers, missing = load(options.rivals or (*suite.subjects, *suite.rivals), load_one)
    if not peers:
        print("Nothing to measure. `pip install -e .` builds the subject.", file=sys.stderr)
        return EXIT_UNUSABLE

    surroundings = environment.describe(options.dir)
    warn(surroundings)
    has_loops = any(workload.has_loop for workload in asked)
    contained = f"; {LOOP} is contained in all that are below it" if has_loops else ""
    figures = (
        f"median, lowest and highest of {options.rounds} rounds, and how many times as fast as each rival's "
        f"first statement{contained}"
    )
    print(report.header(surroundings, peers, figures), flush=True)

    workloads = []
    for workload in asked:
        if reason := workload.why_not(options.dir):
            print(f"\nSKIPPED {workload.name}: {reason}.")
        else:
            workloads.append(workload)
    try:
        with scratch_directory(options.dir) as scratch:
            results = run(workloads, peers, scratch, options.rounds, show_progress)
    except WrongAnswer as error:
        show_progress("")
        print(f"WRONG ANSWER, no figure of this run counts: {error}", file=sys.stderr)
        return EXIT_WRONG_ANSWER
    show_progress("")
    for result in results:
        print(f"\n{report.table(result, suite.rivals)}")
    by_name = {result.workload.name: result for result in results}
    print(f"\n{report.verdicts(suite.targets, by_name, parameters)}")
    write_json(options.json, report.as_json(surroundings, peers, missing, parameters, by_name, suite.targets))
    return 0
