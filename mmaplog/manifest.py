"""MANIFEST: what a log is, in two lines of text.

The first line holds magic, version and the XXH3-64 of the second; the second is one JSON object. It is
replaced as a whole: temporary file, sync, rename, sync of the directory.
"""

from __future__ import annotations

import bisect
import errno
import json
import operator
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from mmapio import _os
from mmaplog.checksum import xxh3_64
from mmaplog.errors import CorruptionError, FormatError, LogError
from mmaplog.header import VERSION_MAX

NAME = "MANIFEST"
MAGIC = "mmaplog-manifest"
VERSION = 1
SIZE_MAX = 16 << 20
SEQ_MAX = 1 << 63
SEGMENT_BYTES_MIN = 64 << 10
# A store addresses the start of a record with 26 bits, in units of 8 bytes.
SEGMENT_BYTES_MAX = 512 << 20
TEMPORARY_SUFFIX = ".tmp"
# Stands for the version while a repair is being carried out, whose steps are then in the body.
REPAIRING = "repair"
# Bytes of them that are read at most.
STEPS_MAX = 256 << 20
# Of how many epochs it is kept where they began, once that is below the log's first record.
BEGAN_MAX = 64
# How the names of segments end that compaction wrote. They count only if they are listed here.
COMPACTED_SUFFIX = ".compact.seg"


@dataclass(frozen=True, slots=True)
class Compacted:
    """A segment that compaction wrote: it stands for [base_seq, stop), and holds the records left there."""

    segment_id: int
    base_seq: int
    stop: int
    records: int


@dataclass(frozen=True, slots=True)
class Cut:
    """`truncate_after` at work: what is at or above `seq` goes, and a segment of this epoch begins there."""

    seq: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Consent:
    """That a consumer, whose file has this id, had committed all below `seq` when its place had this turn."""

    file_id: int
    seq: int
    turn: int


@dataclass(frozen=True, slots=True)
class Began:
    """That an epoch began at number `seq`, from which on numbers were given out again."""

    epoch: int
    seq: int


