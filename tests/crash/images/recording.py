"""A session of a real log, recorded: how its directory looked before and after each call that counts."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

from tests.crash.images.disk import Disk, Look
from tests.crash.images.shim import SYNC, Listening

OUTSIDE = -1
"""In place of a file: the directory that the recorded one is in."""


class Event(IntEnum):
    """What happened at a step, after what the step shows."""

    LOOK = 0
    SYNC_BEGINS = 1
    SYNCED = 2


class Step(NamedTuple):
    """A moment: how the directory looks, what happens to which file then, and what must be true by then.

    The file is None for the directory itself.
    """

    look: Look
    event: Event
    file: int | None
    expected: Any
    is_quiet: bool = False
    """Whether the log is open, and no call at work."""


@dataclass
class Recorder:
    """Records what happens to a directory; `expected` is what the session says must be true from now on."""

    path: Path
    known: dict[int, int] = field(default_factory=dict)
    """File by inode."""
    expected: Any = None
    steps: list[Step] = field(default_factory=list)
    made: int = 0

    @classmethod
    def of(cls, path: Path, disk: Disk) -> Recorder:
        """For a directory that holds what is current on this disk."""
        known = {(path / name).stat().st_ino: file for name, file in disk.names.items()}
        return cls(path, known, made=max(disk.files, default=-1) + 1)

    def listening(self) -> Listening:
        """Record for as long as the ``with`` block lasts."""
        return Listening(self._told)

    def look(self, is_quiet: bool) -> None:
        """Add a step by hand: between two calls of the log, which is open if `is_quiet`."""
        self.steps.append(Step(self._seen(), Event.LOOK, None, self.expected, is_quiet))

    def _told(self, call: int, fd: int, after: bool, failed: bool) -> None:
        look = self._seen()
        if call != SYNC or failed:
            self.steps.append(Step(look, Event.LOOK, None, self.expected))
            return
        found = os.fstat(fd)
        file: int | None = self.known.get(found.st_ino, OUTSIDE)
        if stat.S_ISDIR(found.st_mode):
            file = None if self.path.exists() and os.path.samestat(found, self.path.stat()) else OUTSIDE
        self.steps.append(Step(look, Event.SYNCED if after else Event.SYNC_BEGINS, file, self.expected))

    def _seen(self) -> Look:
        before = self.steps[-1].look if self.steps else {}
        contents = dict(before.values())
        look: Look = {}
        names = sorted(entry.name for entry in os.scandir(self.path)) if self.path.exists() else []
        for name in names:
            fd = os.open(self.path / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                found = os.fstat(fd)
                content = os.pread(fd, found.st_size, 0)
            finally:
                os.close(fd)
            file = self.known.get(found.st_ino)
            if file is None or (self.steps and file not in contents):
                # New, or the inode of a file that is gone.
                file, self.made = self.made, self.made + 1
                self.known[found.st_ino] = file
            # The same object as long as nothing changes, which makes comparing cheap.
            same = contents.get(file)
            look[name] = (file, same if same == content else content)
        return look


def play(disk: Disk, steps: list[Step]) -> Iterator[tuple[int, Step]]:
    """Bring a disk through the steps. Yields each with its number, when the disk is as it was then."""
    contents: dict[int, bytes] = {}
    names: dict[str, int] = {}
    for number, step in enumerate(steps):
        disk.see(step.look)
        if step.event is Event.SYNC_BEGINS:
            names = dict(disk.names)
            contents = {file: disk.files[file].current for file in names.values()}
        elif step.event is Event.SYNCED:
            if step.file is None:
                disk.sync_names(names)
            elif step.file == OUTSIDE:
                disk.exists = True
            elif step.file in contents:
                disk.files[step.file].sync(contents[step.file])
        yield number, step
