"""Values that are objects: a codec makes bytes of them, and never runs what it reads.

Needs the package numpy: ``pip install mmapkv[numpy]``.

Prints::

    what was stored: b'{"name":"Ann","tags":["a","b"]}'
    what comes back: {'name': 'Ann', 'tags': ['a', 'b']}
    a set is refused, and nothing was written: True
    keys as str: ['ann']
    an array: [1.5 2.5] float64, without a copy: True
    10000 characters take less than 100 bytes: True
    a codec of one's own: 2024-02-29
"""

import datetime
import tempfile
from pathlib import Path

import numpy as np

from mmapkv import KVStore
from mmapkv.codecs import Compressed, Json, Numpy, Text


class Day:
    """A codec is an object with these two methods."""

    def encode(self, value: datetime.date) -> bytes:
        return value.isoformat().encode()

    def decode(self, data: bytes) -> datetime.date:
        return datetime.date.fromisoformat(data.decode())


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "store")
        with KVStore.open(path, codec=Json()) as people:
            people["ann"] = {"name": "Ann", "tags": ["a", "b"]}
            print("what was stored:", people.store["ann"])
            print("what comes back:", people["ann"])
            try:
                people["bob"] = {1, 2}
            except TypeError:
                print("a set is refused, and nothing was written:", "bob" not in people)

        with KVStore.open(path) as kv:
            print("keys as str:", list(kv.typed(Json(), keys=str)))

            # Parts of one store may each have a codec of their own.
            arrays = kv.namespace("arrays/").typed(Numpy())
            arrays["a"] = np.array([1.5, 2.5])
            found = arrays["a"]
            print(f"an array: {found} {found.dtype}, without a copy:", not found.flags.owndata)

            texts = kv.namespace("texts/").typed(Compressed(Text()))
            texts["long"] = "and so on " * 1000
            small = len(kv["texts/long"]) < 100
            print(f"{len(texts['long'])} characters take less than 100 bytes:", small)

            days = kv.namespace("days/").typed(Day())
            days["leap"] = datetime.date(2024, 2, 29)
            print("a codec of one's own:", days["leap"])


if __name__ == "__main__":
    main()
