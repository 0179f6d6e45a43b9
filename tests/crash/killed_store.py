"""A store whose writer is killed before and after every second call to the system, one by one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from mmapio import FlushPolicy
from mmapkv import KVStore
from tests.crash.ack_page import ACKNOWLEDGED, AckPage
from tests.crash.moments import die_at, moments_of

SEGMENT_BYTES = 64 << 10
KEYS = [b"key-%d" % number for number in range(60)]
LOST: tuple[tuple[str, ...], ...] = ((), ("INDEX",), ("CONTROL",))


def load(path: Path) -> dict[bytes, bytes]:
    """A store of several segments, with superseded values in each, and deletions."""
    with KVStore.open(path, "n", flush_policy=FlushPolicy.MANUAL, segment_bytes=SEGMENT_BYTES) as store:
        for turn in range(4):
            for at, key in enumerate(KEYS):
                store[key] = b"%d " % turn * (200 + at)
        for key in KEYS[::3]:
            del store[key]
        return dict(store.items())


def session(
    path: Path,
    page: AckPage,
    limit: int | None,
    work: Callable[[KVStore, AckPage], None],
    *,
    shared: bool = False,
) -> int:
    """Do `work` in a child that dies at moment number `limit`. The moments, 0 if it died."""
    page.reset()

    def body(started: Callable[[], None]) -> None:
        store = KVStore.open(path, "w", shared=shared, flush_policy=FlushPolicy.MANUAL)
        seen = die_at(limit)
        work(store, page)
        page.words[ACKNOWLEDGED + 1] = len(seen)
        started()

    return moments_of(body, page)


def wrongs(
    directory: Path,
    work: Callable[[KVStore, AckPage], None],
    findings: Callable[[Path, dict[bytes, bytes], AckPage], list[str]],
    moments_min: int,
) -> list[str]:
    """What `findings` say of the store that each kill leaves, of which some files are lost then, too."""
    page = AckPage()
    loaded, path = directory / "loaded", directory / "killed"
    before = load(loaded)
    shutil.copytree(loaded, path)
    moments = session(path, page, None, work)
    assert moments > moments_min, "a session this short would meet little"
    wrong = []
    for limit in range(1, moments + 1, 2):
        shutil.rmtree(path)
        shutil.copytree(loaded, path)
        session(path, page, limit, work)
        lost = LOST[limit // 2 % len(LOST)]
        for name in lost:
            (path / name).unlink()
        try:
            found = findings(path, before, page)
        except OSError as error:
            found = [f"{type(error).__name__}: {error}"]
        wrong += [f"killed at moment {limit}, lost {lost}: {text}" for text in found]
    return wrong
