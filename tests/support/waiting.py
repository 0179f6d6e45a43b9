"""Waiting for what another thread or process brings about."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Whatever is waited for takes a part of a second on an idle machine.
PATIENCE_SECONDS = 60.0
STEP_SECONDS = 0.001


def until(reached: Callable[[], bool]) -> None:
    """Look again until it is so; a test that waits in vain fails."""
    for _ in range(int(PATIENCE_SECONDS / STEP_SECONDS)):
        if reached():
            return
        time.sleep(STEP_SECONDS)
    raise AssertionError("it does not come about")
