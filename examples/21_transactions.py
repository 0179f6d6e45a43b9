"""Changes that come together: a batch is written whole or not at all, a transaction reads as if alone.

Prints::

    a batch: {b'alice': b'100', b'bob': b'0'}
    an error leaves all as it was: {b'alice': b'100', b'bob': b'0'}
    in the transaction: 70 and 30, others see 100 and 0
    conflict: somebody else changed what was read
    tried again: {b'alice': b'70', b'bob': b'35'}
    by four threads, 100 transfers: 105 in all
"""

import tempfile
import threading

from mmapkv import Conflict, FlushPolicy, KVStore, Transaction


def transfer(tx: Transaction, giver: str, taker: str, amount: int) -> None:
    tx[giver] = str(int(tx[giver]) - amount)
    tx[taker] = str(int(tx[taker]) + amount)


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        KVStore.open(directory, flush_policy=FlushPolicy.MANUAL) as kv,
    ):
        # A batch writes without looking: all of it is there for every process, or nothing, after a crash too.
        with kv.batch(durable=True) as batch:
            batch["alice"] = "100"
            batch["bob"] = "0"
        print("a batch:", dict(kv))

        try:
            with kv.batch() as batch:
                batch["alice"] = "0"
                raise ConnectionError("the bank does not answer")
        except ConnectionError:
            print("an error leaves all as it was:", dict(kv))

        # A transaction reads the store of its beginning, and its own changes. Nobody waits for it.
        try:
            with kv.transaction() as tx:
                transfer(tx, "alice", "bob", 30)
                print(f"in the transaction: {int(tx['alice'])} and {int(tx['bob'])}, ", end="")
                print(f"others see {int(kv['alice'])} and {int(kv['bob'])}")
                kv["bob"] = "5"
        except Conflict:
            print("conflict: somebody else changed what was read")

        # Who may be called more than once has that done by itself.
        kv.retry(lambda tx: transfer(tx, "alice", "bob", 30))
        print("tried again:", dict(kv))

        def give() -> None:
            for _ in range(25):
                kv.retry(lambda tx: transfer(tx, "alice", "bob", 1), attempts=1000)

        threads = [threading.Thread(target=give) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print("by four threads, 100 transfers:", sum(int(value) for value in kv.values()), "in all")


if __name__ == "__main__":
    main()
