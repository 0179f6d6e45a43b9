"""`python -m tests.property.steps`: a state machine of this suite for as many steps as are wanted.

Each example is a new store or log and up to 80 steps, after every one of which all of it is compared. What
fails is shrunk and printed, with what it takes to see it again.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence

from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, run_state_machine_as_test

from tests.property.test_cache import CacheAgainstDict
from tests.property.test_log import LogAgainstModel
from tests.property.test_scan import ScansAgainstSortedDict
from tests.property.test_store import StoreAgainstDict

MACHINES: dict[str, type[RuleBasedStateMachine]] = {
    "store": StoreAgainstDict,
    "scan": ScansAgainstSortedDict,
    "log": LogAgainstModel,
    "cache": CacheAgainstDict,
}
EXAMPLE_STEPS = 80
# So many examples are drawn from one seed, then from the next.
ROUND_EXAMPLES = 50
EXIT_FAILED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the machine that the command line asks for; 0 when nothing failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.property.steps", description=__doc__)
    parser.add_argument("--machine", choices=MACHINES, default="store", help="what is compared (store)")
    parser.add_argument("--steps", type=int, default=72_000, help="how many steps at least (72,000)")
    parser.add_argument("--seed", type=int, default=1, help="what the first examples are drawn from (1)")
    chosen = parser.parse_args(arguments)
    if chosen.steps < 1:
        parser.error("--steps is at least 1")
    # That an index is rebuilt is what some of the steps are for.
    logging.disable(logging.WARNING)
    begun = time.perf_counter()
    done = examples = 0

    class Counted(MACHINES[chosen.machine]):  # type: ignore[misc]
        def __init__(self) -> None:
            nonlocal examples
            super().__init__()
            examples += 1

        @invariant()
        def one_more(self) -> None:
            nonlocal done
            done += 1

    number = chosen.seed
    failed = False
    while done < chosen.steps and not failed:
        count = min(ROUND_EXAMPLES, (chosen.steps - done + EXAMPLE_STEPS - 1) // EXAMPLE_STEPS)
        # Not derandomized, for that would go by the machine's name; the seed alone says what is drawn.
        limits = settings(
            max_examples=count,
            stateful_step_count=EXAMPLE_STEPS,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        )
        try:
            run_state_machine_as_test(seed(number)(Counted), settings=limits)
        except Exception:
            failed = True
            logging.getLogger(__name__).exception("seed %d failed", number)
        number += 1
        if sys.stderr.isatty():
            print(f"\r{done:,} steps ", end="", file=sys.stderr, flush=True)
    print(f"steps     {done:,}")
    print(f"examples  {examples:,}")
    print(f"failures  {failed:d}")
    print(f"seeds {chosen.seed} to {number - 1}, {time.perf_counter() - begun:.0f} s")
    return EXIT_FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
