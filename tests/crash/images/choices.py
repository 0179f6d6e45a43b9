"""Which images of a disk to look at: all when they are few, otherwise those that tell most and some more."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from tests.crash.images.disk import PAGE, UNSYNCED, Change, Disk, FileOnDisk

SECTOR = 512
# Of the images, so many in 1/1000 mix the versions of a page by sectors, and so many within a sector.
MIXED_SHARE = 150
CUT_SHARE = 50
ABSENT_SHARE = 250

Image = dict[str, bytes]
"""What a power cut has left: contents by name. None in its place: not even the directory is there."""


@dataclass(frozen=True)
class Slot:
    """What may have reached the device or not: a change of a name, or a size or page of a file."""

    options: int
    change: Change | None = None
    file: int = 0
    page: int | None = None


def slots_of(disk: Disk) -> list[Slot]:
    """All that is open, of files that are ever synced. Option 0 is durable, the last one current."""
    slots = [Slot(2, change=change) for change in disk.changes if change.name not in UNSYNCED]
    ignored = {file for name, file in disk.names.items() if name in UNSYNCED}
    ignored |= {change.file for change in disk.changes if change.name.startswith(UNSYNCED) and change.file}
    possible = {*disk.durable_names.values(), *(change.file for change in disk.changes)} - {None}
    for number in sorted(file for file in possible - ignored if file is not None):
        file = disk.files[number]
        if len(file.sizes) > 1:
            slots.append(Slot(len(file.sizes), file=number))
        slots += [Slot(len(file.pages[page]), file=number, page=page) for page in sorted(file.pages)]
    return slots


def assignments(slots: list[Slot], rng: random.Random, count: int) -> Iterator[tuple[int, ...]]:
    """At most `count` choices of an option for each slot; all there are, if they are no more."""
    total = math.prod(slot.options for slot in slots)
    if total <= count:
        yield from itertools.product(*(range(slot.options) for slot in slots))
        return
    seen = set()
    for chosen in itertools.chain(_telling(slots, rng), _at_random(slots, rng)):
        if chosen not in seen:
            seen.add(chosen)
            yield chosen
            if len(seen) == count:
                return


def build(disk: Disk, slots: list[Slot], chosen: tuple[int, ...], rng: random.Random) -> Image | None:
    """The image that a choice makes. What nobody syncs is drawn, and so are the pages that are torn."""
    if not disk.exists and rng.random() < 0.5:
        return None
    changes, sizes = [], {}
    pages: dict[int, dict[int, bytes]] = {}
    kind = rng.randrange(1000)
    for slot, option in zip(slots, chosen, strict=True):
        if slot.change is not None:
            if option:
                changes.append(slot.change)
        elif slot.page is None:
            sizes[slot.file] = disk.files[slot.file].sizes[option]
        else:
            versions = disk.files[slot.file].pages[slot.page]
            page = versions[option]
            if kind < MIXED_SHARE:
                page = _mixed(versions, page, rng)
            elif kind < MIXED_SHARE + CUT_SHARE:
                page = _cut(versions[max(option - 1, 0)], page, rng)
            pages.setdefault(slot.file, {})[slot.page] = page
    names = disk.names_with(changes)
    image = {
        name: disk.files[file].whole(sizes.get(file, len(disk.files[file].durable)), pages.get(file, {}))
        for name, file in names.items()
        if not name.startswith(UNSYNCED)
    }
    for name in UNSYNCED:
        if name in disk.names and rng.randrange(1000) >= ABSENT_SHARE:
            image[name] = _whatever(disk.files[disk.names[name]], rng)
    return image


def current(disk: Disk) -> Image:
    """What processes see now, and find when one of them was killed."""
    return {name: disk.files[file].current for name, file in disk.names.items()}


def _telling(slots: list[Slot], rng: random.Random) -> Iterator[tuple[int, ...]]:
    none = tuple(0 for _ in slots)
    last = tuple(slot.options - 1 for slot in slots)
    yield none
    yield last
    alone = list(range(len(slots)))
    rng.shuffle(alone)
    for at in alone:
        yield none[:at] + last[at : at + 1] + none[at + 1 :]
        yield last[:at] + none[at : at + 1] + last[at + 1 :]
    pairs = list(itertools.combinations(range(len(slots)), 2))
    for pair in rng.sample(pairs, min(len(pairs), len(slots))):
        yield tuple(last[at] if at in pair else 0 for at in range(len(slots)))


def _at_random(slots: list[Slot], rng: random.Random) -> Iterator[tuple[int, ...]]:
    while True:
        # As a whole mostly old, mostly new, or anything.
        likely = rng.choice((0.1, 0.5, 0.9))
        yield tuple(
            rng.randrange(slot.options)
            if rng.random() < 0.5
            else (slot.options - 1 if rng.random() < likely else 0)
            for slot in slots
        )


def _mixed(versions: list[bytes], page: bytes, rng: random.Random) -> bytes:
    # Some sectors of another version: the device wrote a part of the page.
    other = rng.choice(versions)
    sectors = [page[at : at + SECTOR] for at in range(0, PAGE, SECTOR)]
    for at in range(len(sectors)):
        if rng.random() < 0.5:
            sectors[at] = other[at * SECTOR : (at + 1) * SECTOR]
    return b"".join(sectors)


def _cut(before: bytes, page: bytes, rng: random.Random) -> bytes:
    # The page was written while it was being stored to: one version up to some place, another from there on.
    at = rng.randrange(0, PAGE, 8)
    return page[:at] + before[at:] if rng.random() < 0.5 else before[:at] + page[at:]


def _whatever(file: FileOnDisk, rng: random.Random) -> bytes:
    size = rng.choice(file.sizes) if rng.random() < 0.2 else len(file.current)
    pages = {page: rng.choice(versions[-3:]) for page, versions in file.pages.items()}
    return file.whole(size, pages)
