"""What of a store's past is still looked at: walks under way, and snapshots."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from mmapio import _fork
from mmapio.errors import Closed

if TYPE_CHECKING:
    from mmapkv.index import Index
    from mmaplog.log import Log


class Pin:
    """That the store is looked at as it was below a number; until it is let go of, or forgotten."""

    __slots__ = ("_pins", "seq")

    def __init__(self, pins: Pins, seq: int) -> None:
        self.seq = seq
        self._pins: Pins | None = pins

    def release(self) -> None:
        """Let compaction remove it; the second time does nothing."""
        pins, self._pins = self._pins, None
        if pins is not None:
            pins.release(self.seq)

    def __del__(self) -> None:
        self.release()


class Pins:
    """The numbers of one handle. Others learn of them by locks on bytes of LOCK, which end with it."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._counts: Counter[int] = Counter()
        self._lock = threading.RLock()
        _fork.register(self)

    def hold(self, seq: int) -> Pin:
        """Keep what is needed to see the store as it was below `seq`. Costs a lock. Raises Closed.

        Whether compaction had not come before is to be asked afterwards.
        """
        with self._lock:
            # Counted first: a destructor may release another one of this number meanwhile, and let go of it.
            self._counts[seq] += 1
            pin = Pin(self, seq)
            self._log.hold_past(seq)
            return pin

    def release(self, seq: int) -> None:
        """End one `hold`."""
        with self._lock:
            self._counts[seq] -= 1
            if self._counts[seq] == 0:
                del self._counts[seq]
                # Once it is closed, the lock went with the handle.
                with suppress(Closed):
                    self._log.let_past(seq)

    def oldest(self, index: Index) -> int:
        """The lowest number that anybody holds, or what the index holds now. From now on nobody holds less.

        For who compacts. Costs a system call; some forty where another handle holds one.
        """
        seq, _ = index.progress()
        index.raise_horizon(seq)
        with self._lock:
            return self._log.oldest_past(min([seq, *self._counts]))

    def any_below(self, stop: int) -> bool:
        """Whether anybody holds a number below `stop`. For who compacts."""
        with self._lock:
            return min(self._counts, default=stop) < stop or self._log.oldest_past(stop) < stop

    def _after_fork_in_child(self) -> None:
        self._lock = threading.RLock()
