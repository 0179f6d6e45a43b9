"""The ``mmapkv`` command.

Each command is a module with a function ``register(commands)``, which adds a parser and sets its
default ``run``: a function that takes the parsed arguments and returns the exit code. A new command
is such a module and its name in :data:`COMMANDS`. Exit codes: see :mod:`mmaplog._command`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmapkv import _access, _transfer, _upkeep, bench, demo
from mmaplog._command import Parser, Version, perform

__all__ = ["main"]

COMMANDS = (demo, _access, _upkeep, _transfer, bench)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    `argv` is what follows the program's name; None takes it from ``sys.argv``. Raises SystemExit, as
    argparse does, with 2 for arguments that do not parse and with 0 after ``--help`` and ``--version``.
    """
    return perform("mmapkv", _parser().parse_args(argv))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mmapkv", description="A key-value store in a directory.")
    parser.add_argument("--version", action=Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True, parser_class=Parser
    )
    for command in COMMANDS:
        command.register(commands)
    return parser
