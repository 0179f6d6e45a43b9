"""How a binary file of ours begins, whichever version wrote it, and whether what follows may be read.

First come eight bytes of magic and four of the version; the header ends with its checksum.
"""

from __future__ import annotations

from mmaplog.checksum import xxh3_64
from mmaplog.errors import CorruptionError, FormatError

#: A header that is damaged may say anything. A version that is meant is none above this.
VERSION_MAX = 255

_VERSION_AT = 8
_BODY_AT = 12
_SUM_SIZE = 8


def check(
    raw: bytes, magic: int, version: int, what: str, path: object, *, seed: int = 0, remedy: str = ""
) -> None:
    """Raise what is wrong with a header, of which `raw` is all.

    `what` is such a file in words, and `remedy` what to do about one that is none, or damaged. Raises
    FormatError for another kind, version or byte order, CorruptionError for damage: that of the version, too.
    """
    refuse_swapped(raw, magic, path)
    remedy = f"; {remedy}" if remedy else ""
    if int.from_bytes(raw[:_VERSION_AT], "little") != magic:
        raise FormatError(f"not {what}: it begins with {raw[:_VERSION_AT]!r}{remedy}", path)
    found = int.from_bytes(raw[_VERSION_AT:_BODY_AT], "little")
    if found == version:
        if not _is_sealed(raw, seed):
            raise CorruptionError(f"the header does not match its checksum{remedy}", path)
        return
    # Another version may have its checksum elsewhere. But where nothing else is wrong, ours was the version.
    ours = raw[:_VERSION_AT] + version.to_bytes(_BODY_AT - _VERSION_AT, "little") + raw[_BODY_AT:]
    if not _is_sealed(raw, seed) and (_is_sealed(ours, seed) or not version < found <= VERSION_MAX):
        raise CorruptionError(f"the version in the header is damaged: it says {found}{remedy}", path)
    raise FormatError(f"{what} of version {found}, this code knows {version}; upgrade mmapkv", path)


def refuse_swapped(raw: bytes, magic: int, path: object) -> None:
    """Raise FormatError for a file that begins with this magic the other way round."""
    if int.from_bytes(raw[:_VERSION_AT], "big") == magic:
        raise FormatError(
            "was written on a machine of another byte order; open it there, and take over what mmapkv dump "
            "or mmaplog export writes",
            path,
        )


def _is_sealed(raw: bytes, seed: int) -> bool:
    return xxh3_64(raw[:-_SUM_SIZE], seed) == int.from_bytes(raw[-_SUM_SIZE:], "little")
