"""The commands dump and load: all pairs of a store out, and pairs from elsewhere in."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from mmapio import _os
from mmapio._wait import HAS_ROBUST_MUTEX
from mmapio.options import FlushPolicy
from mmapkv.dump_format import FORMATS, TIMELESS, MalformedDump, read_dump
from mmapkv.errors import InvalidKey, ValueTooLarge
from mmapkv.load_dbm import read_dbm
from mmapkv.load_diskcache import read_diskcache
from mmapkv.load_lmdb import read_lmdb
from mmapkv.load_source import Entry, Refusals, Source, SourceError
from mmapkv.load_sqlite import read_sqlite
from mmapkv.store import KVStore
from mmapkv.walk import ENTRIES
from mmaplog._command import EXIT_FAILED, UsageError, named
from mmaplog._progress import Meter
from mmaplog.errors import RecordTooLarge
from mmaplog.export import written_whole

if TYPE_CHECKING:
    from argparse import _SubParsersAction

__all__ = ["register"]

# So many pairs are between two looks at the progress.
_BLOCK = 1024
# What is put in one call has as many pairs at most. A pair of so many bytes is put alone, and the others have
# less than twice as many together: one commit has at most 512 MiB, and a single value may have more.
_CHUNK_BYTES = 1 << 20
_KINDS = ("dump", "lmdb", "dbm", "sqlite", "diskcache")
# Options that only one of them has.
_BELONGS = {"database": "lmdb", "table": "sqlite", "key_column": "sqlite", "value_column": "sqlite"}


def dump(arguments: argparse.Namespace) -> int:
    """Write all pairs of a store, in use or not, as they are at one moment."""
    tally = Tally()
    with KVStore.open(arguments.store, "r") as kv:
        total = len(kv)
        pieces = FORMATS[arguments.format](tally.of(kv._walk(ENTRIES)), kv.stats()["bytes_on_disk"])
        if arguments.output is None:
            sys.stdout.flush()
            for piece in pieces:
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        else:
            with written_whole(arguments.output, arguments.store) as write, Meter("dump", "pairs") as meter:
                for piece in pieces:
                    write(piece)
                    if tally.pairs % _BLOCK == 0:
                        meter(tally.pairs, total)
                meter(tally.pairs, total)
    lost = tally.expiring if arguments.format in TIMELESS else 0
    if lost:
        print(
            f"mmapkv dump: {lost:,} of {tally.pairs:,} pairs have a time to live, which {arguments.format} "
            "cannot say: loaded from it, they stay; jsonl keeps it",
            file=sys.stderr,
        )
    if arguments.output is not None:
        told = {"keys": tally.pairs, "output": arguments.output, "times_lost": lost}
        text = f"{tally.pairs:,} pairs written to {named(arguments.output)}"
        print(json.dumps(told) if arguments.json else text)
    return 0


@dataclass
class Tally:
    """What was dumped: how many pairs, and how many of them expire."""

    pairs: int = 0
    expiring: int = 0

    def of(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The same, counted as they pass."""
        for each in entries:
            self.pairs += 1
            self.expiring += each[2] is not None
            yield each


def load(arguments: argparse.Namespace) -> int:
    """Put pairs from elsewhere into a store, which is made if there is none; what is there already stays.

    A key that is there gets the new value, and its time to live, or none. What has expired since it was
    dumped is left out. The exit code is 1 when something was refused.
    """
    refused = Refusals()
    loaded = expired = 0
    with ExitStack() as opened:
        try:
            source = _source(arguments, refused, opened)
            meter = opened.enter_context(Meter("load", "pairs"))
            chunks = _chunks(_metered(source, meter))
            # Where there is no store, none is made for what does not even begin as pairs.
            first = list(islice(chunks, 1))
            # Beside other processes that share the store, if there are any.
            kv = opened.enter_context(
                KVStore.open(arguments.store, shared=HAS_ROBUST_MUTEX, flush_policy=FlushPolicy.MANUAL)
            )
            for chunk in chain(first, chunks):
                now = time.time_ns()
                alive = [each for each in chunk if each[2] is None or each[2] > now]
                expired += len(chunk) - len(alive)
                loaded += _put(kv, alive, refused)
        except (MalformedDump, SourceError) as error:
            before = f" ({loaded:,} pairs before that were loaded)" if loaded else ""
            raise UsageError(f"{named(arguments.source)}: {error}{before}") from None
    if arguments.json:
        told = {"loaded": loaded, "expired": expired, "refused": refused.count, "examples": refused.examples}
        print(json.dumps(told))
    else:
        print(f"{loaded:,} pairs loaded")
        if expired:
            print(f"{expired:,} left out, for they have expired")
        for each in refused.examples:
            print(f"REFUSED: {each}")
        if refused.count > len(refused.examples):
            print(f"{refused.count:,} refused in all")
    return EXIT_FAILED if refused.count else 0


