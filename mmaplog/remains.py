"""What is left of a damaged log: each file of it taken for what it proves to be, and nothing changed."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from mmapio import MemoryMappedFile, MmapMode, _os
from mmaplog import bookmark, bookmark_format, header, page
from mmaplog import control as control_file
from mmaplog import manifest as manifest_file
from mmaplog.errors import CorruptionError, FormatError
from mmaplog.manifest import COMPACTED_SUFFIX, Compacted, Cut, Manifest
from mmaplog.page import Page
from mmaplog.scan import Run, Scan, scan
from mmaplog.segment import is_segment, list_segments, name_of

Progress: TypeAlias = Callable[[int, int], object]

# A number that no record has.
SEQ_END = 1 << 63
_CAPACITY_MAX = 8 << 30
# What is lost may have been of newer epochs than all that is left; of fewer than so many.
EPOCHS_LOST = 1 << 16


@dataclass
class Remains:
    """A file that has the name of a segment. `problem` says why it cannot stay as it is."""

    name: str
    size: int
    segment_id: int
    base_seq: int
    page: Page
    sparse: bool
    problem: str = ""
    # Whether the header is to be believed. Where it is not, the epoch in `page` is the newest that it can be.
    trusted: bool = False
    # The first number that is not its own; how many records it must have, where that is known otherwise.
    boundary: int = SEQ_END
    records: int | None = None
    # Of the segment that follows, where that begins anew what had been given out before.
    was_cut: bool = False
    found: Scan = field(default_factory=lambda: Scan((), 0, 0, None, None, True))

    @property
    def capacity(self) -> int:
        """What the file may hold, as far as that is known."""
        return self.page.capacity if self.trusted else min(self.size, _CAPACITY_MAX)

    @property
    def whole(self) -> Run | None:
        """The run that is all of the segment, or None when anything is wrong with what it should hold."""
        runs = self.found.runs
        whole = runs[0] if runs else Run(self.base_seq, self.base_seq, page.SIZE, page.SIZE, 0)
        if len(runs) > 1 or whole.offset != page.SIZE:
            return None
        if self.sparse:
            return whole if whole.records == self.records else None
        return whole if whole.start == self.base_seq and self.boundary in (whole.stop, SEQ_END) else None

    def judge(self, *, is_last: bool) -> None:
        """Say in `problem` what is wrong with records, marks and footers, unless it is said already."""
        if self.problem:
            return
        whole = self.whole
        if whole is None:
            self.problem = "records are missing or damaged"
        elif self.sparse:
            if is_last:
                self.problem = "the segment that follows it is missing"
        elif any(
            (seq == whole.stop) != (end == whole.end) or seq > whole.stop for seq, end in self.page.marks
        ):
            # A cut since then ended it earlier.
            self.problem = "" if self.was_cut else "a mark vouches for records that are not there"
        elif is_last and self.page.footers:
            self.problem = "the segment that follows it is missing"
        elif not self.was_cut and any(each[:2] != (whole.stop, whole.end) for each in self.page.footers):
            self.problem = "a footer disagrees with the records"
        elif not self.found.complete:
            self.problem = "what follows the last record imitates records so often that none was looked for"

    @property
    def evidence(self) -> int:
        """Records below this number existed, going by what the segment itself says."""
        said = [each[0] for each in (*self.page.marks, *self.page.footers)]
        known = [seq for seq in said if seq <= self.boundary]
        ended = self.boundary if self.boundary < SEQ_END else 0
        return max(self.base_seq, self.found.seen, min(self.found.claimed, self.boundary), ended, *known, 0)


@dataclass(frozen=True, slots=True)
class Words:
    """What a CONTROL of this page cache says: the next number, the durable one, errno of a failed sync.

    Also beyond which offset of which segment no append has written, and the first number.
    """

    seq: int
    durable: int
    poison: int
    segment_id: int
    in_flight: int
    first_seq: int


@dataclass
class Wreck:
    """A log that was looked at: its segments in order, the files that are none of its, and who it is."""

    directory: _os.Descriptor
    path: str
    log_uuid: uuid.UUID
    manifest: Manifest | None
    manifest_problem: str
    segments: list[Remains]
    strays: list[Remains]
    # The newest epoch of which there is a trace.
    epoch: int
    # None when there is no CONTROL that may be believed.
    control: Words | None
    control_problem: str

    @property
    def segment_bytes(self) -> int:
        """How large new segments are to be."""
        if self.manifest is not None:
            return self.manifest.segment_bytes
        known = [each.capacity for each in self.segments if each.trusted]
        least, most = manifest_file.SEGMENT_BYTES_MIN, manifest_file.SEGMENT_BYTES_MAX
        return min(max(max(known, default=0), least), most)

    @property
    def first_seq(self) -> int:
        """The number of the first record that the log should have."""
        if self.manifest is not None:
            return self.manifest.first_seq
        least = self.segments[0].base_seq if self.segments else 0
        return least if self.control is None else max(least, self.control.first_seq)

    @property
    def ends_cleanly(self) -> bool:
        """Whether a clean close vouches for the last record, and nobody has opened the log to write since."""
        last = self.segments[-1]
        runs = last.found.runs
        end = (runs[-1].stop, runs[-1].end) if runs else (last.base_seq, page.SIZE)
        return last.page.closed_at == end

    @property
    def listed(self) -> dict[int, Compacted]:
        """The segments with gaps that the manifest lists, by their ids."""
        return {each.segment_id: each for each in self.manifest.compacted} if self.manifest else {}

    @property
    def cut(self) -> Cut | None:
        """What was being dropped."""
        return self.manifest.cut if self.manifest else None

    @property
    def evidence(self) -> int:
        """Records below this number existed."""
        floor = 0 if self.control is None else self.control.seq
        stops = [each.stop for each in self.listed.values()]
        found = max(floor, self.first_seq, *stops, *(each.evidence for each in self.segments), 0)
        cut = self.cut
        return found if cut is None else max(min(found, cut.seq), self.first_seq)


def survey(directory: _os.Descriptor, path: str, progress: Progress | None = None) -> Wreck:
    """Look at every file of a log. Costs one pass over the bytes.

    Raises FormatError for what a newer version wrote, FileNotFoundError where there is no log, MappingFault,
    OSError as the system reports it.
    """
    manifest, manifest_problem = _read_manifest(directory, path)
    files = [_look_at(directory, *entry) for entry in list_segments(directory)]
    if manifest is None and not manifest_problem and not files:
        raise FileNotFoundError(errno.ENOENT, "holds no log", path)
    consumers = _consumers(directory)
    owner = _owner(manifest, files, consumers)
    if manifest is not None and manifest.log_uuid != owner:
        manifest, manifest_problem = None, "the manifest is that of another log"
    epochs = [each.page.epoch for each in files if each.trusted and each.page.log_uuid == owner.bytes]
    epochs += [epoch for each, epoch in consumers if each == owner]
    if manifest is not None:
        epochs += [manifest.epoch, *(each.epoch for each in manifest.began)]
        epochs += [manifest.cut.epoch] if manifest.cut else []
    epoch = max(epochs, default=0)
    segments, strays = _sort(files, owner, manifest, epoch + EPOCHS_LOST)
    epoch = max([epoch, *(each.page.epoch for each in segments)])
    control, control_problem = _read_control(directory, owner)
    wreck = Wreck(
        directory, path, owner, manifest, manifest_problem, segments, strays, epoch, control, control_problem
    )
    done, total = 0, sum(each.size for each in segments)
    for at, each in enumerate(segments):
        _bound(each, segments[at + 1] if at + 1 < len(segments) else None, wreck)
        _read_records(directory, path, each)
        each.judge(is_last=at + 1 == len(segments))
        done += each.size
        if progress is not None:
            progress(done, total)
    last = segments[-1] if segments else None
    if control and last and not last.problem and last.segment_id == control.segment_id:
        leftover = last.found.leftover
        if leftover is not None and leftover >= control.in_flight:
            last.problem = "there are bytes behind the last record where nothing was written"
    return wreck


def _bound(each: Remains, following: Remains | None, wreck: Wreck) -> None:
    # Where a segment ends. What a footer says comes next may be missing; the records still end there.
    stop = SEQ_END if following is None else following.base_seq
    footers = [seq for seq, _, _ in each.page.footers if seq > each.base_seq]
    if following is not None:
        # Of a damaged header nobody knows.
        each.was_cut = following.page.epoch > each.page.epoch or not each.trusted
    cut, listed = wreck.cut, wreck.listed
    if cut is not None and each.base_seq < cut.seq < stop:
        # As if what follows were there already.
        stop, each.was_cut = cut.seq, True
    if each.segment_id in listed:
        stop, each.records = min(stop, listed[each.segment_id].stop), listed[each.segment_id].records
    elif each.sparse and footers:
        each.records = each.page.footers[0][2]
    each.boundary = min([stop, *footers])


@contextlib.contextmanager
def private_copy(directory: _os.Descriptor, path: str, each: Remains) -> Iterator[memoryview]:
    """The bytes of a segment that count, to be changed at will: no store reaches the file."""
    opened = _os.open_file(each.name, False, follow=False, directory=directory)
    with MemoryMappedFile.from_file(
        opened.fileno(), MmapMode.COPY_ON_WRITE, str(Path(path) / each.name)
    ) as mapped:
        with mapped.as_slice_mut(0, min(each.size, each.capacity)) as view, memoryview(view) as data:
            yield data
        # MappingFault when a page could not be had: zeros stood in its place.
        _ = mapped[0]


def _read_records(directory: _os.Descriptor, path: str, each: Remains) -> None:
    if min(each.size, each.capacity) <= page.SIZE:
        return
    with private_copy(directory, path, each) as data:
        each.found = scan(data, each.segment_id, each.base_seq, 0, each.boundary, each.sparse)
    if each.found.unknown is not None:
        raise FormatError(
            f"record {each.found.unknown} is of a kind this code does not know; upgrade mmapkv",
            str(Path(path) / each.name),
        )


def _read_manifest(directory: _os.Descriptor, path: str) -> tuple[Manifest | None, str]:
    try:
        found = manifest_file.read(directory, path)
    except FileNotFoundError:
        return None, ""
    except CorruptionError as error:
        return None, str(error.strerror)
    except FormatError as error:
        if manifest_file.is_newer(directory):
            raise
        return None, str(error.strerror)
    except OSError as error:
        if not _is_no_file(directory, manifest_file.NAME):
            raise
        return None, str(error.strerror)
    if found.erasing:
        raise FileNotFoundError(
            errno.ENOENT, "the log was being replaced by an empty one; open it with mode 'c' or 'n'", path
        )
    return found, ""


def _is_no_file(directory: _os.Descriptor, name: str) -> bool:
    # Whether something else than a regular file has the name.
    return _os.kind_of(directory, name) not in ("file", "nothing")


def _look_at(directory: _os.Descriptor, base_seq: int, segment_id: int, name: str) -> Remains:
    sparse = name.endswith(COMPACTED_SUFFIX)
    if _is_no_file(directory, name):
        return Remains(name, 0, segment_id, base_seq, page.read(b""), sparse, "is not a regular file")
    opened = _os.open_file(name, False, follow=False, directory=directory)
    size = _os.file_size(opened)
    too_short = f"only {size} bytes are left"
    raw = _os.read_at(opened, page.SIZE, 0)
    header.refuse_swapped(raw, page.MAGIC, opened.path)
    found, mended = page.read(raw), page.read(page.as_version(raw))
    problem = ""
    if not found.sealed and mended.sealed:
        found, problem = mended, "the header's version is damaged"
    if found.is_segment and found.sealed:
        if found.version != mended.version or found.incompatible & ~page.KNOWN:
            raise FormatError(
                f"the segment has version {found.version} and features {found.incompatible:#x} that this "
                "code lacks; upgrade mmapkv",
                opened.path,
            )
        if found.capacity < page.SIZE or found.capacity > _CAPACITY_MAX:
            raise FormatError(f"the segment claims a capacity of {found.capacity} bytes", opened.path)
        sparse = bool(found.incompatible & page.GAPS)
        named = name_of(found.base_seq, found.segment_id, sparse)
        if named != name:
            problem = f"the file was renamed: its header says {named}"
        if size < page.SIZE:
            problem = too_short
        return Remains(name, size, found.segment_id, found.base_seq, found, sparse, problem, True)
    if found.is_segment and 1 < found.version <= header.VERSION_MAX:
        raise FormatError(f"the segment has version {found.version}; upgrade mmapkv", opened.path)
    problem = "the header is damaged" if size >= page.SIZE else too_short
    return Remains(name, size, segment_id, base_seq, page.read(raw, segment_id), sparse, problem)


def _consumers(directory: _os.Descriptor) -> list[tuple[uuid.UUID, int]]:
    # Of which log each consumer or group is, and of which epoch its place; of those that verify.
    found = []
    for name in _os.list_directory(directory):
        if bookmark_format.name_of(name) is None or _is_no_file(directory, name):
            continue
        # It is only asked for a hint: one that may not be read does not stop a repair either.
        with contextlib.suppress(OSError):
            opened = _os.open_file(name, False, follow=False, directory=directory)
            about = bookmark_format.unpack_header(_os.read_at(opened, bookmark_format.SECTOR, 0), opened.path)
            found.append((about.log_uuid, bookmark.read_place(opened, about).epoch))
    return found


def restoring(what: str, program: str) -> str:
    """What to do about damage that a repair by this program mends, at the price of what is damaged."""
    return f"restore {what} from a backup, or run {program} repair, which says what is lost"


def is_damage(path: str, error: OSError) -> bool:
    """Whether what kept the log at `path` from being opened or read is damage, which a repair mends.

    It is not when a newer version wrote what the error is about, nor where there is no segment. Costs a look
    at the file that the error names.
    """
    if isinstance(error, CorruptionError):
        return True
    name = Path(os.fsdecode(error.filename or "")).name
    if name not in (manifest_file.NAME, control_file.NAME) and not is_segment(name):
        return False
    directory = _os.open_directory(path)
    found = {entry[-1]: entry for entry in list_segments(directory)}
    if not found:
        return False
    if _is_no_file(directory, name):
        return True
    if not isinstance(error, FormatError):
        return False
    if name not in found:
        return not manifest_file.is_newer(directory)
    try:
        segment = _look_at(directory, *found[name])
    except FormatError:
        return False
    manifest, _ = _read_manifest(directory, path)
    return bool(segment.problem) or manifest is None or segment.page.log_uuid != manifest.log_uuid.bytes


def _owner(
    manifest: Manifest | None, files: list[Remains], consumers: list[tuple[uuid.UUID, int]]
) -> uuid.UUID:
    # Whose the log is: the manifest's word, unless every segment contradicts it.
    named = Counter(each.page.log_uuid for each in files if each.trusted)
    if manifest is not None and (not named or manifest.log_uuid.bytes in named):
        return manifest.log_uuid
    if named:
        return uuid.UUID(bytes=named.most_common(1)[0][0])
    waiting = Counter(each for each, _ in consumers)
    return waiting.most_common(1)[0][0] if waiting else uuid.uuid4()


def _sort(
    files: list[Remains], owner: uuid.UUID, manifest: Manifest | None, epoch: int
) -> tuple[list[Remains], list[Remains]]:
    # Which files are the log's, one for each base number, and which are not. Where that of the last one is
    # not known, its epoch is `epoch`.
    strays: list[Remains] = []
    ours: list[Remains] = []
    for each in sorted(files, key=_rank, reverse=True):
        if each.trusted and each.page.log_uuid != owner.bytes:
            each.problem = "the segment belongs to another log"
            strays.append(each)
        elif any(each.segment_id == other.segment_id for other in ours):
            strays.append(each)
        else:
            ours.append(each)
    known = manifest or Manifest(owner, 0, 0, compacted=_derived(ours))
    names = sorted((each.base_seq, each.segment_id, each.sparse) for each in ours)
    counting = {
        segment_id
        for _, segment_id, _ in known.counting(
            (base, found, name_of(base, found, gaps)) for base, found, gaps in names
        )
    }
    best: dict[int, Remains] = {}
    for each in ours:
        gone = known.cut is not None and each.base_seq >= known.cut.seq and each.page.epoch != known.cut.epoch
        if each.segment_id not in counting or gone or each.base_seq in best:
            strays.append(each)
        else:
            best[each.base_seq] = each
    segments = [best[base] for base in sorted(best)]
    for each in reversed(segments):
        # Epochs never go down from a segment to the next. Who had read it in an older one reads it again.
        epoch = each.page.epoch if each.trusted else epoch
        if not each.trusted:
            each.page = replace(each.page, epoch=epoch, base_time=0)
    return segments, strays


def _derived(files: list[Remains]) -> tuple[Compacted, ...]:
    # Which segments with gaps count, where no manifest says so: one that is finished, of which the first that
    # it replaces is gone.
    present = {each.segment_id for each in files}
    made: list[Compacted] = []
    for each in sorted(files, key=lambda each: each.base_seq):
        if not each.sparse or not each.page.footers or each.page.replaces in present:
            continue
        stop, _, records = each.page.footers[0]
        newer = [
            other.base_seq
            for other in files
            if each.base_seq < other.base_seq < stop and other.page.epoch > each.page.epoch and other.trusted
        ]
        stop = min([stop, *newer])
        if stop > each.base_seq and (not made or each.base_seq >= made[-1].stop):
            made.append(Compacted(each.segment_id, each.base_seq, stop, records))
    return tuple(made)


def _rank(each: Remains) -> tuple[int, bool, bool, int]:
    # Of files for one base number: the newest epoch, one that has its right name, one with more in it.
    epoch = each.page.epoch if each.trusted else -1
    return epoch, not each.problem, each.size > page.SIZE, -each.segment_id


def _read_control(directory: _os.Descriptor, owner: uuid.UUID) -> tuple[Words | None, str]:
    if _is_no_file(directory, control_file.NAME):
        return None, "is not a regular file"
    found = control_file.load(directory, owner, False, False)
    if found is None:
        return None, ""
    seq, segment_id, _, _ = found.tail
    return Words(seq, found.durable, found.poison, segment_id, found.in_flight, found.first_seq), ""
