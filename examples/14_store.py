"""A store is a dict that outlives the process, and that others read while it is written.

Prints::

    3 pairs, pears are b'green'
    after a walk that doubles every value: [b'redred', b'greengreen', b'yellowyellow']
    popped: b'redred', missing: None
    another process reads: b'greengreen'
    opened again: {b'pear': b'greengreen', b'banana': b'yellowyellow'}
    part of it: {b'ann': b'admin', b'bob': b'guest'} of 4 pairs
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from mmapkv import KVStore

READER = """
import sys
from mmapkv import KVStore
with KVStore.open(sys.argv[1], "r") as kv:
    print("another process reads:", kv["pear"])
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "fruit")
        with KVStore.open(path) as kv:
            # Keys and values are bytes; str is taken as UTF-8.
            kv["apple"] = "red"
            kv.update({"pear": "green", "banana": "yellow"})
            print(f"{len(kv)} pairs, pears are", kv["pear"])

            # A walk is over the store as it was when it began, so it may change meanwhile.
            for key, value in kv.items():
                kv[key] = value * 2
            print("after a walk that doubles every value:", list(kv.values()))
            print(f"popped: {kv.pop('apple')!r}, missing:", kv.get("apple"))

            # One process writes, any number read, live.
            done = subprocess.run(
                [sys.executable, "-c", READER, str(path)], check=True, capture_output=True, text=True
            )
            print(done.stdout, end="")

        with KVStore.open(path) as kv:
            print("opened again:", dict(kv))
            users = kv.namespace("users/")
            users.update({"ann": "admin", "bob": "guest"})
            print(f"part of it: {dict(users)} of {len(kv)} pairs")


if __name__ == "__main__":
    main()
