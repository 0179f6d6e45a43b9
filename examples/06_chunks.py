"""Go through a file in pieces, without a copy: a checksum, and a change of every piece.

``chunks(n)`` gives views, for code that takes buffers, as hashlib does. ``chunks_mut(n).for_each_mut(f)``
hands writable views to a function, one after the other, each on the books before the next.
``chunks_owned(n)`` gives copies, for what must stay as it is while others write.

Prints::

    16 chunks of 64 KiB and one of 1 byte
    the checksum is that of the file: True
    pieces changed in place: 17
    the changed bytes are those of bytes.swapcase: True
"""

import hashlib
import tempfile
from pathlib import Path

import mmapio

CHUNK_BYTES = 64 << 10
CONTENT = (b"Chunk by chunk, " * (CHUNK_BYTES // 16)) * 16 + b"!"


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "text")
        path.write_bytes(CONTENT)
        with mmapio.MemoryMappedFile.open_rw(path) as mapped:
            digest = hashlib.sha256()
            sizes = []
            for chunk in mapped.chunks(CHUNK_BYTES):
                digest.update(chunk)
                sizes.append(len(chunk))
            print(f"{sizes.count(CHUNK_BYTES)} chunks of 64 KiB and one of {sizes[-1]} byte")
            print("the checksum is that of the file:", digest.digest() == hashlib.sha256(CONTENT).digest())

            changed = []

            def swap(offset: int, piece: mmapio.MappedSliceMut) -> None:
                piece[:] = piece.tobytes().swapcase()
                changed.append(offset)

            mapped.chunks_mut(CHUNK_BYTES).for_each_mut(swap)
            print("pieces changed in place:", len(changed))
        # Another look, by ordinary means.
        same = path.read_bytes() == CONTENT.swapcase()
        print("the changed bytes are those of bytes.swapcase:", same)


if __name__ == "__main__":
    main()
