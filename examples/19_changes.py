"""Being told of every change of a store: a cache that another process keeps fresh, and a copy that goes on.

The changes are the store's own log, so there is nothing to switch on, and they cost a writer nothing. A
change has a number; whoever remembers the next one goes on there, on whatever day.

Prints::

    0 put b'apple' b'red'
    1 put b'pear' b'green'
    2 put b'apple' b'yellow', before that number 0
    3 delete b'pear', before that number 1
    the copy goes on at 4: {b'apple': b'yellow', b'plum': b'blue'}
    from another process: put b'fig'
    from another process: put b'apple'
    from another process: delete b'plum'
    the copy is the store: True
"""

import multiprocessing
import tempfile
from pathlib import Path

from mmapkv import Change, FlushPolicy, KVStore


def apply(copy: dict[bytes, bytes], change: Change) -> None:
    """What a change does to a copy of the store."""
    if change.kind == "clear":
        copy.clear()
    elif change.value is None:
        copy.pop(change.key, None)
    else:
        copy[change.key] = change.value


def another_process(path: Path) -> None:
    """Writes three times."""
    with KVStore.open(path) as kv:
        kv["fig"] = "violet"
        kv["apple"] = "brown"
        del kv["plum"]


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "fruit")
        copy: dict[bytes, bytes] = {}
        with KVStore.open(path, flush_policy=FlushPolicy.MANUAL) as kv:
            kv.update({"apple": "red", "pear": "green"})
            kv["apple"] = "yellow"
            del kv["pear"]
            changes = kv.changes()
            for change in changes:
                apply(copy, change)
                value = "" if change.value is None else f" {change.value!r}"
                before = "" if change.previous is None else f", before that number {change.previous}"
                print(f"{change.seq} {change.kind} {change.key!r}{value}{before}")

            kv["plum"] = "blue"
            since = changes.seq
            changes = kv.changes(since)
            for change in changes:
                apply(copy, change)
            # Had a compaction removed deletions, it would be TooOld: then a copy is made anew.
            print(f"the copy goes on at {since}: {copy}")

        with KVStore.open(path, "r") as kv:
            following = kv.changes(changes.seq, follow=True)
            writer = multiprocessing.get_context("spawn").Process(target=another_process, args=(path,))
            writer.start()
            for change in following:  # asleep until the other process writes
                apply(copy, change)
                print(f"from another process: {change.kind} {change.key!r}")
                if change.kind == "delete":
                    break
            writer.join()
            print("the copy is the store:", copy == dict(kv.items()))


if __name__ == "__main__":
    main()
