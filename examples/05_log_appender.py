"""An append-only log in a few lines: bytes first, then the word that says where they end.

The writer copies a message behind the tail and only then moves the tail, with RELEASE. A reader, in any
process, loads the tail with ACQUIRE and looks no further: so it never sees half a message. The file grows
without moving, and the flush policy bounds what a power cut can take, here to 4 KiB of messages.

A power cut may also keep the tail and lose bytes before it, for pages reach the disk in any order. A real log
puts a checksum on every record and finds its own end; the package mmaplog does.

Prints::

    messages: 1000
    the last: b'message 999'
    the file grew from 4096 to 16384 bytes, and moved: False
    written since the last flush: ... bytes, less than 4096: True
    a reader that opened it before sees 1000 messages
"""

import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mmapio
from mmapio import FlushPolicy, MemoryMappedFile, Ordering

BYTES_START = 4096
TAIL = 0
FIRST = 64
LENGTH = struct.Struct("<I")


class Appender:
    """The one writer of a log."""

    def __init__(self, path: Path) -> None:
        self.mapped = MemoryMappedFile.create_rw(
            path, BYTES_START, flush_policy=FlushPolicy.every_bytes(4096)
        )
        self._tail = self.mapped.atomic_u64(TAIL)
        self._tail.store(FIRST)

    def append(self, message: bytes) -> None:
        tail = self._tail.load(Ordering.RELAXED)
        end = tail + LENGTH.size + len(message)
        while end > len(self.mapped):
            self.mapped.resize(2 * len(self.mapped))
        self.mapped.update_region(tail, LENGTH.pack(len(message)) + message)
        # Whoever sees the new tail sees the bytes before it.
        self._tail.store(end, Ordering.RELEASE)


def messages(mapped: MemoryMappedFile) -> Iterator[bytes]:
    """What the log holds, seen through any handle."""
    end = mapped.atomic_u64(TAIL).load(Ordering.ACQUIRE)
    if end > len(mapped):
        mapped.refresh()  # the writer has made the file longer
    at = FIRST
    while at < end:
        (length,) = LENGTH.unpack(mapped.read_bytes(at, LENGTH.size))
        at += LENGTH.size
        yield mapped.read_bytes(at, length)
        at += length


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "log")
        log = Appender(path)
        with log.mapped as mapped, mmapio.MemoryMappedFile.open_ro(path) as reader:
            address = mapped.address
            for number in range(1000):
                log.append(f"message {number}".encode())
            found = list(messages(mapped))
            print("messages:", len(found))
            print("the last:", found[-1])
            print(
                f"the file grew from {BYTES_START} to {len(mapped)} bytes, and moved:",
                mapped.address != address,
            )
            pending = mapped.pending_bytes
            print(f"written since the last flush: {pending} bytes, less than 4096:", pending < 4096)
            print(f"a reader that opened it before sees {len(list(messages(reader)))} messages")


if __name__ == "__main__":
    main()
