"""Records sessions, makes images of what a power cut may leave, opens each, and says what is wrong."""

from __future__ import annotations

import os
import random
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmapio import _os
from mmaplog import LogError
from tests.crash.images.choices import Image, assignments, build, slots_of
from tests.crash.images.disk import Disk, Look
from tests.crash.images.recording import Event, Recorder, Step, play
from tests.crash.images.subject import Alternatives, Session, Subject

IMAGES_PER_WORKLOAD = 500
IMAGES_PER_MOMENT = 48
EXHAUSTIVE_MAX = 4096
# One workload in so many has a moment of which all images are looked at, up to EXHAUSTIVE_MAX.
EXHAUSTIVE_EVERY = 10
# Of the images, so many are the beginning of a session that is recorded too, so many deep.
SECOND_SHARE = 0.02
SECOND_IMAGES = 24
DEPTH_MAX = 3
CALLS_MAX = 40
# After so many of the moments comes a kill in place of a power cut. Of those that have a name more are looked
# at than fall to them by chance: so many of each name.
KILLED_SHARE = 0.1
NAMED_KILLED_SHARE = 0.4
NAMED_MOMENTS = 3
FOUND_MAX = 5


@dataclass
class Report:
    """Counts, and what was found wrong."""

    images: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    violations: int = 0


class Enough(Exception):
    """So many images were wanted."""


@dataclass
class Options:
    """What the command line says. Images are opened in `scratch`; those that are wrong go to `kept`."""

    subject: Subject
    seed: int
    images: int
    first_workload: int
    scratch: Path
    kept: Path
    defect: str | None
    report: Callable[[str], None]
    working_on: Callable[[str], None]


