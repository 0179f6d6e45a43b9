"""What images are made of: a log, or a store. The runner knows of both only this."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from tests.crash.images.choices import Image
from tests.crash.images.disk import Disk, Look
from tests.crash.images.recording import Recorder, Step

Alternatives: TypeAlias = tuple[Any, ...]
"""The states of which one must be found."""


class Session(Protocol):
    """Something opened, used, and closed or not."""

    def open(self, alternatives: Any) -> object:
        """Open it, of which one of these is true, and read all of it."""

    def judge(self, alternatives: Any) -> list[str]:
        """What is wrong with what was found then."""

    def damages(self) -> Sequence[object]:
        """What a verification finds."""

    def is_shorter(self, alternatives: Any) -> bool:
        """Whether what was submitted last is not there."""

    def run(self, count: int) -> None:
        """Make so many calls, drawn at random."""

    def go_on(self) -> None:
        """Write a little, as whoever opens it does."""

    def close(self) -> None:
        """End it cleanly."""

    def forget(self) -> None:
        """End it as a crash does."""

    def left(self) -> Alternatives:
        """What is there after its end, when nothing was lost."""


class Subject(Protocol):
    """One kind of thing that is opened, and what may be planted in it."""

    command: str
    noun: str
    units: str
    defects: tuple[str, ...]
    nothing: Alternatives
    """What is true before it is made."""

    def prepare(self, defect: str | None, counts: Counter[str]) -> None:
        """Plant a defect, if one is wanted; what happens within is counted there."""

    def style(self, rng: random.Random) -> Any:
        """How it is used, for a workload."""

    def session(
        self, path: Path, style: Any, rng: random.Random, name: int, recorder: Recorder | None
    ) -> Session:
        """One that is yet to be opened."""

    def expected(self, step: Step) -> Alternatives:
        """What must be true of images of a moment."""

    def moment(self, step: Step) -> str | None:
        """What images of this moment are counted as, or None."""

    def unfinished(
        self, step: Step, alternatives: Alternatives, rng: random.Random
    ) -> tuple[Look, Alternatives]:
        """The directory as a kill leaves it at this moment, perhaps in the middle of a write."""

    def is_dropped(self, disk: Disk, step: Step) -> bool:
        """Whether the defect consists in not making the sync of this step."""

    def spoil(self, image: Image) -> Image:
        """An image as the recovery of the defect sees it."""
