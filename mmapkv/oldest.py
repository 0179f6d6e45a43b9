"""Where the reader of a queue is: taking what was changed longest ago, for `popitem`."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from mmapio import _fork
from mmapkv.errors import SnapshotTooOld
from mmapkv.turns import in_turn
from mmapkv.walk import KEYS
from mmaplog.errors import TooOld

if TYPE_CHECKING:
    from mmapkv.store import KVStore
    from mmapkv.walk import Walk

_MISSING = object()


class Oldest:
    """Takes the keys of a store that begin with `prefix`, roughly the one that was changed longest ago first.

    Threads may share it. The log is read once, however many keys come and go.
    """

    def __init__(self, prefix: bytes = b"") -> None:
        self._prefix = prefix
        self._lock = _fork.Lock()
        # Where it is, or was at last: that it has ended does not make it go back.
        self._walk: Walk[bytes] | None = None
        # Whether a key may be there that a walk has passed.
        self._passed = False

    def take(
        self,
        store: KVStore,
        part: MutableMapping[Any, Any],
        outer: Callable[[bytes], Any] | None = None,
    ) -> tuple[Any, Any] | None:
        """Pop a key from `part`, where it is called what `outer` returns: that and its value, or None."""
        walk, begin = self._walk, -1
        prefix = self._prefix
        while True:
            try:
                for key in in_turn(self._lock, walk) if walk is not None else ():
                    if prefix and not key.startswith(prefix):
                        continue
                    try:
                        told = key if outer is None else outer(key)
                        value = part.pop(told, _MISSING)
                    except BaseException:
                        self._passed = True
                        raise
                    if value is not _MISSING:
                        return told, value
                if not len(store) or begin == 0 or (begin > 0 and self._is_through()):
                    # What is counted may all have expired, or be of other parts.
                    return None
                # Nothing before the point that an exhausted walk reached can come to life again, and what
                # compaction removes meanwhile has come later by then. The next one begins there.
                begin = walk.stop if walk is not None and begin < 0 else 0
                if begin == 0:
                    self._passed = False
                stop, _, cleared = store._present()
                walk = self._walk = store._walk_until(stop, max(cleared, begin), KEYS, 0, None)
            except (SnapshotTooOld, TooOld):
                walk = self._walk = None
                begin = -1

    def _is_through(self) -> bool:
        # Of a part of a store it is not known how many keys there are.
        return bool(self._prefix) and not self._passed
