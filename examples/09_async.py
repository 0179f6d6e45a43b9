"""Write and flush from async code without holding up the event loop.

A flush waits for the disk. Each call that may wait has a twin that ends in ``_async``; the call runs in a
worker thread while the event loop goes on. The twins run on asyncio, trio, and whatever else anyio serves.

Needs the package anyio: ``pip install mmapkv[async]``.

Prints::

    on the device: record 0
    on the device: record 1
    on the device: record 2
    the event loop meanwhile: ... turns
    copied by ...: the same bytes: True
    left to flush: 0
"""

import asyncio
import tempfile
from pathlib import Path

from mmapio import aio

RECORD_BYTES = 4096


async def turn(turns: list[None]) -> None:
    """Whatever else the program does: it gets its turn all the time."""
    while True:
        turns.append(None)
        await asyncio.sleep(0)


async def main() -> None:
    turns: list[None] = []
    with tempfile.TemporaryDirectory() as directory:
        path, copy = Path(directory, "records"), Path(directory, "copy")
        ticker = asyncio.create_task(turn(turns))

        async with await aio.create_mmap_async(path, 16 * RECORD_BYTES) as mapped:
            for number in range(3):
                # Written and durable when it returns, whatever the flush policy.
                await mapped.update_region_async(number * RECORD_BYTES, b"record %d" % number)
                print("on the device: record", number)

            # Several at a time: each waits in a thread of its own.
            mapped[0:6] = b"RECORD"
            await asyncio.gather(mapped.flush_range_async(0, RECORD_BYTES), mapped.flush_async())

            ticker.cancel()
            print("the event loop meanwhile:", len(turns), "turns")

            how = await aio.copy_mmap_async(path, copy)
            print(f"copied by {how}: the same bytes:", mapped.as_slice() == copy.read_bytes())
            print("left to flush:", mapped.pending_bytes)


if __name__ == "__main__":
    asyncio.run(main())
