"""Images of logs."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from pathlib import Path

from tests.crash.images import defects
from tests.crash.images.choices import Image
from tests.crash.images.disk import Disk, Look
from tests.crash.images.oracle import Alternatives, Expected
from tests.crash.images.recording import Recorder, Step
from tests.crash.images.session import Session, Style
from tests.crash.images.unfinished import begin_append, slot


class LogSubject:
    """What the runner is to know of logs."""

    command = "log_images"
    noun = "log"
    units = "records"
    defects = defects.DEFECTS
    nothing: Alternatives = (Expected(),)

    def __init__(self) -> None:
        self.defect: str | None = None

    def prepare(self, defect: str | None, counts: Counter[str]) -> None:
        """Plant a defect, if one is wanted."""
        self.defect = defect
        defects.plant(defect)

    def style(self, rng: random.Random) -> Style:
        """How a log is used."""
        return Style.draw(rng)

    def session(
        self, path: Path, style: Style, rng: random.Random, name: int, recorder: Recorder | None
    ) -> Session:
        """One that is yet to be opened."""
        return Session(path, style, rng, name, recorder)

    def expected(self, step: Step) -> Alternatives:
        """What was said at this moment, and what CONTROL says is durable: who reads it may rely on it."""
        alternatives: Alternatives = step.expected or self.nothing
        if len(alternatives) > 1:
            return alternatives
        committed, _, _ = slot(step.look.get("CONTROL", (0, b""))[1])
        if committed > len(alternatives[0].records):
            # It is from before the power cut, and from before a truncation of which it lacks what was said.
            return alternatives
        said = defects.said_durable(self.defect, step)
        return (dataclasses.replace(alternatives[0], floor=max(said, alternatives[0].floor)),)

    def moment(self, step: Step) -> str | None:
        """Nothing is counted."""
        return None

    def unfinished(
        self, step: Step, alternatives: Alternatives, rng: random.Random
    ) -> tuple[Look, Alternatives]:
        """In the middle of an append, mostly, when the log is open and no call at work."""
        look = step.look
        committed = slot(look.get("CONTROL", (0, b""))[1])[0]
        if not (rng.random() < 0.7 and committed and step.is_quiet and len(alternatives) == 1):
            return look, alternatives
        payload = b"unfinished:" + rng.randbytes(rng.randrange(600))
        look, records = begin_append(look, rng, (payload, payload))
        more = tuple(
            dataclasses.replace(each, records=each.records[:committed] + records)
            for each in alternatives
            if records and len(each.records) >= committed
        )
        return look, more + alternatives

    def is_dropped(self, disk: Disk, step: Step) -> bool:
        """Whether the defect consists in not making the sync of this step."""
        return defects.is_dropped(self.defect, disk, step)

    def spoil(self, image: Image) -> Image:
        """An image as the recovery of the defect sees it."""
        return defects.spoil(self.defect, image)
