"""Keys in order: prefixes, ranges, both directions, seeking, and pages.

A store keeps its keys in the order of the last change. The first scan sorts them, and keeps them sorted in
memory from then on; ``ordered=True`` has that done when the store is opened. Every scan is of the moment at
which it began, whatever is written meanwhile.

Prints::

    of user 7: [b'user/0007/mail', b'user/0007/name']
    a range: [b'user/0003/mail', b'user/0003/name', b'user/0004/mail']
    the last two: [b'user/0009/name', b'user/0009/mail']
    first at or after 'user/0004/x': b'user/0005/mail'
    last below 'user/0004': b'user/0003/name'
    page: [b'user/0000/mail', b'user/0000/name', b'user/0001/mail', b'user/0001/name']
    page: [b'user/0002/mail', b'user/0002/name', b'user/0003/mail', b'user/0003/name']
    deleted while scanned: 20, left: 0
"""

import random
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from mmapkv import KVStore


def pages(kv: KVStore, prefix: str, size: int) -> Iterator[list[bytes]]:
    """Pages that can be asked for on different days: each begins behind the last key of the one before."""
    last = None
    while True:
        # There is no key between a key and itself with a zero byte behind.
        start = None if last is None else last + b"\x00"
        page = list(islice(kv.scan(prefix, start=start, values=False), size))
        if not page:
            return
        yield page
        last = page[-1]


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        KVStore.open(Path(directory, "users"), ordered=True) as kv,
    ):
        numbers = list(range(10))
        random.shuffle(numbers)
        for number in numbers:
            kv[f"user/{number:04}/name"] = f"name {number}"
            kv[f"user/{number:04}/mail"] = f"{number}@example.org"

        print("of user 7:", [key for key, value in kv.scan("user/0007/")])
        print("a range:", list(kv.scan(start="user/0003", stop="user/0004/n", values=False)))
        print("the last two:", list(islice(kv.scan(reverse=True, values=False), 2)))

        # Seeking is the first step of a scan; None where there is no such key.
        print("first at or after 'user/0004/x':", next(kv.scan(start="user/0004/x", values=False), None))
        print("last below 'user/0004':", next(kv.scan(stop="user/0004", reverse=True, values=False), None))

        for page in islice(pages(kv, "user/", 4), 2):
            print("page:", page)

        deleted = 0
        for key in kv.scan("user/", values=False):
            del kv[key]
            deleted += 1
        print(f"deleted while scanned: {deleted}, left: {len(kv)}")


if __name__ == "__main__":
    main()
