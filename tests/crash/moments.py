"""The moments before and after each call that changes a file or a directory: a kill may come there."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence

from mmapio import _os
from tests.crash.ack_page import ACKNOWLEDGED, AckPage
from tests.crash.child import Child

#: What creates, renames, removes, extends, writes or syncs. Stores to mapped memory are not calls.
CALLS = (
    "grow",
    "make_directory",
    "name_file",
    "open_file",
    "remove_file",
    "replace_file",
    "set_size",
    "sync",
    "write_at",
)
#: After these, stores to mapped memory follow that say so; something may come in between.
SAID_AFTERWARDS = ("remove_file", "replace_file", "sync")


def watch(
    at: Callable[[str], object], calls: Sequence[str] = CALLS, afterwards: Sequence[str] = SAID_AFTERWARDS
) -> Callable[[], None]:
    """Have `at` told "before NAME" of these calls, and "after NAME" of some. What is returned ends it."""
    real = {name: vars(_os)[name] for name in calls}

    def watched(name: str) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            at(f"before {name}")
            result = real[name](*arguments, **named)
            if name in afterwards:
                at(f"after {name}")
            return result

        return call

    vars(_os).update({name: watched(name) for name in calls})
    return lambda: vars(_os).update(real)


def die() -> None:
    """As by ``kill -9``."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(limit: int | None) -> list[str]:
    """Have this process killed at moment number `limit`. The list fills until then."""
    seen: list[str] = []

    def at(moment: str) -> None:
        seen.append(moment)
        if len(seen) == limit:
            die()

    watch(at)
    return seen


def moments_of(body: Callable[[Callable[[], None]], None], page: AckPage) -> int:
    """Have a child do `body`, which says on the page how many moments it met. They, 0 if it died."""
    child = Child(body)
    child.wait_started()
    assert child.kill() == ""
    return page.words[ACKNOWLEDGED + 1]
