"""Planted defects of stores: those of the log below them, and some that only a store can have."""

from __future__ import annotations

from typing import Any

from mmapkv import attach, index_file
from tests.crash.images import defects
from tests.crash.images.defects import BATCH_WITHOUT_END, EARLY_ACKNOWLEDGEMENT, KEPT_TORN_RECORD, NO_BOUNDARY

BELIEVED_INDEX = "believed-index"

DEFECTS = (
    defects.DROPPED_SYNC,
    defects.DROPPED_HEADER_SYNC,
    defects.DROPPED_DIRECTORY_SYNC,
    EARLY_ACKNOWLEDGEMENT,
    KEPT_TORN_RECORD,
    BATCH_WITHOUT_END,
    NO_BOUNDARY,
    BELIEVED_INDEX,
)


def plant(defect: str | None) -> None:
    """Plant what lives in this process."""
    defects.plant(defect)
    if defect == BELIEVED_INDEX:
        _believe_any_index()


def _believe_any_index() -> None:
    # As if it were of the same boot: what was stored to it is taken to be there.
    load = attach.load

    def believing(log: Any, *, writing: bool) -> Any:
        real = index_file.load

        def adopting(*arguments: Any) -> Any:
            found = real(*arguments)
            if writing:
                found.adopt(log.control.incarnation)
            return found

        vars(index_file)["load"] = adopting
        try:
            return load(log, writing=writing)
        finally:
            vars(index_file)["load"] = real

    vars(attach)["load"] = believing
