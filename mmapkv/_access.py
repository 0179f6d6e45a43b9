"""The commands that look up and change single keys, and list them."""

from __future__ import annotations

import argparse
import binascii
import json
import sys
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from mmapio._wait import HAS_ROBUST_MUTEX
from mmapkv.decode import KEY_BYTES_MAX, VALUE_BYTES_MAX
from mmapkv.dump_format import as_json
from mmapkv.errors import InvalidKey
from mmapkv.store import KVStore
from mmapkv.writer import TTL_SECONDS_MAX
from mmaplog._command import EXIT_FAILED, UsageError, whole_number

if TYPE_CHECKING:
    from argparse import _SubParsersAction

__all__ = ["register"]


def get(arguments: argparse.Namespace) -> int:
    """Write the value of a key, and a line end; the exit code is 1 when there is none."""
    key = _bytes(arguments, arguments.key)
    with KVStore.open(arguments.store, "r") as kv:
        value = kv.get(key)
    if value is None:
        _say_absent(arguments, arguments.key)
        return EXIT_FAILED
    if arguments.json:
        print(_sayable(as_json(key=key, value=value)))
        return 0
    sys.stdout.flush()
    sys.stdout.buffer.write(value if arguments.no_newline else value + b"\n")
    sys.stdout.buffer.flush()
    return 0


def put(arguments: argparse.Namespace) -> int:
    """Set the value of a key; from the standard input when it is left out. Makes a store if there is none."""
    key = _bytes(arguments, arguments.key)
    # Before a store is made for what it cannot hold.
    if not 1 <= len(key) <= KEY_BYTES_MAX:
        raise UsageError(f"a key has 1 to {KEY_BYTES_MAX} bytes, this one has {len(key)}")
    value = sys.stdin.buffer.read() if arguments.value is None else _bytes(arguments, arguments.value)
    if len(value) > VALUE_BYTES_MAX:
        raise UsageError(f"a value has at most {VALUE_BYTES_MAX} bytes, this one has {len(value)}")
    # Beside other processes that share the store, if there are any.
    with KVStore.open(arguments.store, shared=HAS_ROBUST_MUTEX) as kv:
        kv.put(key, value, ttl=arguments.ttl, durable=arguments.durable)
    if arguments.json:
        print(json.dumps({"key_bytes": len(key), "value_bytes": len(value)}))
    return 0


def delete(arguments: argparse.Namespace) -> int:
    """Delete keys; the exit code is 1 when one of them was not there."""
    absent = []
    keys = {each: _bytes(arguments, each) for each in arguments.key}
    with KVStore.open(arguments.store, "w", shared=HAS_ROBUST_MUTEX) as kv:
        for each in arguments.key:
            try:
                del kv[keys[each]]
            except (KeyError, InvalidKey):
                absent.append(each)
    for each in absent:
        _say_absent(arguments, each)
    if arguments.json:
        print(json.dumps({"deleted": len(arguments.key) - len(absent), "absent": len(absent)}))
    return EXIT_FAILED if absent else 0


def scan(arguments: argparse.Namespace) -> int:
    """List keys and values, in the order of the last change, a pair on each line with a tab in between."""
    prefix = _bytes(arguments, arguments.prefix)
    with KVStore.open(arguments.store, "r") as kv:
        for key, value in islice(_with_prefix(kv, prefix, arguments.keys), arguments.limit):
            if arguments.json:
                sys.stdout.write(
                    _sayable(as_json(key=key) if value is None else as_json(key=key, value=value))
                )
            else:
                sys.stdout.write(_line(key) if value is None else f"{_line(key)}\t{_line(value)}")
            sys.stdout.write("\n")
    return 0


def _with_prefix(kv: KVStore, prefix: bytes, keys_only: bool) -> Iterator[tuple[bytes, bytes | None]]:
    if keys_only:
        yield from ((key, None) for key in kv if key.startswith(prefix))
    else:
        yield from ((key, value) for key, value in kv.items() if key.startswith(prefix))


def _say_absent(arguments: argparse.Namespace, key: str) -> None:
    # As it was typed, also in hexadecimal: so it can be looked for on the line.
    print(f"mmapkv {arguments.command}: there is no key {key[:100]!r}", file=sys.stderr)


def _sayable(text: str) -> str:
    # JSON of which the standard output lacks no letter.
    if _can_say(text):
        return text
    return "".join(each if each.isascii() else json.dumps(each)[1:-1] for each in text)


def _can_say(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _line(data: bytes) -> str:
    r"""Bytes as one field of a line, unambiguously: \\, and \xNN for what cannot be printed.

    >>> print(_line(b"a b"), _line(b"tab\t"), _line(b"back\\slash"), _line(b"\xff"))
    a b tab\x09 back\\slash \xff
    """
    text = data.decode(errors="surrogateescape")
    if text.isprintable() and "\\" not in text and _can_say(text):
        return text
    return "".join(_character(each) for each in text)


def _character(each: str) -> str:
    if each == "\\":
        return r"\\"
    if each.isprintable() and _can_say(each):
        return each
    return "".join(f"\\x{byte:02x}" for byte in each.encode(errors="surrogateescape"))


def _bytes(arguments: argparse.Namespace, text: str) -> bytes:
    # What was typed: as the shell gave it, or in hexadecimal.
    if not arguments.hex:
        return text.encode(errors="surrogateescape")
    try:
        return binascii.unhexlify(text)
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"{text[:100]!r} is not hexadecimal: {error}") from None


def _seconds(text: str) -> float:
    # A time to live, for argparse.
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= TTL_SECONDS_MAX:
        raise argparse.ArgumentTypeError(
            f"a time to live is more than 0 and at most {TTL_SECONDS_MAX:.0f} seconds, not {text[:40]!r}"
        )
    return seconds


def register(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to a parser's."""
    made = {}
    for name, run in (("get", get), ("put", put), ("del", delete), ("scan", scan)):
        text = (run.__doc__ or "").partition("\n")[0]
        each = commands.add_parser(name, help=text, description=text)
        each.add_argument("store", metavar="STORE", help="the directory of the store")
        each.add_argument("--json", action="store_true", help="JSON, an object on each line")
        each.add_argument("--hex", action="store_true", help="what is given is hexadecimal")
        each.set_defaults(run=run)
        made[name] = each
    made["get"].add_argument("key", metavar="KEY")
    made["get"].add_argument("-n", "--no-newline", action="store_true", help="the value and nothing else")
    made["put"].add_argument("key", metavar="KEY")
    made["put"].add_argument("value", metavar="VALUE", nargs="?", help="the standard input when left out")
    made["put"].add_argument("--ttl", type=_seconds, metavar="SECONDS", help="the key vanishes after that")
    made["put"].add_argument("--durable", action="store_true", help="sync before going on")
    made["del"].add_argument("key", metavar="KEY", nargs="+")
    made["scan"].add_argument("--prefix", default="", help="only keys that begin with it")
    made["scan"].add_argument("--keys", action="store_true", help="without the values")
    made["scan"].add_argument("--limit", type=whole_number, metavar="N", help="at most so many")
