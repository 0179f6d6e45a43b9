"""The ``mmapkv`` command.

Each command is a module with a function ``register(commands)``, which adds a parser and sets its
default ``run``: a function that takes the parsed arguments and returns the exit code. A new command
is such a module and its name in :data:`COMMANDS`.

Exit codes: 0 all is well, 1 the store is not as it should be or an operation failed, 2 the request
cannot be carried out as it was made, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from mmapkv import demo
from mmapkv._command import UsageError

__all__ = ["main"]

COMMANDS = (demo,)

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    `argv` is what follows the program's name; None takes it from ``sys.argv``. Messages about what
    went wrong go to stderr in one line. Raises SystemExit, as argparse does, with 2 for arguments
    that do not parse and with 0 after ``--help`` and ``--version``.
    """
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        code = run(arguments)
        # A reader that went away shows up here rather than in the interpreter's last flush.
        sys.stdout.flush()
    except UsageError as error:
        return _say(arguments, f"error: {error}", EXIT_USAGE)
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it exits, unless it is closed.
        with suppress(BrokenPipeError):
            sys.stdout.close()
        return EXIT_FAILED
    except OSError as error:
        return _say(arguments, f"error: {error}", EXIT_FAILED)
    except KeyboardInterrupt:
        return _say(arguments, "interrupted", EXIT_INTERRUPTED)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mmapkv", description="A key-value store in a directory.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.register(commands)
    return parser


class _Version(argparse.Action):
    """Looks the version up when it is asked for: that reads files, which no other command needs."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"mmapkv {version('mmapkv')}")
        parser.exit()


def _say(arguments: argparse.Namespace, message: str, code: int) -> int:
    print(f"mmapkv {arguments.command}: {message}", file=sys.stderr)
    return code
