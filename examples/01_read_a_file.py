"""Read a file as memory: by slices that copy, by views that do not, and as a file object.

A mapped file is brought in page by page, as it is looked at. ``m[a:b]`` and ``m[i]`` are what they are of
``bytes``. A view, ``m.as_slice(offset, length)``, costs the same whatever its length, for it copies nothing;
whatever takes a buffer takes it. Give a path to read another file than this one.

Prints::

    ... bytes, the first line:
    Read a file as memory: by slices that copy, by views that do not, and as a file object.
    the same bytes, copied and not: True
    ... lines, the longest has ... bytes
    a view beyond the end: OutOfBounds
"""

import io
import sys

import mmapio


def main(path: str) -> None:
    with mmapio.MemoryMappedFile.open_ro(path) as mapped:
        # A copy, as of bytes. A slice may reach outside, as of bytes.
        beginning = mapped[:4096]
        first = beginning.partition(b"\n")[0].strip(b'"')
        print(f"{len(mapped)} bytes, the first line:")
        print(first.decode(errors="replace"))

        # A view: no copy, however long it is. It compares with any buffer by content.
        view = mapped.as_slice(0, len(beginning))
        print("the same bytes, copied and not:", view == beginning)

        # For code that wants a file. Each reader has a position of its own, and none makes a system call.
        lines = [len(line) for line in io.BufferedReader(mapped.reader())]
        print(f"{len(lines)} lines, the longest has {max(lines, default=0)} bytes")

        # Only m[a:b] is lenient. Everything else refuses what does not lie inside the file.
        try:
            mapped.as_slice(len(mapped), 1)
        except mmapio.OutOfBounds as error:
            print("a view beyond the end:", type(error).__name__)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else __file__)
