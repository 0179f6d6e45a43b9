"""A reader that found the end of the log by itself, and the writer that comes after it."""

from __future__ import annotations

from pathlib import Path

from mmapio import FlushPolicy
from mmaplog import Log
from tests.unit.mmaplog.segment_file import segment_paths


def test_it_sees_what_is_written_later(tmp_path: Path) -> None:
    """A power cut had torn a batch at the start of a segment, which a reader then left out of the log.

    The writer took what was whole of the batch for records beyond the end, did not believe the reader's
    CONTROL and made another. The reader went by the old one and never saw a record again.
    """
    path = tmp_path / "log"
    with Log.open(path, segment_bytes=65536, flush_policy=FlushPolicy.MANUAL) as log:
        log.append(b"first")
        log.flush()
        log.append_many([b"x" * 30_000] * 3, atomic=True)
    torn = segment_paths(path)[-1]
    content = bytearray(torn.read_bytes())
    content[512:2560] = bytes(2048)  # neither a mark nor a footer
    content[80_000:] = bytes(len(content) - 80_000)
    torn.write_bytes(content)
    first = segment_paths(path)[0]
    content = bytearray(first.read_bytes())
    content[1536:2560] = bytes(1024)
    first.write_bytes(content)
    (path / "CONTROL").unlink()
    with Log.open(path, "r") as reader:
        assert [bytes(entry.payload) for entry in reader.replay()] == [b"first"]
        with Log.open(path, "w", flush_policy=FlushPolicy.MANUAL) as log:
            log.append(b"second")
            assert [bytes(entry.payload) for entry in reader.replay()] == [b"first", b"second"]
