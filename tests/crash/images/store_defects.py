"""Planted defects of stores: those of the log below them, and some that only a store can have."""

from __future__ import annotations

from functools import partial
from typing import Any

from mmapkv import attach, compaction, index_file, relocation
from mmaplog import control
from tests.crash.images import defects
from tests.crash.images.defects import BATCH_WITHOUT_END, EARLY_ACKNOWLEDGEMENT, KEPT_TORN_RECORD, NO_BOUNDARY

BELIEVED_INDEX = "believed-index"
NO_FLUSH_BEFORE_REMOVAL = "no-flush-before-removal"

DEFECTS = (
    defects.DROPPED_SYNC,
    defects.DROPPED_HEADER_SYNC,
    defects.DROPPED_DIRECTORY_SYNC,
    EARLY_ACKNOWLEDGEMENT,
    KEPT_TORN_RECORD,
    BATCH_WITHOUT_END,
    NO_BOUNDARY,
    BELIEVED_INDEX,
    NO_FLUSH_BEFORE_REMOVAL,
)


def plant(defect: str | None) -> None:
    """Plant what lives in this process."""
    defects.plant(defect)
    if defect == BELIEVED_INDEX:
        _believe_any_index()
    elif defect == NO_FLUSH_BEFORE_REMOVAL:
        _remove_what_may_come_back()


def _remove_what_may_come_back() -> None:
    # A step replaces segments as it would if what supersedes their records were always durable.
    step, rewrite = compaction.step, compaction.rewrite
    stores: list[Any] = []

    def stepping(store: Any, *arguments: Any) -> Any:
        stores[:] = [store]
        try:
            return step(store, *arguments)
        finally:
            stores.clear()

    def rewriting(log: Any, group: Any, counts: Any, copy: Any, replace: Any) -> None:
        def careless(made: Any, listed: Any, names: Any) -> None:
            _, index = stores[0]._parts()
            relocation.begin(index, log, made.id)
            log.replace_segments(made, listed, names, partial(replace.__self__.lead, listed))

        rewrite(log, group, counts, copy, careless if stores else replace)

    vars(compaction).update(step=stepping, rewrite=rewriting)


def _believe_any_index() -> None:
    # As if it were of the same boot: what was stored to it is taken to be there.
    load = attach.load

    def believing(log: Any, *, writing: bool) -> Any:
        real = index_file.load

        def adopting(*arguments: Any) -> Any:
            found = real(*arguments)
            if writing:
                found.adopt(log.control.incarnation)
                control.name_index(log.segments.directory, log.control, found.number)
            return found

        vars(index_file)["load"] = adopting
        try:
            return load(log, writing=writing)
        finally:
            vars(index_file)["load"] = real

    vars(attach)["load"] = believing
