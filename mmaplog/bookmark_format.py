"""The file of a consumer or group, on disk: its name, its sizes, its layouts. No system call is made here.

Everything is little-endian. docs/format-log.md is the same in prose and tables.
"""

from __future__ import annotations

import dataclasses
import re
import struct
import uuid
from dataclasses import dataclass

from mmaplog.checksum import xxh3_64
from mmaplog.errors import CorruptionError, FormatError
from mmaplog.header import check as check_header

SUFFIX = ".consumer"
TEMPORARY_SUFFIX = ".consumer.tmp"
NAME_LENGTH_MAX = 100

MAGIC = int.from_bytes(b"\x93mmapcsr", "little")
VERSION = 1
KIND_CONSUMER = 1
KIND_GROUP = 2

SECTOR = 512
OWNER_OFFSET = 512
OWNER_SIZE = 64
MUTEX_OFFSET = 1024
COPIES_OFFSET = 2048
# The first are written by every commit, the rest only by one that is then synced.
LIVE_COPIES = 2
COPIES = 4
CONSUMER_COPY_SIZE = 512
GROUP_COPY_SIZE = 6656
CLAIMS_MAX = 256
MEMBERS_MAX = 128
# A claim that is nobody's: its member left or died.
NOBODY = 0xFFFFFFFF

# Bytes that are locked, by what holding one means.
CREATING = 0
HOLDER = 1
FIRST_MEMBER = 16

LAYOUTS = {
    "BookmarkHeader": (
        ("magic", "Q"),
        ("version", "I"),
        ("kind", "I"),
        ("log_uuid", "16s"),
        ("file_id", "Q"),
        ("created", "Q"),
        ("reserved", "Q"),
        ("checksum", "Q"),
    ),
    "BookmarkCopy": (
        ("turn", "Q"),
        ("seq", "Q"),
        ("next", "Q"),
        ("durable", "Q"),
        ("incarnation", "Q"),
        ("epoch", "I"),
        ("count", "I"),
        ("reserved", "Q"),
        ("checksum", "Q"),
    ),
    "Claim": (
        ("at", "Q"),
        ("stop", "Q"),
        ("member", "I"),
        ("reserved", "I"),
    ),
}

_HEADER, _COPY, _CLAIM = (
    struct.Struct("<" + "".join(code for _, code in fields)) for fields in LAYOUTS.values()
)
_SUM_SIZE = 8
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")

assert _HEADER.size == 64 <= OWNER_OFFSET
assert _COPY.size == 64 <= CONSUMER_COPY_SIZE
assert _CLAIM.size == 24
assert _COPY.size + CLAIMS_MAX * _CLAIM.size <= GROUP_COPY_SIZE
assert COPIES_OFFSET % SECTOR == CONSUMER_COPY_SIZE % SECTOR == GROUP_COPY_SIZE % SECTOR == 0


@dataclass(frozen=True, slots=True)
class Header:
    """What a file is, written once."""

    kind: int
    log_uuid: uuid.UUID
    file_id: int
    created: int


@dataclass(slots=True)
class Claim:
    """Numbers [at, stop) that were handed to a member of a group and are not committed."""

    at: int
    stop: int
    member: int


@dataclass(slots=True)
class Place:
    """How far a consumer or group is: everything below `seq` was processed.

    `next` is the first number that no member of a group was handed; of a consumer it is `seq`. The rest is
    what the log was like when this was stored: `epoch`, the `incarnation` of CONTROL, and what was `durable`.
    """

    turn: int
    seq: int
    next: int
    durable: int
    incarnation: int
    epoch: int
    claims: list[Claim]

    def moved(self, **changes: object) -> Place:
        """The next one, with other values."""
        return dataclasses.replace(self, turn=self.turn + 1, **changes)  # type: ignore[arg-type]


