"""In place of a module of dbm, and below shelve: nothing else in the program changes.

Prints::

    b'red', keys are a list: [b'apple', b'pear']
    a walk by keys: b'apple' b'pear'
    it is a database of mmapkv.dbm
    the shelf holds {'scores': [1, 2, 3], 'who': {'ann': (5, 'x')}}
"""

import shelve
import tempfile
from pathlib import Path

from mmapkv import KVStore, dbm


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "fruit")
        with dbm.open(path, "c") as db:
            db["apple"] = "red"
            db[b"pear"] = b"green"
            print(f"{db['apple']!r}, keys are a list:", db.keys())
            print("a walk by keys:", end="")
            key = db.firstkey()
            while key is not None:
                print("", key, end="")
                key = db.nextkey(key)
            print()
        print("it is a database of", dbm.whichdb(path))

        # A shelf pickles its values. To unpickle is to run code: open shelves of your own only.
        shelf_path = Path(directory, "shelf")
        with shelve.Shelf(KVStore.open(shelf_path), writeback=True) as shelf:
            shelf["scores"] = [1, 2]
            shelf["scores"].append(3)
            shelf["who"] = {"ann": (5, "x")}
        with shelve.Shelf(KVStore.open(shelf_path, "r")) as shelf:
            print("the shelf holds", dict(shelf))


if __name__ == "__main__":
    main()
