"""Somebody cuts a file that is mapped. Elsewhere the process dies by SIGBUS; here a call raises.

The pages beyond the new end are gone, and the kernel signals whoever touches one. Inside a call of mmapio the
signal becomes ``MappingFault``. Below a view for reading that other code looks at, the page is replaced by
zeros, and the next call on the handle raises: ask it before you believe what was computed meanwhile.
``refresh()`` maps what is there now.

Prints::

    before: b'page 3'
    a call that reads what was cut: MappingFault
    the same handle, until it is refreshed: MappingFault
    refreshed, 1 page: b'page 0'
    crc32 looked at pages that were cut, and went on
    the next call tells of it: MappingFault
"""

import os
import tempfile
import zlib
from pathlib import Path

from mmapio import PAGE_SIZE, MappingFault, MemoryMappedFile

PAGES = 4


def fill(path: Path) -> None:
    path.write_bytes(b"".join((b"page %d" % page).ljust(PAGE_SIZE, b".") for page in range(PAGES)))


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "shared")
        fill(path)
        with MemoryMappedFile.open_ro(path) as mapped:
            last = (PAGES - 1) * PAGE_SIZE
            print("before:", mapped[last : last + 6])

            # Another program does this, without a word to us.
            os.truncate(path, PAGE_SIZE)
            try:
                mapped.read_bytes(last, 6)
            except MappingFault as error:
                print("a call that reads what was cut:", type(error).__name__)
            try:
                mapped.read_bytes(0, 6)
            except MappingFault as error:
                print("the same handle, until it is refreshed:", type(error).__name__)

            length = mapped.refresh()
            print(f"refreshed, {length // PAGE_SIZE} page:", mapped[:6])

        # Code that is not ours, and looks at memory that we mapped.
        fill(path)
        with MemoryMappedFile.open_ro(path) as mapped:
            view = mapped.as_slice()
            os.truncate(path, PAGE_SIZE)
            zlib.crc32(view)
            print("crc32 looked at pages that were cut, and went on")
            try:
                len(mapped)
            except MappingFault as error:
                print("the next call tells of it:", type(error).__name__)


if __name__ == "__main__":
    main()
