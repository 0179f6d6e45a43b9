"""The segment that compaction fills: it is written in pieces, and a record may be larger than one."""

from __future__ import annotations

import errno
import itertools
import random
import resource
from pathlib import Path

import pytest

from mmapio import _os
from mmaplog import Log
from mmaplog import manifest as manifest_file
from tests.unit.mmaplog.keeping import MANUAL, content, filled, left_over, opened

PIECE = 256 << 10
SEGMENT = 4 << 20
#: Of payloads: around a piece, and what makes several records fill one to the byte.
SIZES = [0, 1, 100, 5000, PIECE - 16, PIECE - 24, PIECE, PIECE + 1, PIECE // 2 - 16, 3 * PIECE]


@pytest.mark.parametrize("seed", range(4))
def test_records_of_any_size_are_copied(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with Log.open(tmp_path / "log", flush_policy=MANUAL, segment_bytes=SEGMENT) as log:
        model = {}
        for size in [*SIZES, *chance.choices(SIZES, k=60)]:
            data = chance.randbytes(size)
            model[log.append(data)] = data
        last = max(base for base, _, _ in log.segments.listing())
        assert log.compact(lambda entry: entry.seq % 3 > 0).records_removed > 10
        assert content(log) == {seq: data for seq, data in model.items() if seq % 3 > 0 or seq >= last}


def test_a_file_that_may_not_grow_leaves_all_as_it_was(tmp_path: Path) -> None:
    """What the system refuses while a piece is written comes out, and of the new segment nothing stays."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=MANUAL, segment_bytes=SEGMENT) as log:
        for size in itertools.repeat(50_000, 170):
            log.append(bytes(size))
        log.flush()
        before, names = content(log), sorted(path.iterdir())
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * PIECE, hard))
        try:
            with pytest.raises(OSError, match="too large") as caught:
                log.compact(lambda entry: entry.seq % 10 > 0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.errno == errno.EFBIG
        assert content(log) == before
        assert (sorted(path.iterdir()), left_over(path)) == (names, [])
        assert log.compact(lambda entry: entry.seq % 10 > 0).records_removed > 10


def test_the_only_writer_knows_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looked at the directory and at MANIFEST when it first took care of the log; only it changes them."""
    looks: list[str] = []
    filled(tmp_path / "log", 100)
    with opened(tmp_path / "log") as log:
        assert log.compact(lambda entry: entry.seq % 2 == 0).records_removed > 40
        real = _os.list_directory, manifest_file.read
        monkeypatch.setattr(_os, "list_directory", lambda *given: (looks.append("list"), real[0](*given))[1])
        monkeypatch.setattr(manifest_file, "read", lambda *given: (looks.append("read"), real[1](*given))[1])
        assert log.compact(lambda entry: entry.seq % 4 == 0).records_removed > 20
        assert looks == []
        # Whoever reads sees the same by himself.
        with opened(tmp_path / "log", "r") as reader:
            assert content(reader) == content(log)
    assert looks != []
