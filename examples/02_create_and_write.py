"""Create a file, write to it in three ways, and make it durable.

``create_rw`` allocates every block, so that no later store can meet a full disk. What is written is seen at
once by every process that maps or reads the file, and survives the end of this one. ``flush()`` makes it
survive a power cut as well.

Prints::

    4096 bytes, all zero: True
    bytes to be flushed: 26
    after the flush: 0
    another handle reads: b'hello, memory' 42 (7, 3.5)
    and may not write: InvalidMode
"""

import struct
import tempfile
from pathlib import Path

import mmapio

POINT = struct.Struct("<Id")


def write(path: Path) -> None:
    with mmapio.MemoryMappedFile.create_rw(path, 4096) as mapped:
        print(f"{len(mapped)} bytes, all zero:", not any(mapped[:]))

        # The plain way: any buffer, at an offset.
        mapped.update_region(0, b"hello, ")
        # As of a bytearray that keeps its length.
        mapped[7:13] = b"memory"
        mapped[100] = 42
        # A writable view, for code that fills buffers: struct, readinto, numpy.
        with mapped.as_slice_mut(128, POINT.size) as view:
            view[:] = bytes(POINT.size)
            POINT.pack_into(view, 0, 7, 3.5)

        # Every way of writing is on the books; a view with its whole length.
        print("bytes to be flushed:", mapped.pending_bytes)
        mapped.flush()
        print("after the flush:", mapped.pending_bytes)
    # Leaving the block closes, and so flushes what there is to flush, unless the policy is NEVER.


def read(path: Path) -> None:
    with mmapio.MemoryMappedFile.open_ro(path) as mapped:
        print("another handle reads:", mapped[:13], mapped[100], POINT.unpack_from(mapped.as_slice(128)))
        try:
            mapped[0] = 1
        except mmapio.InvalidMode as error:
            print("and may not write:", type(error).__name__)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "greeting")
        write(path)
        read(path)


if __name__ == "__main__":
    main()
