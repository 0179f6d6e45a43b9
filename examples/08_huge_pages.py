"""Ask for huge pages, and see what came of it.

A page of 2 MiB saves the processor 511 look-ups of addresses. Whether there are any is for the kernel and the
file system to say, so a wish is never an error: the tier that was reached is what ``huge_pages`` reports.

    HUGETLB   the file lies on hugetlbfs, every page is huge
    MAPPED    the kernel has mapped at least one huge page
    ADVISED   it was asked and agreed, and has not mapped one (yet)
    NONE      ordinary pages

Prints::

    the kernel's switches: {...}
    without asking: ...
    asked, before the first touch: ...
    after the pages were brought in: ...
    in memory: 64 MiB of 64
"""

import tempfile
from pathlib import Path

from mmapio import MemoryMappedFile, features

MIB = 1 << 20
SIZE_BYTES = 64 * MIB


def main() -> None:
    print("the kernel's switches:", features()["huge_pages"])
    with tempfile.TemporaryDirectory() as directory:
        with MemoryMappedFile.create_rw(Path(directory, "ordinary"), SIZE_BYTES) as mapped:
            print("without asking:", mapped.huge_pages.name)

        with MemoryMappedFile.create_rw(Path(directory, "huge"), SIZE_BYTES, huge_pages=True) as mapped:
            print("asked, before the first touch:", mapped.huge_pages.name)
            # All at once, and by several threads, instead of one page at each first store.
            mapped.touch_pages(write=True)
            print("after the pages were brought in:", mapped.huge_pages.name)
            print(f"in memory: {mapped.resident() // MIB} MiB of {SIZE_BYTES // MIB}")


if __name__ == "__main__":
    main()
