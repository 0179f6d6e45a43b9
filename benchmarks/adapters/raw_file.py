"""What the device costs at the least: `pwrite` and `fdatasync`, and no store at all."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import ClassVar

from ..dataset import KEY_SIZE, VALUE_SIZE
from .file_log import HEADER, framed, frames
from .rival import Commits, Form, Pair, Rival, Session, Spellings

FRAME_BYTES = HEADER.size + KEY_SIZE + VALUE_SIZE
FILE_BYTES_MAX = 128 << 20


class RawFile(Rival):
    """Key and value, behind their length and CRC-32, one after the other, `os.pwrite` and `os.fdatasync`.

    Into a file whose blocks were all written and synced before, so that the device is given the data and
    nothing else. Nothing can be found in it without reading all of it.
    """

    name = "pwrite"
    settings = "os.pwrite and os.fdatasync, all blocks written before, CRC-32"
    spellings: ClassVar[Spellings] = {
        "durable": {Form.CALL: "pwrite(fd, framed(k + v), at); fdatasync(fd)"},
        "commit": {Form.CALL: "pwrite(fd, join(framed(k + v)), at); fdatasync(fd)"},
    }

    def __init__(self, keys_expected: int, bytes_expected: int, *, durable: bool = False) -> None:
        super().__init__(keys_expected, bytes_expected, durable=durable)
        self._path: Path | None = None
        self._fd = -1
        self._end = 0

    @classmethod
    def version(cls) -> str:
        return f"{platform.python_implementation()} {platform.python_version()}"

    def open(self, directory: Path) -> None:
        self._path = directory / "records"
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.write(self._fd, bytes(min(FILE_BYTES_MAX, 4 * FRAME_BYTES * self.keys_expected)))
        os.fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def flush(self) -> None:
        os.fdatasync(self._fd)

    def count(self) -> int:
        return len(self._pairs())

    @contextmanager
    def reading(self) -> Iterator[Session]:
        pairs = self._pairs()
        yield Session(pairs.get, pairs.__setitem__, pairs.__delitem__, pairs.items)

    def writing(self) -> AbstractContextManager[Session]:
        return self.reading()

    def commits(self) -> Commits:
        fd = self._fd

        def put(key: bytes, value: bytes) -> None:
            self._end += os.pwrite(fd, framed(key + value), self._end)
            os.fdatasync(fd)

        def put_many(pairs: Sequence[Pair]) -> None:
            joined = b"".join([framed(key + value) for key, value in pairs])
            self._end += os.pwrite(fd, joined, self._end)
            os.fdatasync(fd)

        return Commits(put, put_many)

    def _pairs(self) -> dict[bytes, bytes]:
        assert self._path is not None, "open() comes first"
        return {record[:KEY_SIZE]: record[KEY_SIZE:] for record in frames(self._path)}
