"""The hint files of a store: one beside each sealed segment of its log, none without a segment."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import pairwise

from mmapio import _os
from mmapkv import hint
from mmapkv.hint import HEADER_SIZE, Hint
from mmaplog.errors import CorruptionError, FormatError
from mmaplog.log import Log
from mmaplog.segment import TEMPORARY_SUFFIX, Segment, is_segment

logger = logging.getLogger("mmapkv")

SUFFIX = ".hint"
SEGMENT_SUFFIX = ".seg"


def name_of(segment: str) -> str:
    """The name of the hint that goes with the segment of this name."""
    return segment.removesuffix(SEGMENT_SUFFIX) + SUFFIX


def peek(log: Log, segment: Segment) -> Hint | None:
    """What the header of a segment's hint says; None when there is none that can be used."""
    return _load(log, segment, whole=False)


def load(log: Log, segment: Segment) -> Hint | None:
    """The hint of a segment; None when there is none that can be used."""
    return _load(log, segment, whole=True)


def _read(log: Log, segment: Segment, *, whole: bool) -> tuple[Hint, bytes]:
    segments = log.segments
    opened = _os.open_file(name_of(segment.name), False, follow=False, directory=segments.directory)
    data = _os.read_at(opened, _os.file_size(opened) if whole else HEADER_SIZE, 0)
    return (hint.read if whole else hint.peek)(data, segment, segments.log_uuid, opened.path), data


def _load(log: Log, segment: Segment, *, whole: bool) -> Hint | None:
    try:
        return _read(log, segment, whole=whole)[0]
    except FileNotFoundError:
        return None
    except (CorruptionError, FormatError) as error:
        logger.warning("%s: the records are read instead: %s", log.path, error)
        if isinstance(error, CorruptionError) and log.writable:
            # One that is sound can be made in its place.
            _remove(log, name_of(segment.name))
    except OSError as error:
        logger.warning("%s: the records are read instead: %s: %s", log.path, name_of(segment.name), error)
    return None


def exists(log: Log, segment: str, segment_id: int, seed: int) -> bool:
    """Whether this segment has a hint by this seed, going by what its header says of itself."""
    try:
        opened = _os.open_file(name_of(segment), False, follow=False, directory=log.segments.directory)
        return hint.is_named(_os.read_at(opened, HEADER_SIZE, 0), segment_id, seed)
    except OSError:
        return False


def sealed(log: Log) -> Iterator[tuple[Segment, int]]:
    """Each segment that nothing is added to any more, with the number after it, in order.

    Those whose first records were truncated, or whose last, are left out: hints tell of whole segments.
    """
    bases = log.segments.bases()
    for base, following in pairwise(bases):
        if base < log.first_seq:
            continue
        segment = log.segments.at(base)
        if segment is None:
            continue
        footer = segment.footer()
        if footer is not None and footer[0] == following <= log.committed:
            yield segment, following


def damages(log: Log) -> Iterator[tuple[str, str]]:
    """What is wrong with hints, as (path, reason). Costs reading each segment that has one.

    One that is newer than this code, and one whose segment is damaged, which says so itself, are no damage.
    """
    segments = log.segments
    for segment, _ in sealed(log):
        path = segments.directory.locate(name_of(segment.name))
        try:
            found, data = _read(log, segment, whole=True)
        except (FileNotFoundError, FormatError):
            continue
        except OSError as error:
            yield path, error.strerror or str(error)
            continue
        with suppress(CorruptionError):
            if hint.compose(segment, segments.log_uuid, found.seed) != data:
                yield path, "the hint does not say what the segment holds"


def seed_of(found: list[Hint]) -> int | None:
    """The seed that most records of these hints were hashed by; None without any."""
    weights: Counter[int] = Counter()
    for each in found:
        weights[each.seed] += each.records
    return max(weights, key=weights.__getitem__) if weights else None


def write(log: Log, segment: Segment, seed: int) -> None:
    """Make the hint of a sealed segment, in place of one that it may have. Costs reading it, and a sync.

    There is none of a segment with a clear: what that takes away is counted by going through the records.
    Raises CorruptionError for a segment that does not verify, FileExistsError while others do the same,
    OSError as the system reports it; there is then no new hint.
    """
    directory = log.segments.directory
    name = name_of(segment.name)
    data = hint.compose(segment, log.segments.log_uuid, seed)
    if data is None:
        return
    opened = _os.open_file(
        name + TEMPORARY_SUFFIX, True, create=True, exclusive=True, follow=False, directory=directory
    )
    try:
        _os.write_at(opened, data, 0)
        _os.sync(opened)
        _os.replace_file(directory, name + TEMPORARY_SUFFIX, name)
    except BaseException:
        _remove(log, name + TEMPORARY_SUFFIX)
        raise
    if not any(listed == segment.name for _, _, listed in log.segments.listing()):
        # Compacted or dropped meanwhile, perhaps when there was no hint yet to go with it.
        _remove(log, name)


def clear(log: Log) -> None:
    """Remove all of them."""
    directory = log.segments.directory
    for name in _os.list_directory(directory):
        if _is_hint(name):
            _os.remove_file(directory, name)


def sweep(log: Log, *, opening: bool = False) -> None:
    """Remove what goes with no segment, as after a compaction.

    When `opening` the store for writing, what somebody left unfinished who was killed, too. Later it is being
    made, perhaps by a thread of this very handle.
    """
    found = log.segments.beside()
    if log.shared:
        # What others have made by then goes with segments that are known after that.
        log.segments.relist()
    kept = {name_of(name) for _, _, name in log.segments.listing()}
    if not opening:
        kept |= {name + TEMPORARY_SUFFIX for name in kept}
    for name in found:
        if name not in kept and _is_hint(name):
            _remove(log, name)


def remove(log: Log, segments: Iterable[str]) -> None:
    """Remove the hints of segments that are gone, by their names."""
    for segment in segments:
        _remove(log, name_of(segment))


def _remove(log: Log, name: str) -> None:
    # Whether or not others were faster.
    with suppress(OSError):
        _os.remove_file(log.segments.directory, name)


def _is_hint(name: str) -> bool:
    # Finished or not, of a segment that is there or not.
    stem = name.removesuffix(TEMPORARY_SUFFIX).removesuffix(SUFFIX)
    return name.startswith(stem + SUFFIX) and is_segment(stem + SEGMENT_SUFFIX)
