"""A store in async code: durable writes that the event loop does not wait for, and tasks woken by changes.

Calls that take microseconds are done at once; what may wait for the disk, or goes through a whole store, is
done in a thread. Runs on asyncio, trio, and whatever else anyio serves.

Needs the package anyio: ``pip install mmapkv[async]``.

Prints::

    the listener heard of b'order/0', b'order/1', b'order/2'
    durable: 3 of 3, and the event loop had ... turns meanwhile
    orders: [b'order/0', b'order/1', b'order/2']
    a put that was cancelled is whole, or nothing: True
"""

import asyncio
import tempfile
from pathlib import Path

from mmapkv import AsyncKVStore


async def turn(turns: list[None]) -> None:
    """Whatever else the program does: it gets its turn all the time."""
    while True:
        turns.append(None)
        await asyncio.sleep(0)


async def listen(kv: AsyncKVStore, heard: list[bytes]) -> None:
    """Asleep until there is a change, of this process or another one."""
    async for change in kv.changes(None, follow=True):
        heard.append(change.key)
        if len(heard) == 3:
            return


async def main() -> None:
    turns: list[None] = []
    heard: list[bytes] = []
    with tempfile.TemporaryDirectory() as directory:
        async with await AsyncKVStore.open(Path(directory, "orders")) as kv:
            listener = asyncio.create_task(listen(kv, heard))
            ticker = asyncio.create_task(turn(turns))
            await asyncio.sleep(0)

            # On the device when they return; one sync may serve several that wait.
            await asyncio.gather(*(kv.put(f"order/{n}", "new", durable=True) for n in range(3)))
            await listener
            ticker.cancel()
            print("the listener heard of", ", ".join(map(repr, sorted(heard))))
            durable = (await kv.stats())["durable"]
            print(f"durable: {durable} of 3, and the event loop had {len(turns)} turns meanwhile")

            print("orders:", [key async for key in kv.scan("order/", values=False)])

            # What was begun in a thread ends before its task does.
            late = asyncio.create_task(kv.put("order/3", "late", durable=True))
            await asyncio.sleep(0)
            late.cancel()
            await asyncio.wait([late])
            left = await kv.get("order/3")
            print("a put that was cancelled is whole, or nothing:", left in (None, b"late"))


if __name__ == "__main__":
    asyncio.run(main())