@dataclass(frozen=True)
class Manifest:
    """What every process that opens the log must know before it reads anything else."""

    log_uuid: uuid.UUID
    segment_bytes: int
    first_seq: int
    # Mode "n" was at work: whatever else is in the directory is to be removed.
    erasing: bool = False
    # In order of their numbers, which do not overlap.
    compacted: tuple[Compacted, ...] = ()
    cut: Cut | None = None
    # Of what was removed and has nothing newer in its place, a layer above by its keys, all was below
    # `swept`; and so many times something was.
    swept: int = 0
    sweeps: int = 0
    # Of those consumers by whom it was last decided what may be dropped.
    consents: tuple[Consent, ...] = ()
    # Of the epochs that began below the first record, in order, also of their numbers: what is cut off at the
    # end is never below that.
    began: tuple[Began, ...] = ()
    # The newest epoch that a repair has given out: the next one must not, though no segment is left of it.
    epoch: int = 0

    def counting(
        self, listing: Iterable[tuple[int, int, str]], tail_id: int = 0
    ) -> list[tuple[int, int, str]]:
        """Of all segments in the directory as (base_seq, id, name), in order, those that are part of the log.

        The others wait for their removal: what was truncated, what compaction replaced or had not finished.
        The one with the id `tail_id` counts in any case: records still go there.
        """
        listed = {each.segment_id for each in self.compacted}
        starts = [each.base_seq for each in self.compacted]
        counting = []
        for entry in listing:
            base_seq, segment_id, name = entry
            if name.endswith(COMPACTED_SUFFIX):
                if segment_id in listed:
                    counting.append(entry)
                continue
            at = bisect.bisect_right(starts, base_seq) - 1
            if at < 0 or base_seq >= self.compacted[at].stop:
                counting.append(entry)
        bases = sorted({entry[0] for entry in counting})
        # The segment with the first record, or where it will be, is the last that begins at or below it.
        first = bases[max(bisect.bisect_right(bases, self.first_seq) - 1, 0)] if bases else 0
        return [entry for entry in counting if entry[0] >= first or entry[1] == tail_id]

    def truncated_before(
        self, seq: int, swept: int, began: tuple[Began, ...], consents: tuple[Consent, ...] = ()
    ) -> Self:
        """The same without the records below `seq`, of which those that may be missed are below `swept`.

        `began` takes the place of what was there, and so do `consents`, unless there are none.
        """
        return replace(
            self.swept_below(swept),
            first_seq=seq,
            began=began,
            consents=consents or self.consents,
            compacted=tuple(each for each in self.compacted if each.stop > seq),
        )

    def cut_after(self, seq: int, epoch: int, records: int) -> Self:
        """The same while everything from `seq` on is being dropped.

        `records` is how many a compacted segment that `seq` goes through has below it.
        """
        kept = [each for each in self.compacted if each.base_seq < seq]
        if kept and kept[-1].stop > seq:
            kept[-1] = replace(kept[-1], stop=seq, records=records)
        return replace(self, compacted=tuple(kept), cut=Cut(seq, epoch), swept=min(self.swept, seq))

    def with_compacted(self, made: Compacted, swept: int) -> Self:
        """The same with one more compacted segment, in place of all that begin within its range.

        What it leaves out that may be missed is below `swept`, 0 when nothing is.
        """
        kept = [each for each in self.compacted if not made.base_seq <= each.base_seq < made.stop]
        return replace(
            self.swept_below(swept),
            compacted=tuple(sorted([*kept, made], key=lambda each: each.base_seq)),
        )

    def next_epoch(self, newest: int) -> int:
        """The one to give out next, where `newest` is the newest epoch of a segment.

        A repair may have given out a newer one, or heard of one, of which no segment is left.
        """
        return max(newest, self.epoch) + 1

    def swept_below(self, swept: int) -> Self:
        """The same once more records were removed that may be missed, all of them below `swept`, unless 0."""
        return replace(self, swept=max(self.swept, swept), sweeps=self.sweeps + 1) if swept else self


def with_begun(known: tuple[Began, ...], segments: Iterable[tuple[int, int]]) -> tuple[Began, ...]:
    """The epochs that are known to have begun, and those of segments that come after, as (base_seq, epoch).

    Where they would be too many, the oldest count as one, which began where the first of them did: who stands
    in between goes back further than he must.
    """
    made = list(known)
    for base_seq, epoch in segments:
        if epoch > (made[-1].epoch if made else 0):
            made.append(Began(epoch, base_seq))
    excess = len(made) - BEGAN_MAX
    if excess > 0:
        made[: excess + 1] = [Began(made[excess].epoch, made[0].seq)]
    return tuple(made)


def write(directory: _os.Descriptor, manifest: Manifest) -> None:
    """Write the manifest of an open directory durably.

    Costs two syncs. OSError leaves the old one in place, or, by the last of the syncs, the new one, not known
    to be durable; LogError for one that would be too large to read leaves the old one.
    """
    body = json.dumps(
        {
            "first_seq": manifest.first_seq,
            "log_uuid": str(manifest.log_uuid),
            "segment_bytes": manifest.segment_bytes,
            **({"erasing": True} if manifest.erasing else {}),
            **({"compacted": [_listed(each) for each in manifest.compacted]} if manifest.compacted else {}),
            **({"cut": [manifest.cut.seq, manifest.cut.epoch]} if manifest.cut else {}),
            **({"swept": [manifest.swept, manifest.sweeps]} if manifest.sweeps else {}),
            **({"consents": [_agreed(each) for each in manifest.consents]} if manifest.consents else {}),
            **({"began": [[each.epoch, each.seq] for each in manifest.began]} if manifest.began else {}),
            **({"epoch": manifest.epoch} if manifest.epoch else {}),
        }
    )
    _replace(directory, str(VERSION), body)


