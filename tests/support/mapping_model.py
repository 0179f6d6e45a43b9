"""A model of mapped files: what a file holds, what each mapping of it shows, and what is on a handle's books.

Exact for one thread. A page of a mapping is missing when the file has been cut below it. To look at it is a
fault, which marks the mapping; below a view for reading it also puts zeros there for good.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mmapio import PAGE_SIZE, FlushPolicy, MmapMode
from mmapio.options import Trigger


def whole_pages(count: int) -> int:
    """The bytes of the pages that `count` bytes take."""
    return -(-count // PAGE_SIZE) * PAGE_SIZE


class FileModel:
    """The bytes of a file, and the mappings that others' cuts take pages from."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)
        self.private: list[RegionModel] = []

    def __len__(self) -> int:
        return len(self.content)

    def set_size(self, size: int) -> None:
        """Cut or extend, whoever does it. Private copies lose what they changed beyond the last page left."""
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))
        for region in self.private:
            region.forget_changes(whole_pages(size) // PAGE_SIZE, region.zeros_from)


class RegionModel:
    """One mapping of a file."""

    def __init__(self, file: FileModel, *, private: bool) -> None:
        self.file = file
        self.faulted = False
        self.zeros_from: int | None = None
        """The first page of those that the fault handler has replaced."""
        self.changes: dict[int, bytearray] | None = {} if private else None
        """Pages that a private copy has of its own."""
        if private:
            file.private.append(self)

    def forget_changes(self, first: int, last: int | None) -> None:
        """Of the pages from `first` on, below `last`."""
        assert self.changes is not None
        for page in [page for page in self.changes if first <= page and (last is None or page < last)]:
            del self.changes[page]

    def first_missing(self, offset: int, count: int) -> int | None:
        """The first page of a range that is not there."""
        if count == 0:
            return None
        page = max(offset, whole_pages(len(self.file))) // PAGE_SIZE
        covered = self.zeros_from is not None and page >= self.zeros_from
        return None if covered or offset + count <= page * PAGE_SIZE else page

    def guarded(self, offset: int, count: int) -> bytes | None:
        """What our own code reads; None, and the mapping is marked, where a page is or was missing."""
        if self.first_missing(offset, count) is not None:
            self.faulted = True
        return None if self.faulted else self.shown(offset, count)

    def foreign(self, offset: int, count: int) -> bytes:
        """What somebody else's code reads: zeros from the first missing page on, to the mapping's end."""
        page = self.first_missing(offset, count)
        if page is not None:
            if self.changes is not None:
                self.forget_changes(page, self.zeros_from)
            self.faulted = True
            self.zeros_from = page
        return self.shown(offset, count)

    def shown(self, offset: int, count: int) -> bytes:
        """The bytes of a range of which no page is missing."""
        if self.changes is None and self.zeros_from is None:
            return bytes(self.file.content[offset : offset + count]).ljust(count, b"\0")
        begin, end = offset // PAGE_SIZE, whole_pages(offset + count) // PAGE_SIZE
        first = begin * PAGE_SIZE
        return b"".join(map(self.page, range(begin, end)))[offset - first : offset - first + count]

    def page(self, number: int) -> bytes:
        """The bytes of one page that is there."""
        if self.changes is not None and number in self.changes:
            return bytes(self.changes[number])
        if self.zeros_from is not None and number >= self.zeros_from:
            return bytes(PAGE_SIZE)
        return bytes(self.file.content[number * PAGE_SIZE : (number + 1) * PAGE_SIZE]).ljust(PAGE_SIZE, b"\0")

    def make_own(self, offset: int, count: int) -> None:
        """What a private copy does with pages before they are written: with all up to a missing one."""
        if self.changes is None or count == 0:
            return
        for number in range(offset // PAGE_SIZE, whole_pages(offset + count) // PAGE_SIZE):
            if self.first_missing(number * PAGE_SIZE, 1) is not None:
                return
            self.changes.setdefault(number, bytearray(self.page(number)))

    def store(self, offset: int, data: bytes) -> None:
        """Write where no page is missing.

        In a shared mapping within the file only: nobody says what its last page keeps behind the end.
        """
        if self.changes is None:
            assert offset + len(data) <= len(self.file), "the model does not know what lies behind the end"
            self.file.content[offset : offset + len(data)] = data
            return
        self.make_own(offset, len(data))
        done = 0
        while done < len(data):
            number, within = divmod(offset + done, PAGE_SIZE)
            piece = data[done : done + PAGE_SIZE - within]
            self.changes[number][within : within + len(piece)] = piece
            done += len(piece)


@dataclass
class Books:
    """What a read-write handle has to flush."""

    policy: FlushPolicy
    bytes_pending: int = 0
    writes_pending: int = 0
    bytes_exported: int = 0
    changed: bool = False

    @property
    def pending_bytes(self) -> int:
        """As of the handle."""
        return self.bytes_pending + self.bytes_exported

    @property
    def dirty(self) -> bool:
        """Whether anything may have been written since the last full flush."""
        return self.changed or self.bytes_exported > 0

    def note(self, count: int) -> None:
        """A write of so many bytes; perhaps a flush."""
        self.changed = True
        self.bytes_pending += count
        self.writes_pending += 1
        policy = self.policy
        amounts = {Trigger.BYTES: self.bytes_pending, Trigger.WRITES: self.writes_pending}
        if policy.trigger is Trigger.ALWAYS or amounts.get(policy.trigger, -1) >= policy.bound:
            self.flush()

    def note_size(self) -> None:
        """Another length: nothing written, but something to flush."""
        self.changed = self.policy.trigger is not Trigger.ALWAYS
        if not self.changed:
            self.flush()

    def flush(self) -> None:
        """Of everything."""
        self.bytes_pending = self.writes_pending = 0
        self.changed = False

    def flush_range(self, count: int) -> None:
        """Of a part."""
        self.bytes_pending -= min(count, self.bytes_pending)


@dataclass
class HandleModel:
    """A handle: the length that it knows, and its mappings."""

    file: FileModel
    mode: MmapMode
    books: Books
    reserved: int
    length: int = field(init=False)
    stores: RegionModel = field(init=False)
    viewed: RegionModel | None = field(init=False)
    outgrown: list[RegionModel] = field(default_factory=list)
    """Mappings that growth has left to their views. What faults there is the handle's business, too."""

    def __post_init__(self) -> None:
        self.length = len(self.file)
        wanted = 0 if self.mode is MmapMode.COPY_ON_WRITE else self.reserved
        self.reserved = whole_pages(max(wanted, self.length, 1))
        self._map()

    def _map(self) -> None:
        self.stores = RegionModel(self.file, private=self.mode is MmapMode.COPY_ON_WRITE)
        self.viewed = None if self.mode is MmapMode.READ_WRITE else self.stores

    @property
    def regions(self) -> list[RegionModel]:
        """All mappings that the handle knows of."""
        return [self.stores, *([] if self.viewed is None else [self.viewed]), *self.outgrown]

    @property
    def faulted(self) -> bool:
        """Whether every checked call raises."""
        return any(region.faulted for region in self.regions)

    @property
    def is_whole(self) -> bool:
        """Whether no page of what the handle knows is missing, nor was."""
        return not self.faulted and self.stores.first_missing(0, self.length) is None

    def view_region(self) -> RegionModel:
        """Where views for reading point."""
        if self.viewed is None:
            self.viewed = RegionModel(self.file, private=False)
        return self.viewed

    def refresh(self) -> int:
        """Learn the length; map anew after a fault and beyond the reservation.

        A private copy learns nothing: it would lose what was written to it. A fault has lost that anyway.
        """
        found, faulted = len(self.file), self.faulted
        if self.mode is MmapMode.COPY_ON_WRITE and not faulted:
            return self.length
        if faulted or found > self.reserved:
            self.reserved = whole_pages(max(2 * found, self.reserved, 1))
            self.outgrown = [] if faulted else self.regions
            self._map()
        self.length = found
        return found