def checked_name(name: str) -> str:
    """A consumer's name, when it may be one. Raises TypeError, ValueError."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a consumer must be a str, not {type(name).__name__}")
    if not 1 <= len(name) <= NAME_LENGTH_MAX or not _NAME.fullmatch(name):
        raise ValueError(
            f"{name[: NAME_LENGTH_MAX + 1]!r} cannot name a consumer: 1 to {NAME_LENGTH_MAX} letters, "
            "digits, '_', '-' and '.' of ASCII, and neither '-' nor '.' first"
        )
    return name


def name_of(file_name: str) -> str | None:
    """Whose file has this name; None when it is none of ours."""
    name = file_name.removesuffix(SUFFIX)
    return name if name != file_name and len(name) <= NAME_LENGTH_MAX and _NAME.fullmatch(name) else None


def is_ours(file_name: str) -> bool:
    """Whether a file of this name is of a consumer, or one half made: what goes when the log is erased."""
    return name_of(file_name.removesuffix(".tmp")) is not None


def copy_size(kind: int) -> int:
    """Bytes between the copies in a file of this kind."""
    return CONSUMER_COPY_SIZE if kind == KIND_CONSUMER else GROUP_COPY_SIZE


def file_size(kind: int) -> int:
    """Bytes of a file of this kind."""
    return COPIES_OFFSET + COPIES * copy_size(kind)


def pack_header(header: Header) -> bytes:
    """The bytes of a header."""
    body = _HEADER.pack(
        MAGIC, VERSION, header.kind, header.log_uuid.bytes, header.file_id, header.created, 0, 0
    )[:-_SUM_SIZE]
    return body + xxh3_64(body).to_bytes(_SUM_SIZE, "little")


def unpack_header(data: bytes, path: object) -> Header:
    """The header that these bytes are. Raises FormatError, CorruptionError."""
    if len(data) < _HEADER.size:
        raise CorruptionError(f"the file of a consumer has {len(data)} bytes: it was cut; {_REMEDY}", path)
    check_header(data[: _HEADER.size], MAGIC, VERSION, "the file of a consumer", path, remedy=_REMEDY)
    _, _, kind, log_uuid, file_id, created, _, _ = _HEADER.unpack(data[: _HEADER.size])
    if kind not in (KIND_CONSUMER, KIND_GROUP):
        raise FormatError(f"the file of a consumer is of kind {kind}, which this code does not know", path)
    return Header(kind, uuid.UUID(bytes=log_uuid), file_id, created)


def pack_copy(place: Place, seed: int) -> bytes:
    """The bytes of a copy, whose seed is the file's id XOR the number of the copy."""
    claims = b"".join(_CLAIM.pack(each.at, each.stop, each.member, 0) for each in place.claims)
    body = _COPY.pack(
        place.turn,
        place.seq,
        place.next,
        place.durable,
        place.incarnation,
        place.epoch,
        len(place.claims),
        0,
        0,
    )[:-_SUM_SIZE]
    return body + xxh3_64(body + claims, seed).to_bytes(_SUM_SIZE, "little") + claims


def unpack_copy(data: bytes, seed: int) -> Place | None:
    """What a copy says; None for one that is torn, damaged or was never written."""
    turn, seq, following, durable, incarnation, epoch, count, _, checksum = _COPY.unpack(data[: _COPY.size])
    end = _COPY.size + count * _CLAIM.size
    if count > CLAIMS_MAX or end > len(data) or turn == 0:
        return None
    if xxh3_64(data[: _COPY.size - _SUM_SIZE] + data[_COPY.size : end], seed) != checksum:
        return None
    claims = [Claim(*fields[:3]) for fields in _CLAIM.iter_unpack(data[_COPY.size : end])]
    place = Place(turn, seq, following, durable, incarnation, epoch, claims)
    return place if _makes_sense(place) else None


def _makes_sense(place: Place) -> bool:
    # A checksum finds accidents only. Whoever made this one up must not be able to have us run in circles.
    at = place.seq
    for claim in sorted(place.claims, key=lambda each: each.at):
        if not at <= claim.at < claim.stop or not (claim.member < MEMBERS_MAX or claim.member == NOBODY):
            return False
        at = claim.stop
    return at <= place.next < 1 << 63


_REMEDY = "remove the consumer, or restore the file from a backup"