def _chunks(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    chunk: list[Entry] = []
    size = 0
    try:
        for each in entries:
            more = len(each[0]) + len(each[1])
            if chunk and more >= _CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
            chunk.append(each)
            size += more
            if len(chunk) == _BLOCK or size >= _CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
    except (MalformedDump, SourceError):
        # What was whole before it counts.
        if chunk:
            yield chunk
        raise
    yield chunk


def _put(kv: KVStore, chunk: list[Entry], refused: Refusals) -> int:
    # How many of them there are in the store now.
    try:
        kv._put_entries(chunk)
        return len(chunk)
    except (InvalidKey, ValueTooLarge, RecordTooLarge):
        # Not one of them is. The others are for it.
        loaded = 0
    for each in chunk:
        try:
            kv._put_entries([each])
            loaded += 1
        except (InvalidKey, ValueTooLarge, RecordTooLarge) as error:
            refused.add(f"key {each[0][:60]!r}: {error.strerror}")
    return loaded


def _source(arguments: argparse.Namespace, refused: Refusals, opened: ExitStack) -> Source:
    kind, path = arguments.kind, arguments.source
    for name, whose in _BELONGS.items():
        if getattr(arguments, name) is not None and kind != whose:
            raise UsageError(f"--{name.replace('_', '-')} is for --from {whose}, and this is --from {kind}")
    if kind == "lmdb":
        return read_lmdb(path, arguments.database, refused)
    if kind == "dbm":
        return read_dbm(path, refused)
    if kind == "sqlite":
        return read_sqlite(path, arguments.table, arguments.key_column, arguments.value_column, refused)
    if kind == "diskcache":
        return read_diskcache(path, refused)
    if path == "-":
        return Source(0, read_dump(sys.stdin.buffer))
    if Path(path).is_fifo() or Path(path).is_char_device():
        raise SourceError("is no file; give - for SOURCE, and let it be the standard input")
    return Source(0, read_dump(opened.enter_context(_os.file_object(_os.open_file(path, False)))))


def _metered(source: Source, meter: Meter) -> Iterator[Entry]:
    done = 0
    for done, each in enumerate(source.entries, 1):
        yield each
        if done % _BLOCK == 0:
            meter(done, source.total)
    meter(done, source.total)


def register(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to a parser's."""
    made = {}
    for run in (dump, load):
        text = (run.__doc__ or "").partition("\n")[0]
        each = commands.add_parser(run.__name__, help=text, description=text)
        each.add_argument("--json", action="store_true", help="say in JSON what was done")
        each.set_defaults(run=run)
        made[run.__name__] = each
    made["dump"].add_argument("store", metavar="STORE", help="the directory of the store")
    made["dump"].add_argument("-o", "--output", metavar="FILE", help="written whole, or not at all")
    made["dump"].add_argument(
        "--format",
        choices=sorted(FORMATS),
        default="jsonl",
        help="JSON lines, what mdb_load and db_load read, or what cdbmake reads (%(default)s)",
    )
    made["load"].add_argument(
        "source", metavar="SOURCE", help="a file or directory; - for the standard input"
    )
    made["load"].add_argument("store", metavar="STORE", help="the directory of the store")
    made["load"].add_argument(
        "--from", dest="kind", choices=_KINDS, default="dump", help="what SOURCE is (%(default)s)"
    )
    made["load"].add_argument("--database", metavar="NAME", help="of LMDB, the named database")
    made["load"].add_argument("--table", metavar="NAME", help="of SQLite, the table")
    made["load"].add_argument("--key-column", metavar="NAME", help="of SQLite, the first when left out")
    made["load"].add_argument("--value-column", metavar="NAME", help="of SQLite, the second when left out")
