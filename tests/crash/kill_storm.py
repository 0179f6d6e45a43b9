"""`python -m tests.crash.kill_storm`: kill writers at random moments and look for what they acknowledged.

Operations, plans and delays follow from the seed; the instruction that a kill hits does not, so a violation
may take a few repetitions to show again.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.crash.defects import DEFECTS
from tests.crash.storm import Options, Storm

EXIT_VIOLATED = 1
VIOLATIONS_MAX = 10
# A store that never opens again must not look like a slow one.
SILENCE_SECONDS_MAX = 600


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the storm that the command line asks for; 0 when nothing was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.kill_storm", description=__doc__)
    parser.add_argument("--kills", type=int, default=2000, help="how many writers to kill (2000)")
    parser.add_argument("--seed", type=int, default=1, help="what everything is drawn from (1)")
    parser.add_argument(
        "--round", type=int, default=1, dest="first_round", help="the round to begin with (1)"
    )
    parser.add_argument(
        "--keys", type=int, default=100_000, help="how many keys a store is loaded with (100,000)"
    )
    parser.add_argument("--dir", type=Path, help="where the stores go; a temporary directory if not given")
    parser.add_argument("--defect", choices=DEFECTS, help="plant a defect, which must be caught")
    chosen = parser.parse_args(arguments)
    if min(chosen.kills, chosen.keys, chosen.first_round) < 1:
        parser.error("--kills, --keys and --round are at least 1")
    if chosen.dir is not None and not chosen.dir.is_dir():
        parser.error(f"--dir {chosen.dir}: not a directory; make it first, or leave the option out")
    directory = Path(tempfile.mkdtemp(prefix="kill-storm-", dir=chosen.dir))
    options = Options(
        seed=chosen.seed,
        first_round=chosen.first_round,
        kills=chosen.kills,
        keys=chosen.keys,
        directory=directory,
        defect=chosen.defect,
        report=lambda text: print(text, flush=True),
        progress=_go_on,
        violations_max=VIOLATIONS_MAX if chosen.defect is None else 1,
    )
    # That an index is rebuilt is what half of this is about.
    logging.disable(logging.WARNING)
    _go_on(0)
    begun = time.perf_counter()
    summary = Storm(options).run()
    faulthandler.cancel_dump_traceback_later()
    print(summary.table())
    print(f"seed {chosen.seed}, {chosen.keys:,} keys, {time.perf_counter() - begun:.0f} s")
    if summary.violations:
        print(f"The violating stores are kept in {directory}.")
        return EXIT_VIOLATED
    shutil.rmtree(directory)
    return 0


def _go_on(done: int) -> None:
    faulthandler.dump_traceback_later(SILENCE_SECONDS_MAX, exit=True)
    if sys.stderr.isatty():
        print(f"\r{done:,} kills ", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
