"""Samples for workers, as a data loader wants them: a handle is handed over, and each worker has its own.

A handle pickles to the path of its store. Unpickled, in a worker that was spawned, it is one for reading. A
worker that was forked reads through the handle that it inherited. Nobody needs to open anything, and the
parent may go on writing.

Prints::

    spawned workers read 1000 samples, in the order asked for: True
    forked workers read 1000 samples, in the order asked for: True
    a forked child that writes: Closed
    the parent writes on: 1001 samples
"""

import multiprocessing
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mmapkv import FlushPolicy, KVStore


class Samples(Sequence[int]):
    """A data set, by number."""

    def __init__(self, kv: KVStore) -> None:
        self.kv = kv

    def __len__(self) -> int:
        return len(self.kv)

    def __getitem__(self, index):  # an int, or a slice in other data sets
        return int(self.kv[b"%d" % index])


def begin(samples: Samples) -> None:
    global mine
    mine = samples


def fetch(index: int) -> int:
    return mine[index]


def write(index: int) -> str:
    try:
        mine.kv[b"%d" % index] = b"0"
    except OSError as error:
        return type(error).__name__
    return "written"


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "samples")
        # A policy without a thread of its own, since this process forks.
        with KVStore.open(path, flush_policy=FlushPolicy.MANUAL) as kv:
            kv.update({b"%d" % number: b"%d" % (number * number) for number in range(1000)})
            order = [number * 7 % 1000 for number in range(1000)]
            wanted = [number * number for number in order]
            for method in ("spawn", "fork"):
                with multiprocessing.get_context(method).Pool(2, begin, (Samples(kv),)) as pool:
                    found = pool.map(fetch, order, chunksize=50)
                    print("forked" if method == "fork" else "spawned", end="")
                    print(f" workers read {len(found)} samples, in the order asked for:", found == wanted)
                    if method == "fork":
                        print("a forked child that writes:", pool.apply(write, (0,)))
            kv[b"1000"] = b"1000000"
            print("the parent writes on:", len(kv), "samples")


if __name__ == "__main__":
    main()
