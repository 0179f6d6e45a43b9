"""Records that are in the log together, or not at all."""

from __future__ import annotations

import errno
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mmaplog.errors import LogError
from mmaplog.pieces import copied

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from mmaplog.log import Log


class Batch:
    """Collects records in memory and appends them when its ``with`` block ends; none, when that raises.

    Made by ``Log.batch``. `seqs` is the range of their numbers, None before. Adding a record copies it.
    """

    def __init__(self, log: Log, durable: bool) -> None:
        self._log = log
        self._durable = durable
        self._records: list[bytes] = []
        self._ending = False
        self.seqs: range | None = None

    def append(self, data: Buffer) -> None:
        """Add a record. Costs a copy. Raises TypeError for what is no buffer, LogError after the end."""
        record = copied(data)
        if self._ending or self.seqs is not None:
            raise LogError(
                errno.EINVAL,
                "the batch was appended already, or is by another thread; begin another one",
                self._log.path,
            )
        self._records.append(record)

    def __len__(self) -> int:
        return len(self._records)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self.seqs is None:
            # What another thread would add meanwhile would be lost.
            self._ending = True
            try:
                self.seqs = self._log.append_many(self._records, atomic=True, durable=self._durable)
            finally:
                self._ending = False