class Runner:
    """Workload after workload, each a session of something new."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.subject = options.subject
        self.result = Report()
        self.boot = 0
        self.number = 0
        self.made = 0
        # What binds CONTROL to a machine that was not restarted. The images are of one place, whatever their
        # inodes.
        vars(_os)["identity"] = lambda opened: (1, 2, 3, 4, 5, True)
        vars(_os)["boot_id"] = lambda: self.boot.to_bytes(16, "little")
        self.subject.prepare(options.defect, self.result.counts)

    def run(self) -> Report:
        """All workloads until there were enough images, or too many are wrong."""
        self.number = self.options.first_workload
        try:
            while True:
                self.made = 0
                self.workload(random.Random(f"{self.options.seed} {self.number}"))
                self.number += 1
        except Enough:
            return self.result

    def workload(self, rng: random.Random) -> None:
        """Record one session, and look at its images."""
        style = self.subject.style(rng)
        path = self._fresh()
        recorder = Recorder(path)
        session = self.subject.session(path, style, rng, 0, recorder)
        with recorder.listening():
            session.open(self.subject.nothing)
            session.run(rng.randrange(5, CALLS_MAX))
            if rng.random() < 0.3:
                session.close()
        session.forget()
        self.result.counts["workloads"] += 1
        self.result.counts["moments"] += len(recorder.steps)
        everything = self.number % EXHAUSTIVE_EVERY == 0
        self.images(Disk(), recorder.steps, style, rng, IMAGES_PER_WORKLOAD, 1, everything)

    def images(
        self,
        disk: Disk,
        steps: list[Step],
        style: Any,
        rng: random.Random,
        count: int,
        depth: int,
        everything: bool = False,
    ) -> None:
        """Look at about so many images of a recording that begins with a disk."""
        moments = sorted(rng.sample(range(len(steps)), min(len(steps), max(count // 12, 4))))
        # Of those that have a name, some of each in any case: they are few, and do not last.
        named: dict[str, list[int]] = {}
        for number, step in enumerate(steps):
            name = self.subject.moment(step)
            if name is not None:
                named.setdefault(name, []).append(number)
        for numbers in named.values():
            moments = sorted({*moments, *rng.sample(numbers, min(len(numbers), NAMED_MOMENTS))})
        # Moments with much that is open are few, and tell the most.
        each = min(IMAGES_PER_MOMENT, 2 * count // len(moments) + 1)
        complete = rng.choice(moments) if everything else None
        budget = count
        for number, step in self._played(disk, steps):
            if number in moments and budget > 0:
                alternatives = self.subject.expected(step)
                slots = slots_of(disk)
                self.result.counts["moments looked at"] += 1
                self.result.counts["moments looked at with something open"] += bool(slots)
                of = self.subject.moment(step)
                limit = EXHAUSTIVE_MAX if number == complete else each
                for chosen in assignments(slots, rng, limit):
                    image = build(disk, slots, chosen, rng)
                    self.image(image, alternatives, style, rng, depth)
                    budget -= 1
                    if of is not None:
                        self.result.counts[f"images {of}"] += 1
                share = KILLED_SHARE if of is None else NAMED_KILLED_SHARE
                if depth < DEPTH_MAX and rng.random() < share:
                    self.after_kill(disk, step, alternatives, style, rng, depth)

    def image(
        self,
        image: Image | None,
        alternatives: Alternatives,
        style: Any,
        rng: random.Random,
        depth: int,
    ) -> None:
        """Look at one image: at what is found, and at what becomes of it when the log goes on."""
        self.made += 1
        label = f"image {self.made} of workload {self.number}"
        self.options.working_on(label)
        if image is not None:
            image = self.subject.spoil(image)
        second = depth < DEPTH_MAX and image is not None and rng.random() < SECOND_SHARE
        self.boot += 1
        try:
            wrong = self._open_and_go_on(image, alternatives, style, rng)
            if second and not wrong:
                assert image is not None
                files = {name: (at, content) for at, (name, content) in enumerate(image.items())}
                self.second(Disk().settle(files), files, alternatives, style, rng, depth)
        except LogError as error:
            wrong = [f"{type(error).__name__}: {error}"]
        except Enough:
            raise
        except Exception:
            wrong = [traceback.format_exc()]
        self._count(label, image, wrong)

    def second(
        self,
        disk: Disk,
        look: Look,
        alternatives: Alternatives,
        style: Any,
        rng: random.Random,
        depth: int,
    ) -> None:
        """A session that begins with an image, or with what a kill left, recorded, and its images."""
        path = self._fresh()
        _write(path, {name: content for name, (_, content) in look.items()})
        recorder = Recorder.of(path, disk)
        session = self.subject.session(path, style, rng, depth, recorder)
        with recorder.listening():
            session.open(alternatives)
            wrong = session.judge(alternatives)
            if not wrong:
                session.run(rng.randrange(6))
                if rng.random() < 0.3:
                    session.close()
        session.forget()
        self.result.counts[f"sessions after a crash, {depth} before"] += 1
        if wrong:
            self._count(f"second session at image {self.made} of workload {self.number}", None, wrong)
            return
        self.boot += 1
        self.images(disk, recorder.steps, style, rng, SECOND_IMAGES, depth + 1)

    def after_kill(
        self,
        disk: Disk,
        step: Step,
        alternatives: Alternatives,
        style: Any,
        rng: random.Random,
        depth: int,
    ) -> None:
        """A session that follows a kill, not a power cut: what was not synced still may be, or may not."""
        look, more = self.subject.unfinished(step, alternatives, rng)
        mine = disk.copy()
        mine.see(look)
        self.options.working_on(f"kill after image {self.made} of workload {self.number}")
        self.result.counts["kills"] += 1
        try:
            self.second(mine, look, more, style, rng, depth)
        except Enough:
            raise
        except Exception:
            self._count(
                f"kill after image {self.made} of workload {self.number}", None, [traceback.format_exc()]
            )

    # ---- one image ----

    def _open_and_go_on(
        self, image: Image | None, alternatives: Alternatives, style: Any, rng: random.Random
    ) -> list[str]:
        path = self._fresh()
        if image is not None:
            _write(path, image)
        session = self.subject.session(path, style, rng, 100 + self.made, None)
        session.open(alternatives)
        if session.is_shorter(alternatives):
            self.result.counts[f"images without the last {self.subject.units}"] += 1
        wrong = session.judge(alternatives) + self._verify(session)
        if wrong:
            session.forget()
            return wrong
        session.go_on()
        # Everything it has written is there: of the second cut only CONTROL is a victim.
        if rng.random() < 0.5:
            session.close()
        session.forget()
        self.boot += 1
        if rng.random() < 0.3:
            (path / "CONTROL").unlink()
        again = self.subject.session(path, style, rng, 200 + self.made, None)
        again.open(session.left())
        wrong += [f"opened once more: {text}" for text in again.judge(session.left()) + self._verify(again)]
        again.forget()
        return wrong

    def _verify(self, session: Session) -> list[str]:
        return [f"verify: {damage}" for damage in session.damages()[:FOUND_MAX]]

    def _played(self, disk: Disk, steps: list[Step]) -> Iterator[tuple[int, Step]]:
        kept = []
        names = Disk()
        for step in steps:
            names.see(step.look)
            dropped = self.subject.is_dropped(names, step)
            kept.append(step._replace(event=Event.LOOK) if dropped else step)
        return play(disk, kept)

    def _fresh(self) -> Path:
        path = self.options.scratch / self.subject.noun
        shutil.rmtree(path, ignore_errors=True)
        return path

    def _count(self, label: str, image: Image | None, wrong: list[str]) -> None:
        self.result.images += 1
        if wrong:
            self.result.violations += 1
            kept = self.options.kept / f"violation-{self.number}-{self.made}"
            shutil.rmtree(kept, ignore_errors=True)
            if image is not None:
                _write(kept, image)
            else:
                # As the session has left it.
                shutil.copytree(self.options.scratch / self.subject.noun, kept)
            command = f"python -m tests.crash.{self.subject.command} --seed {self.options.seed}"
            command += f" --first-workload {self.number} --images {self.made + 1}"
            if self.options.defect is not None:
                command += f" --defect {self.options.defect}"
            self.options.report(f"VIOLATION: {label}; it is kept in {kept}; {command}")
            for text in wrong[:FOUND_MAX]:
                self.options.report(f"  {text}")
        if self.result.images >= self.options.images or self.result.violations >= FOUND_MAX:
            raise Enough


def _write(path: Path, files: Image) -> None:
    path.mkdir(0o700)
    for name, content in files.items():
        fd = os.open(path / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, content.rstrip(b"\0"))
            os.truncate(fd, len(content))
        finally:
            os.close(fd)