def _replace(directory: _os.Descriptor, version: str, body: str) -> None:
    digest = xxh3_64(body.encode())
    data = f"{MAGIC} {version} {digest:016x}\n{body}\n".encode()
    if len(data) > SIZE_MAX:
        raise LogError(
            errno.EFBIG,
            f"the manifest would have {len(data)} bytes of at most {SIZE_MAX}: there are too many compacted "
            "segments; drop old records, or copy the log to one with larger segments",
            directory.locate(NAME),
        )
    temporary = NAME + TEMPORARY_SUFFIX
    opened = _os.open_file(temporary, True, create=True, follow=False, directory=directory)
    _os.set_size(opened, 0)
    _os.write_at(opened, data, 0)
    _os.sync(opened)
    _os.replace_file(directory, temporary, NAME)
    _os.sync(directory)


def write_steps(directory: _os.Descriptor, steps: str) -> None:
    """Put the steps of a repair, one line of text, in place of the manifest: nobody opens the log until it
    is back."""
    _replace(directory, REPAIRING, steps)


def read_steps(directory: _os.Descriptor) -> bytes | None:
    """The steps of a repair that was cut short; None when there are none, or none that verify."""
    head, body = _read_lines(directory)
    return body if head == [MAGIC.encode(), REPAIRING.encode(), f"{xxh3_64(body):016x}".encode()] else None


def is_newer(directory: _os.Descriptor) -> bool:
    """Whether a later version of this code wrote the manifest, going by the version it names."""
    head, _ = _read_lines(directory)
    return len(head) > 1 and head[0] == MAGIC.encode() and _names_newer(head[1])


def _names_newer(version: bytes) -> bool:
    # Whether these digits may be meant; Python refuses to make a number of thousands of them.
    return version.isdigit() and len(version) <= 3 and VERSION < int(version) <= VERSION_MAX


def _read_lines(directory: _os.Descriptor) -> tuple[list[bytes], bytes]:
    # The words of the first line, and the second.
    opened = _os.open_file(NAME, False, follow=False, directory=directory)
    head, _, body = _os.read_at(opened, STEPS_MAX, 0).partition(b"\n")
    return head.split(b" "), body.removesuffix(b"\n")


def sync(directory: _os.Descriptor) -> None:
    """Make the manifest durable as it is, if there is one: it may be a copy that nobody has synced yet."""
    try:
        opened = _os.open_file(NAME, True, follow=False, directory=directory)
    except FileNotFoundError:
        return
    _os.sync(opened)


def exists(directory: _os.Descriptor, path: str) -> bool:
    """Whether an open directory has a manifest. FormatError when a file of that name is not one of ours."""
    try:
        opened = _os.open_file(NAME, False, follow=False, directory=directory)
    except FileNotFoundError:
        return False
    head = _os.read_at(opened, len(MAGIC), 0)
    if head != MAGIC.encode():
        raise _not_ours(head, str(Path(path) / NAME))
    return True


def _not_ours(head: bytes, path: str) -> FormatError:
    begins = f"begins with {head[:24]!r} instead of {MAGIC!r}" if head else "is empty"
    return FormatError(
        f"not a log: its manifest {begins}; if it is one, restore the file from a backup, or run repair", path
    )


