"""The threads that serve a store: what is left of a call when none could be started."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mmapkv import KVStore
from mmapkv.compactor import Compactor
from mmapkv.hinter import Hinter
from mmapkv.remover import Remover
from mmapkv.worker import Worker
from tests.support.waiting import until

BORNE = 0.5


@pytest.mark.parametrize(
    ("make", "is_called"),
    [
        (lambda store: Compactor(store, BORNE), lambda worker: worker._busy),
        (lambda store: Hinter(store, threaded=True), lambda worker: worker._called),
        (Remover, lambda worker: worker._busy),
    ],
    ids=["compactor", "hinter", "remover"],
)
def test_a_call_of_which_no_thread_came_is_forgotten(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[KVStore], Worker],
    is_called: Callable[[Worker], bool],
) -> None:
    """Nobody waits for it, and the next one starts the thread."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with KVStore.open(tmp_path / "kv", compaction=False) as store:
        worker = make(store)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            assert not worker.wake()
        assert not is_called(worker)
        assert worker.wake()
        until(lambda: not is_called(worker))
        worker.stop()
        assert not worker.wake()
        assert not is_called(worker)
