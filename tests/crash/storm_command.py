"""The command of a storm that counts what it does: its options, its summary, and what it ends with."""

from __future__ import annotations

import argparse
import faulthandler
import logging
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

EXIT_VIOLATED = 1
VIOLATIONS_MAX = 5


class Storm(Protocol):
    """What is run."""

    counts: Counter[str]

    def run(self, first_round: int, kills: int, violations_max: int) -> None: ...


def run_storm(
    name: str,
    about: str | None,
    begin: Callable[[int, Path, str | None, Callable[[str], None]], Storm],
    defects: Sequence[str],
    arguments: Sequence[str] | None,
) -> int:
    """Run the storm that the command line asks for; 0 when nothing was violated."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.crash.{name}", description=about)
    parser.add_argument("--kills", type=int, default=1000, help="how many writers to kill (1000)")
    parser.add_argument("--seed", type=int, default=1, help="what everything is drawn from (1)")
    parser.add_argument(
        "--round", type=int, default=1, dest="first_round", help="the round to begin with (1)"
    )
    parser.add_argument("--dir", type=Path, help="where the stores go; a temporary directory if not given")
    parser.add_argument("--defect", choices=defects, help="plant a defect, which must be caught")
    chosen = parser.parse_args(arguments)
    if min(chosen.kills, chosen.first_round) < 1:
        parser.error("--kills and --round are at least 1")
    directory = Path(tempfile.mkdtemp(prefix=f"{name.replace('_', '-')}-", dir=chosen.dir))
    # That an index is rebuilt is part of what this is about.
    logging.disable(logging.WARNING)
    faulthandler.enable()
    begun = time.perf_counter()
    storm = begin(chosen.seed, directory, chosen.defect, lambda text: print(text, flush=True))
    storm.run(chosen.first_round, chosen.kills, VIOLATIONS_MAX if chosen.defect is None else 1)
    width = max(map(len, storm.counts)) + 2
    for what, count in sorted(storm.counts.items()):
        print(f"{what:<{width}}{count:,}")
    print(f"seed {chosen.seed}, {time.perf_counter() - begun:.0f} s")
    if storm.counts["rounds with a violation"]:
        print(f"The violating stores are kept in {directory}.")
        return EXIT_VIOLATED
    shutil.rmtree(directory)
    return 0
