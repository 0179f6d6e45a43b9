"""Images of stores."""

from __future__ import annotations

import dataclasses
import random
import struct
from collections import Counter
from pathlib import Path
from typing import Any

from mmapkv import attach, compaction
from tests.crash.compaction_phase import phase_of
from tests.crash.images import defects, store_defects
from tests.crash.images.choices import Image
from tests.crash.images.disk import Disk, Look
from tests.crash.images.recording import Recorder, Step
from tests.crash.images.store_model import Change, Commit, Expected
from tests.crash.images.store_session import Alternatives, StoreSession, Style
from tests.crash.images.unfinished import begin_append, slot

_PAYLOAD = struct.Struct("<HBBL")
_KIND_PUT, _FLAG_CREATES = 1, 1


class StoreSubject:
    """What the runner is to know of stores."""

    command = "store_images"
    noun = "store"
    units = "commits"
    defects = store_defects.DEFECTS
    nothing: Alternatives = (Expected(),)

    def __init__(self) -> None:
        self.defect: str | None = None
        self.made = 0

    def prepare(self, defect: str | None, counts: Counter[str]) -> None:
        """Plant a defect, if one is wanted, and count how indexes are come by, and what steps do."""
        self.defect = defect
        store_defects.plant(defect)
        rebuild, consider = attach.rebuild, attach.consider

        def counted_rebuild(*arguments: Any, **named: Any) -> Any:
            counts["indexes built anew"] += 1
            return rebuild(*arguments, **named)

        def counted_consider(log: Any, *, writing: bool) -> Any:
            found, why_not = consider(log, writing=writing)
            if found is not None and writing:
                same = found[0].number == log.control.index
                counts[f"indexes believed by their {'incarnation' if same else 'clean mark'}"] += 1
            return found, why_not

        step = compaction.step

        def counted_step(*arguments: Any) -> Any:
            came = step(*arguments)
            replaced = came is not None and came[2].segments_written > 0
            counts[f"steps of a compaction that {'replaced something' if replaced else 'found nothing'}"] += 1
            return came

        vars(compaction)["step"] = counted_step
        vars(attach).update(rebuild=counted_rebuild, consider=counted_consider)

    def style(self, rng: random.Random) -> Style:
        """How a store is used."""
        return Style.draw(rng)

    def session(
        self, path: Path, style: Style, rng: random.Random, name: int, recorder: Recorder | None
    ) -> StoreSession:
        """One that is yet to be opened."""
        return StoreSession(path, style, rng, name, recorder)

    def expected(self, step: Step) -> Alternatives:
        """What was said at this moment, and what CONTROL says is durable: who reads it may rely on it."""
        alternatives: Alternatives = step.expected or self.nothing
        said = defects.said_durable(self.defect, step)
        return tuple(dataclasses.replace(each, floor=max(said, each.floor)) for each in alternatives)

    def moment(self, step: Step) -> str | None:
        """The phase of a compaction, if one is at work."""
        contents = [step.look.get(name, (0, b""))[1] for name in ("INDEX", "MANIFEST")]
        phase = phase_of(step.look, *contents)
        return None if phase is None else f"of a compaction, {phase}"

    def unfinished(
        self, step: Step, alternatives: Alternatives, rng: random.Random
    ) -> tuple[Look, Alternatives]:
        """In the middle of putting one key or two, mostly, when the store is open and no call at work."""
        look = step.look
        committed = slot(look.get("CONTROL", (0, b""))[1])[0]
        fitting = [each for each in alternatives if each.at(committed) is not None]
        if not (rng.random() < 0.7 and step.is_quiet and fitting):
            return look, alternatives
        changes = [Change(self._key(), rng.randbytes(rng.randrange(600))) for _ in range(2)]
        look, records = begin_append(look, rng, (_payload(changes[0]), _payload(changes[1])))
        if not records:
            return look, alternatives
        more = tuple(
            dataclasses.replace(
                each,
                commits=(
                    *(commit for commit in each.commits if commit.seq <= committed),
                    Commit(committed + len(records), tuple(changes[: len(records)])),
                ),
            )
            for each in fitting
        )
        return look, more

    def is_dropped(self, disk: Disk, step: Step) -> bool:
        """Whether the defect consists in not making the sync of this step."""
        return defects.is_dropped(self.defect, disk, step)

    def spoil(self, image: Image) -> Image:
        """An image as the recovery of the defect sees it."""
        return defects.spoil(self.defect, image)

    def _key(self) -> bytes:
        self.made += 1
        return b"unfinished %d" % self.made


def _payload(change: Change) -> bytes:
    # A put of a key that was never there.
    value = change.value or b""
    head = _PAYLOAD.pack(len(change.key), _KIND_PUT, _FLAG_CREATES, len(value)) + change.key
    return head + bytes(-len(head) % 8) + value
