"""The commands that look after a store: figures, checking, mending, making it smaller, copying it."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mmapio._wait import HAS_ROBUST_MUTEX
from mmapio.options import FlushPolicy
from mmapkv.repair import StoreRepaired
from mmapkv.repair import repair as repair_store
from mmapkv.store import KVStore
from mmapkv.verify import verify as verify_store
from mmaplog._command import EXIT_FAILED, damage_line, named
from mmaplog._progress import Meter
from mmaplog._upkeep import lines_of

if TYPE_CHECKING:
    from argparse import _SubParsersAction

__all__ = ["register"]

# What the figures of a check are of that looks at the records.
_OF_RECORDS = ("segments", "records", "record_bytes", "keys", "live_bytes")


def stat(arguments: argparse.Namespace) -> int:
    """Show how much a store holds, and what it takes."""
    with KVStore.open(arguments.store, "r") as kv:
        found = kv.stats()
    _say(arguments, found, "\n".join(_table(found)))
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Check all that the files hold, and change nothing; the exit code is 1 when there is damage."""
    with Meter("verify", "records") as meter:
        found = verify_store(arguments.store, full=not arguments.quick, progress=meter)
    told = dataclasses.asdict(found)
    # Of what was not looked at, 0 would be taken for what there is.
    unseen = () if found.segments else _OF_RECORDS
    lines = list(_table({key: told[key] for key in told if type(told[key]) is int and key not in unseen}))
    for each in found.damages:
        lines.append(damage_line(each.path, f" at offset {each.offset}", each.reason, each.remedy))
    if found.note is not None:
        then = "" if found.damages else "; the next opening builds it"
        lines.append(f"the index was not looked at: {found.note}{then}")
    lines.append("damaged" if found.damages else "all is well")
    _say(arguments, told, "\n".join(lines))
    return EXIT_FAILED if found.damages else 0


def repair(arguments: argparse.Namespace) -> int:
    """Save what verifies of a damaged store, and say what is lost; the exit code is 1 when anything is."""
    with Meter("repair", "bytes") as meter:
        found = repair_store(arguments.store, dry_run=arguments.dry_run, progress=meter)
    _say(arguments, dataclasses.asdict(found), "\n".join(_told(found)))
    return EXIT_FAILED if found.log.lost else 0


def backup(arguments: argparse.Namespace) -> int:
    """Copy a store, in use or not, into a new directory, as a store of its own."""
    with KVStore.open(arguments.store, "r") as kv, Meter("backup", "bytes") as meter:
        made = kv.backup(arguments.target, verify=not arguments.no_verify, progress=meter)
    text = f"[{made.first_seq}, {made.committed}) in {made.segments} segments, {made.bytes:,} bytes"
    _say(arguments, dataclasses.asdict(made), f"records {text}: {named(made.path)}")
    return 0


def compact(arguments: argparse.Namespace) -> int:
    """Rewrite a store that nobody else writes to, without superseded values and deletions."""
    # Beside other processes that share the store, if there are any.
    with KVStore.open(arguments.store, "w", shared=HAS_ROBUST_MUTEX, flush_policy=FlushPolicy.MANUAL) as kv:
        before = kv.stats()["bytes_on_disk"]
        with Meter("compact", "records") as meter:
            found = kv.compact(progress=meter)
    # Closed, it has given back the room that was made for writes to come.
    with KVStore.open(arguments.store, "r") as kv:
        after = kv.stats()["bytes_on_disk"]
    told = dataclasses.asdict(found) | {"bytes_before": before, "bytes_after": after}
    text = f"{found.records_removed:,} records removed: {before:,} bytes on disk before, {after:,} after"
    _say(arguments, told, text)
    return 0


def _told(found: StoreRepaired) -> Iterable[str]:
    yield from lines_of(found.log)
    if found.log.lost:
        yield "a key whose last change is lost has the value that it had before"
    if found.set_aside is not None:
        yield f"set aside: {named(found.set_aside)}"
    if found.index is not None:
        verdict = "would be built" if found.dry_run else "was built"
        yield f"the index {verdict} anew: {found.index}"
    if found.keys is not None:
        yield f"{found.keys:,} keys"


def _table(figures: dict[str, int]) -> Iterable[str]:
    for name, value in figures.items():
        yield f"{name.replace('_', ' '):<16} {value:,}"


def _say(arguments: argparse.Namespace, told: dict[str, Any], text: str) -> None:
    print(json.dumps(told, default=str) if arguments.json else text)


def register(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to a parser's."""
    made = {}
    for run in (stat, verify, repair, compact, backup):
        text = (run.__doc__ or "").partition("\n")[0]
        each = commands.add_parser(run.__name__, help=text, description=text)
        each.add_argument("store", metavar="STORE", help="the directory of the store")
        each.add_argument("--json", action="store_true", help="a JSON object")
        each.set_defaults(run=run)
        made[run.__name__] = each
    made["verify"].add_argument("--quick", action="store_true", help="only the index, and where it leads")
    made["repair"].add_argument("--dry-run", action="store_true", help="only say what would be done")
    made["backup"].add_argument("target", metavar="TARGET", help="a directory that is not there yet")
    made["backup"].add_argument("--no-verify", action="store_true", help="do not check the records copied")
