"""What may be on the device: of each page, size and name what a sync made durable, and all that came since.

The kernel writes dirty pages in any order at any time, so after a power cut each page is as it was at the
call of the last sync that covers it, or as it was at some moment since. Names are made durable by a sync of
their directory, and each change of one since then is there or not.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import NamedTuple

PAGE = 4096
UNSYNCED = ("CONTROL", "LOCK")
"""Files that nobody ever syncs."""

_ZEROS = bytes(PAGE)
Look = dict[str, tuple[int, bytes]]
"""What a directory holds, as processes see it: by name, which file that is, and its content."""


class Change(NamedTuple):
    """A name that means another file, or none, from some moment on; perhaps one that the file had before."""

    name: str
    file: int | None
    renamed_from: str | None


class FileOnDisk:
    """One file. `durable` is its content as of the last sync, `current` as processes see it."""

    def __init__(self) -> None:
        self.durable = b""
        self.current = b""
        self.pages: dict[int, list[bytes]] = {}
        self.sizes: list[int] = [0]

    def see(self, content: bytes) -> None:
        """The file has this content now."""
        if content is self.current or content == self.current:
            return
        if len(content) not in self.sizes:
            self.sizes.append(len(content))
        for page in range((max(len(content), len(self.current)) + PAGE - 1) // PAGE):
            now = page_of(content, page)
            if now != page_of(self.current, page):
                since = self.pages.setdefault(page, [page_of(self.durable, page)])
                if now not in since:
                    since.append(now)
        self.current = content

    def sync(self, content: bytes) -> None:
        """A sync that was called when the content was this has succeeded."""
        self.durable = content
        self.sizes = [len(content)]
        self.pages = {}
        now, self.current = self.current, content
        self.see(now)

    def whole(self, size: int, pages: dict[int, bytes]) -> bytes:
        """The file with that size and these pages; the others are as the last sync left them."""
        made = bytearray(self.durable[:size].ljust(size, b"\0"))
        for page, content in pages.items():
            if page * PAGE < size:
                made[page * PAGE : (page + 1) * PAGE] = content
        return bytes(made[:size])


@dataclass
class Disk:
    """A directory of files. `exists` says whether its own name is durable.

    Empty at first, and not even that.
    """

    files: dict[int, FileOnDisk] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    durable_names: dict[str, int] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    exists: bool = False

    def see(self, look: Look) -> None:
        """The directory looks like this now."""
        for file, content in look.values():
            self.files.setdefault(file, FileOnDisk()).see(content)
        names = {name: file for name, (file, _) in look.items()}
        moved = set()
        for name, file in names.items():
            if self.names.get(name) != file:
                origin = next((old for old, same in self.names.items() if same == file), None)
                if origin in names:
                    origin = None
                moved.add(origin)
                self.changes.append(Change(name, file, origin))
        for name in self.names.keys() - names.keys() - moved:
            self.changes.append(Change(name, None, None))
        self.names = names

    def sync_names(self, names: dict[str, int]) -> None:
        """A sync of the directory, called when the names were these, has succeeded."""
        self.durable_names, self.changes = names, []
        now, self.names = self.names, names
        self.see({name: (file, self.files[file].current) for name, file in now.items()})

    def settle(self, look: Look) -> Disk:
        """The disk after a power cut that left this: all of it is durable."""
        made = Disk(exists=True)
        made.see(look)
        for file in made.files.values():
            file.sync(file.current)
        made.sync_names(made.names)
        return made

    def copy(self) -> Disk:
        """One that goes its own way."""
        return copy.deepcopy(self)

    def names_with(self, chosen: list[Change]) -> dict[str, int]:
        """The names when of all changes only these have reached the device."""
        names = dict(self.durable_names)
        for change in chosen:
            if change.renamed_from is not None:
                names.pop(change.renamed_from, None)
            if change.file is None:
                names.pop(change.name, None)
            else:
                names[change.name] = change.file
        return names


def page_of(content: bytes, page: int) -> bytes:
    """A page of a file; behind its end there are zeros."""
    found = content[page * PAGE : (page + 1) * PAGE]
    return found if len(found) == PAGE else found + _ZEROS[len(found) :]
