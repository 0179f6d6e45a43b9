"""numpy arrays that are the file: written without a copy, read without a copy, alive after the handle.

An array made of a view holds the view, and the view holds the mapping. So the array stays valid when the
handle is closed, the file is grown, or its name is removed. Its numbers are whatever the file holds.

Needs the package numpy: ``pip install mmapkv[numpy]``.

Prints::

    a million numbers written through an array
    their sum, read through another: 499999500000.0
    written to the file while the array was out: 7.0
    after the handle was closed and the file removed: 499999500000.0
    an array of a view for reading refuses stores: ValueError
"""

import struct
import tempfile
from pathlib import Path

import numpy as np

from mmapio import MemoryMappedFile

COUNT = 1_000_000


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "numbers")
        with MemoryMappedFile.create_rw(path, 8 * COUNT) as mapped:
            with mapped.as_slice_mut() as view:
                numbers = np.frombuffer(view, dtype="<f8")
                numbers[:] = np.arange(COUNT)
                # The view is on the books until the last array made of it has gone.
                del numbers
            print("a million numbers written through an array")

            numbers = np.frombuffer(mapped.as_slice(), dtype="<f8")
            print("their sum, read through another:", numbers.sum())

            # The array is the file, not a copy of it.
            mapped.update_region(0, struct.pack("<d", 7))
            print("written to the file while the array was out:", numbers[0])
            mapped.update_region(0, struct.pack("<d", 0))

        path.unlink()
        print("after the handle was closed and the file removed:", numbers.sum())

        try:
            numbers[0] = 1
        except ValueError as error:
            print("an array of a view for reading refuses stores:", type(error).__name__)


if __name__ == "__main__":
    main()
