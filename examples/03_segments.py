"""A table of records in a file that grows and shrinks, by segments that are looked up at each use.

A view points at memory, and so holds the file at its length: ``resize`` downward waits for it. A segment
holds an offset and a length, no memory. It stands in nobody's way, and says when its range is gone.

Prints::

    3 records: ada grace edsger
    the third after the file was cut: valid is False, OutOfBounds
    and after it grew again: b'' (what was cut off comes back as zeros)
    a view stands in the way of a cut: ResizeFailed
    once it is gone: 64 bytes
"""

import tempfile
from pathlib import Path

import mmapio

RECORD_BYTES = 64


def record(mapped: mmapio.MemoryMappedFile, index: int) -> mmapio.SegmentMut:
    return mmapio.SegmentMut(mapped, index * RECORD_BYTES, RECORD_BYTES)


def name_of(segment: mmapio.Segment) -> bytes:
    return bytes(segment.as_slice()).rstrip(b"\0")


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "table")
        with mmapio.MemoryMappedFile.create_rw(path, 3 * RECORD_BYTES) as mapped:
            records = [record(mapped, index) for index in range(3)]
            for segment, name in zip(records, [b"ada", b"grace", b"edsger"], strict=True):
                segment.write(name)
            print("3 records:", *[name_of(segment).decode() for segment in records])

            mapped.resize(2 * RECORD_BYTES)
            try:
                records[2].as_slice()
            except mmapio.OutOfBounds as error:
                valid = records[2].is_valid()
                print(f"the third after the file was cut: valid is {valid}, {type(error).__name__}")

            mapped.resize(3 * RECORD_BYTES)
            print(f"and after it grew again: {name_of(records[2])!r} (what was cut off comes back as zeros)")

            # A live view is memory that somebody may be looking at, so the file is not cut below it.
            view = records[1].as_slice()
            try:
                mapped.resize(RECORD_BYTES)
            except mmapio.ResizeFailed as error:
                print("a view stands in the way of a cut:", type(error).__name__)
            del view
            mapped.resize(RECORD_BYTES)
            print(f"once it is gone: {len(mapped)} bytes")


if __name__ == "__main__":
    main()
