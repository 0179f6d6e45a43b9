"""The commands that look after a log: taking records out and in, copying it, mending it."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmapio.options import FlushPolicy
from mmaplog._command import EXIT_FAILED, UsageError, named, whole_number
from mmaplog._progress import Meter
from mmaplog.attach import INDEX_NAME
from mmaplog.export import FORMATS, MalformedLine, from_json, written_whole
from mmaplog.log import Log
from mmaplog.manifest import NAME as MANIFEST
from mmaplog.repair import Repaired
from mmaplog.repair import repair as repair_log
from mmaplog.replay import Entry

__all__ = ["lines_of", "refuse_store", "register"]

# So many records are appended at once.
_BLOCK = 1024


def refuse_store(path: str) -> None:
    """Raise UsageError where the log is that of a store: over a record of another kind it does not open."""
    if Path(path, INDEX_NAME).exists():
        raise UsageError(
            f"{named(path)} is a store, whose records are no lines; mmapkv put changes it, and mmapkv load"
        )


def export(arguments: argparse.Namespace) -> int:
    """Write records as JSON lines, with their lengths before them, or as plain lines."""
    form = FORMATS[arguments.format]
    with Log.open(arguments.log, "r") as log:
        start, stop = arguments.start, arguments.stop
        start = int(log.stats()["first_seq"]) if start is None else start
        stop = log.committed if stop is None else stop
        try:
            entries = log.replay(start, stop)
        except IndexError as error:
            raise UsageError(str(error)) from None
        if arguments.output is None:
            for entry in entries:
                sys.stdout.buffer.write(form(entry))
            sys.stdout.buffer.flush()
            return 0
        with written_whole(arguments.output, arguments.log) as write, Meter("export", "records") as meter:
            count = 0
            for entry in _metered(entries, stop - start, meter):
                write(form(entry))
                count += 1
    told = {"start": start, "stop": stop, "records": count, "output": arguments.output}
    _say(arguments, told, f"{count:,} records written to {named(arguments.output)}: [{start}, {stop})")
    return 0


def import_(arguments: argparse.Namespace) -> int:
    """Append the records, without their times, that `export` wrote as JSON lines, from the standard input."""
    refuse_store(arguments.log)
    records = from_json(sys.stdin.buffer)
    # Where there is no log, none is made for what does not even begin as one.
    try:
        block = list(itertools.islice(records, _BLOCK))
        exists = Path(arguments.log, MANIFEST).exists()
        _require_numbers(block, None if arguments.renumber or exists else 0)
    except MalformedLine as error:
        raise UsageError(f"{error} (no record was appended)") from None
    with Log.open(arguments.log, flush_policy=FlushPolicy.MANUAL) as log:
        first = log.committed
        try:
            while block:
                _require_numbers(block, None if arguments.renumber else log.committed)
                log.append_many([payload for _, payload in block])
                block = list(itertools.islice(records, _BLOCK))
        except MalformedLine as error:
            log.flush()
            raise UsageError(f"{error} ({log.committed - first:,} records before it were appended)") from None
        log.flush()
        last = log.committed
    _say(arguments, {"start": first, "stop": last}, f"{last - first:,} records appended: [{first}, {last})")
    return 0


def _require_numbers(block: list[tuple[int, bytes]], first: int | None) -> None:
    for number, (seq, _) in enumerate(block, 0 if first is None else first):
        if first is not None and seq != number:
            raise MalformedLine(
                f"record {seq} would become number {number}; to give new numbers, use --renumber"
            )


def backup(arguments: argparse.Namespace) -> int:
    """Copy a log, in use or not, into a new directory, as a log of its own."""
    with Log.open(arguments.log, "r") as log, Meter("backup", "bytes") as meter:
        made = log.backup(arguments.target, verify=not arguments.no_verify, progress=meter)
    text = f"[{made.first_seq}, {made.committed}) in {made.segments} segments, {made.bytes:,} bytes"
    _say(arguments, dataclasses.asdict(made), f"{text}: {named(made.path)}")
    return 0


def repair(arguments: argparse.Namespace) -> int:
    """Save what verifies of a damaged log, and say what is lost; the exit code is 1 when anything is."""
    with Meter("repair", "bytes") as meter:
        found = repair_log(arguments.log, dry_run=arguments.dry_run, progress=meter)
    _say(arguments, dataclasses.asdict(found), "\n".join(lines_of(found)))
    return EXIT_FAILED if found.lost else 0


def lines_of(found: Repaired) -> Iterable[str]:
    """What a repair did, in lines."""
    for name, problem in found.problems:
        yield f"PROBLEM: {named(name)}: {problem}"
    for lost in found.lost:
        numbers = f"from {lost.start} on" if lost.stop is None else f"[{lost.start}, {lost.stop})"
        yield f"LOST: records {numbers}: {lost.reason}"
    if found.torn is not None:
        yield f"TORN: record {found.torn}, at the very end, was not finished"
    for name in found.set_aside:
        yield f"set aside: {named(name)}"
    if not found.changed:
        verdict = "nothing to repair"
    else:
        verdict = "would be repaired" if found.dry_run else "repaired"
    but = " but for those" if found.lost else ""
    yield f"{verdict}: the log holds records [{found.first_seq}, {found.committed}){but}"


def _say(arguments: argparse.Namespace, told: dict[str, Any], text: str) -> None:
    print(json.dumps(told, default=str) if arguments.json else text)
    sys.stdout.flush()


def _metered(entries: Iterable[Entry], total: int, meter: Meter) -> Iterable[Entry]:
    for done, entry in enumerate(entries):
        if done % _BLOCK == 0:
            meter(done, total)
        yield entry
    meter(total, total)


def register(commands: Any) -> None:
    """Add the commands to a parser's."""
    made = {}
    for run in (export, import_, backup, repair):
        name = run.__name__.rstrip("_")
        text = (run.__doc__ or "").partition("\n")[0]
        each = commands.add_parser(name, help=text, description=text)
        each.add_argument("log", metavar="DIRECTORY", help="where the log is")
        each.add_argument("--json", action="store_true", help="JSON, an object on each line")
        each.set_defaults(run=run)
        made[name] = each
    made["export"].add_argument("--start", type=whole_number, metavar="SEQ", help="the first record")
    made["export"].add_argument("--stop", type=whole_number, metavar="SEQ", help="the one after the last")
    made["export"].add_argument(
        "--format", choices=sorted(FORMATS), default="json", help="what each record becomes (%(default)s)"
    )
    made["export"].add_argument("-o", "--output", metavar="FILE", help="written whole, or not at all")
    made["import"].add_argument("--renumber", action="store_true", help="give the records new numbers")
    made["backup"].add_argument("target", metavar="TARGET", help="a directory that is not there yet")
    made["backup"].add_argument("--no-verify", action="store_true", help="do not check the records copied")
    made["repair"].add_argument("--dry-run", action="store_true", help="only say what would be done")
