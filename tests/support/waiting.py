"""Waiting for what another thread or process brings about."""

from __future__ import annotations

import time
from collections.abc import Callable

#: What has not come about by then never will: it takes a few seconds at the most, on an idle machine.
PATIENCE_SECONDS = 300
STEP_SECONDS = 0.001


def until(reached: Callable[[], bool]) -> None:
    """Look again until it is so; a test that waits in vain fails."""
    for _ in range(int(PATIENCE_SECONDS / STEP_SECONDS)):
        if reached():
            return
        time.sleep(STEP_SECONDS)
    raise AssertionError("it does not come about")
