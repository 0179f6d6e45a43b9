"""The ``mmaplog`` command: a log from the shell.

Payloads are written as they are, each followed by a line end; with ``--json`` there is a JSON object on each
line instead, its payload in base64. Exit codes: see :mod:`mmaplog._command`; ``verify`` gives 1 when it found
damage.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, cast

from mmapio._wait import HAS_ROBUST_MUTEX
from mmaplog import _upkeep
from mmaplog._command import EXIT_FAILED, Parser, UsageError, Version, damage_line, perform, whole_number
from mmaplog._progress import Meter
from mmaplog.attach import INDEX_NAME
from mmaplog.log import Log
from mmaplog.remains import is_damage, restoring
from mmaplog.replay import Entry
from mmaplog.verify import Damage, Verified

__all__ = ["main"]

#: How much of the input is asked for at once.
PIECE_BYTES = 1 << 16


class _Input(Protocol):
    """What the standard input has beyond its declared type."""

    def read1(self, size: int, /) -> bytes: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    `argv` is what follows the program's name; None takes it from ``sys.argv``. Raises SystemExit, as
    argparse does, with 2 for arguments that do not parse and with 0 after ``--help`` and ``--version``.
    """
    return perform("mmaplog", _parser().parse_args(argv))


def append(arguments: argparse.Namespace) -> int:
    """Append each line of the standard input as a record."""
    _upkeep.refuse_store(arguments.log)
    # Beside other processes that share the log, if there are any.
    with Log.open(arguments.log, timestamps=arguments.timestamps, shared=HAS_ROBUST_MUTEX) as log:
        first = last = log.committed
        count = 0
        # As they come: no line waits for the next, and many that are there go together.
        rest = bytearray()
        lines_in = cast("_Input", sys.stdin.buffer)
        while piece := lines_in.read1(PIECE_BYTES):
            rest += piece
            if b"\n" in piece:
                *lines, last_line = bytes(rest).split(b"\n")
                numbers = log.append_many(lines, durable=arguments.durable)
                rest = bytearray(last_line)
                # Others may append in between.
                first, last = numbers.start if count == 0 else first, numbers.stop
                count += len(numbers)
        if rest:
            seq = log.append(rest, durable=arguments.durable)
            first, last, count = seq if count == 0 else first, seq + 1, count + 1
        if arguments.json:
            told = {"start": first, "stop": last, "records": count, "durable": arguments.durable}
            print(json.dumps(told))
        else:
            print(f"{count:,} records appended: [{first}, {last})")
    return 0


def tail(arguments: argparse.Namespace) -> int:
    """Show the last records, and with --follow those to come."""
    with Log.open(arguments.log, "r") as log:
        start = max(log.committed - arguments.lines, log.stats()["first_seq"])
        follower = log.follow(start, timeout=None if arguments.follow else 0)
        for entry in follower:
            _show(entry, arguments.json)
            # Nobody is to wait for a full buffer.
            sys.stdout.flush()
    return 0


def replay(arguments: argparse.Namespace) -> int:
    """Show records in order."""
    with Log.open(arguments.log, "r") as log:
        try:
            entries = log.replay(arguments.start, arguments.stop, reverse=arguments.reverse)
        except IndexError as error:
            raise UsageError(str(error)) from None
        for entry in entries:
            _show(entry, arguments.json)
    return 0


def stat(arguments: argparse.Namespace) -> int:
    """Show how large a log is, and how much of it is durable."""
    with Log.open(arguments.log, "r") as log:
        found = log.stats()
    if arguments.json:
        print(json.dumps(found))
    else:
        _table(found.items())
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Check every record, and change nothing; the exit code is 1 when there is damage."""
    try:
        with Log.open(arguments.log, "r") as log, Meter("verify", "records") as meter:
            found = log.verify(progress=meter)
    except OSError as error:
        if not is_damage(arguments.log, error):
            raise
        found = Verified(0, 0, 0, (Damage(error.filename or arguments.log, 0, 0, error.strerror or ""),))
    if arguments.json:
        print(json.dumps(dataclasses.asdict(found)))
    else:
        # Of what cannot be opened no record is looked at.
        looked = bool(found.segments)
        if looked:
            _table((name, getattr(found, name)) for name in ("segments", "records", "record_bytes"))
        remedy = restoring("it", "mmapkv" if Path(arguments.log, INDEX_NAME).exists() else "mmaplog")
        for each in found.damages:
            where = f": record {each.seq} at offset {each.offset}" if looked else ""
            print(damage_line(each.path, where, each.reason, remedy))
        print("damaged" if found.damages else "all is well")
    return EXIT_FAILED if found.damages else 0


def _show(entry: Entry, as_json: bool) -> None:
    payload = bytes(entry.payload)
    if as_json:
        told = {
            "seq": entry.seq,
            "timestamp": entry.timestamp,
            "payload": base64.b64encode(payload).decode(),
        }
        sys.stdout.write(json.dumps(told) + "\n")
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(payload + b"\n")


def _table(rows: Iterable[tuple[str, object]]) -> None:
    for name, value in rows:
        shown = f"{value:,}" if isinstance(value, int) else value
        print(f"{name.replace('_', ' '):<16} {shown}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mmaplog", description="An append-only log in a directory.")
    parser.add_argument("--version", action=Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True, parser_class=Parser
    )
    made = {}
    for run in (append, tail, replay, stat, verify):
        each = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        each.add_argument("log", metavar="DIRECTORY", help="where the log is")
        each.add_argument("--json", action="store_true", help="JSON, an object on each line")
        each.set_defaults(run=run)
        made[run.__name__] = each
    _upkeep.register(commands)
    made["append"].add_argument("--durable", action="store_true", help="sync before going on")
    made["append"].add_argument("--timestamps", action="store_true", help="store the time with each record")
    made["tail"].add_argument(
        "-n", "--lines", type=whole_number, default=10, metavar="N", help="how many records (%(default)s)"
    )
    made["tail"].add_argument("-f", "--follow", action="store_true", help="go on with those to come")
    made["replay"].add_argument(
        "--start", type=whole_number, default=0, metavar="SEQ", help="the first record"
    )
    made["replay"].add_argument("--stop", type=whole_number, metavar="SEQ", help="the one after the last")
    made["replay"].add_argument("--reverse", action="store_true", help="from the last to the first")
    return parser
