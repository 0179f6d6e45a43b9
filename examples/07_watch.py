"""Be told when a file changes, by whomever and by whatever means.

The callback runs in a thread of the watch's own. Stores through a mapping count too, though the system
notifies nobody of them: the file's time of change is compared ten times a second. What a report says is what
is known: a place where the length changed, none where bytes did.

Needs the package watchfiles: ``pip install mmapkv[watch]``.

Prints::

    appended: MODIFIED, offset 4096, 6 bytes
    stored through a mapping: MODIFIED, somewhere
    cut: MODIFIED, offset 100, 0 bytes
    permissions: METADATA
    removed: REMOVED
    watching: False
"""

import queue
import tempfile
from pathlib import Path

from mmapio import ChangeEvent, ChangeKind, MemoryMappedFile

TIMEOUT_SECONDS = 60


def described(event: ChangeEvent) -> str:
    if event.kind is not ChangeKind.MODIFIED:
        return event.kind.name
    place = "somewhere" if event.offset is None else f"offset {event.offset}, {event.len} bytes"
    return f"{event.kind.name}, {place}"


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "watched")
        with MemoryMappedFile.create_rw(path, 4096) as mapped:
            events: queue.Queue[ChangeEvent] = queue.Queue()
            with mapped.watch(events.put) as watch:
                with path.open("ab") as file:
                    file.write(b"append")
                print("appended:", described(events.get(timeout=TIMEOUT_SECONDS)))

                mapped[0] = 1
                print("stored through a mapping:", described(events.get(timeout=TIMEOUT_SECONDS)))

                mapped.resize(100)
                print("cut:", described(events.get(timeout=TIMEOUT_SECONDS)))

                path.chmod(0o400)
                print("permissions:", described(events.get(timeout=TIMEOUT_SECONDS)))

                path.unlink()
                print("removed:", described(events.get(timeout=TIMEOUT_SECONDS)))
            print("watching:", watch.is_active)


if __name__ == "__main__":
    main()