def read(directory: _os.Descriptor, path: str) -> Manifest:
    """Read and check the manifest of an open directory. FileNotFoundError, FormatError or CorruptionError."""
    opened = _os.open_file(NAME, False, follow=False, directory=directory)
    path = str(Path(path) / NAME)
    size = _os.file_size(opened)
    if size > SIZE_MAX:
        raise FormatError(f"a manifest of {size} bytes is none of ours (at most {SIZE_MAX})", path)
    head, _, body = _os.read_at(opened, size, 0).partition(b"\n")
    magic, *rest = head.split(b" ")
    if magic != MAGIC.encode():
        raise _not_ours(magic, path)
    # The version before the shape: a newer one may have another.
    if rest and rest[0] == REPAIRING.encode():
        raise FormatError(
            "a repair was cut short; run it again: mmaplog repair, or of a store mmapkv repair", path
        )
    if rest and _names_newer(rest[0]):
        raise FormatError(
            f"a manifest of version {rest[0].decode()}, this code knows {VERSION}; upgrade mmapkv", path
        )
    body = body.removesuffix(b"\n")
    if rest != [str(VERSION).encode(), f"{xxh3_64(body):016x}".encode()]:
        raise CorruptionError(
            "the manifest does not match its checksum; restore it from a backup, or delete it and open the "
            "log for writing, which derives it from the segments",
            path,
        )
    try:
        fields = json.loads(body)
        swept, sweeps = map(operator.index, fields.get("swept", (0, 0)))
        found = Manifest(
            uuid.UUID(fields["log_uuid"]),
            operator.index(fields["segment_bytes"]),
            operator.index(fields["first_seq"]),
            fields.get("erasing") is True,
            tuple(_compacted(each) for each in fields.get("compacted", [])),
            None if fields.get("cut") is None else Cut(*map(operator.index, fields["cut"])),
            swept,
            sweeps,
            tuple(_consent(each) for each in fields.get("consents", [])),
            tuple(_began(each) for each in fields.get("began", [])),
            operator.index(fields.get("epoch", 0)),
        )
        in_range = SEGMENT_BYTES_MIN <= found.segment_bytes <= SEGMENT_BYTES_MAX
        if not in_range or not 0 <= found.first_seq < SEQ_MAX:
            raise ValueError(
                f"segment_bytes {found.segment_bytes} or first_seq {found.first_seq} out of range"
            )
        if not 0 <= found.epoch < 1 << 32:
            raise ValueError(f"epoch {found.epoch} is out of range")
        if not 0 <= found.swept < SEQ_MAX or found.sweeps < 0:
            raise ValueError(f"swept {found.swept}, {found.sweeps} times, is out of range")
        for each in found.consents:
            if not 0 <= each.seq <= found.first_seq or each.turn < 1:
                raise ValueError(f"{each} is out of range")
        _require_order(found)
        return found
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"the manifest verifies but cannot be understood: {error!r}", path) from error


def _listed(compacted: Compacted) -> list[str | int]:
    return [f"{compacted.segment_id:016x}", compacted.base_seq, compacted.stop, compacted.records]


def _compacted(fields: Any) -> Compacted:
    segment_id, base_seq, stop, records = fields
    return Compacted(int(segment_id, 16), *map(operator.index, (base_seq, stop, records)))


def _agreed(consent: Consent) -> list[str | int]:
    return [f"{consent.file_id:016x}", consent.seq, consent.turn]


def _consent(fields: Any) -> Consent:
    file_id, seq, turn = fields
    return Consent(int(file_id, 16), operator.index(seq), operator.index(turn))


def _began(fields: Any) -> Began:
    epoch, seq = fields
    return Began(operator.index(epoch), operator.index(seq))


def _require_order(manifest: Manifest) -> None:
    before = Began(0, 0)
    for began in manifest.began:
        if not before.epoch < began.epoch < 1 << 32 or not before.seq <= began.seq < manifest.first_seq:
            raise ValueError(f"{began} is not in order")
        before = began
    end = 0
    for each in manifest.compacted:
        if (
            not end <= each.base_seq < each.stop < SEQ_MAX
            or not 0 <= each.records <= each.stop - each.base_seq
        ):
            raise ValueError(f"the compacted segment {each} is not in order")
        end = each.stop
    if manifest.cut is not None and not (
        0 <= manifest.cut.seq < SEQ_MAX and 0 < manifest.cut.epoch < 1 << 32
    ):
        raise ValueError(f"{manifest.cut} is out of range")
