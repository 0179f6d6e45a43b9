"""What the commands of this distribution share: exit codes, messages, and names in messages.

Exit codes: 0 all is well, 1 something is not as it should be or an operation failed, 2 the request cannot be
carried out as it was made, 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmapio import _os
from mmaplog import manifest
from mmaplog.errors import Locked, without_advice

__all__ = [
    "EXIT_FAILED",
    "Parser",
    "UsageError",
    "Version",
    "damage_line",
    "in_short",
    "named",
    "perform",
    "positive_number",
    "whole_number",
]

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

# What is said of a name that the request gave, and not of the work.
_ABOUT_THE_REQUEST = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL),
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP),
    }
)


class UsageError(Exception):
    """The request itself is wrong: the command prints the message and exits with 2, nothing was written."""


class Parser(argparse.ArgumentParser):
    """Of one command: its options may stand anywhere, also before what may be left out, and in a list."""

    _within = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """What argparse does only where it is asked to, which for a command's parser it is not."""
        if self._within:
            return super().parse_known_args(args, namespace)
        self._within = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._within = False


class Version(argparse.Action):
    """Looks the version up when it is asked for: no other command needs what that reads and imports."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"{parser.prog} {version('mmapkv')}")
        parser.exit()


def whole_number(text: str) -> int:
    """An argument that is a count or the number of a record, for argparse."""
    return _number_from(0, text)


def positive_number(text: str) -> int:
    """An argument that is a count of something, for argparse."""
    return _number_from(1, text)


def _number_from(least: int, text: str) -> int:
    shown = text if len(text) <= 40 else f"{text[:40]}..."
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{shown!r} is not a whole number, {least} or more")
    # Python refuses to make a number of thousands of digits.
    if len(text) > 40 or int(text) > sys.maxsize:
        raise argparse.ArgumentTypeError(f"{shown!r} is more than {sys.maxsize}")
    if int(text) < least:
        raise argparse.ArgumentTypeError(f"{shown!r} is not a whole number, {least} or more")
    return int(text)


def perform(program: str, arguments: argparse.Namespace) -> int:
    """Call the function `arguments.run` with the arguments and return the exit code.

    Messages about what went wrong go to stderr, in one line.
    """
    if _stand_in_for_closed():
        told = "error: the standard output is closed; have it lead to /dev/null if nobody wants it"
        return _say(program, arguments, told, EXIT_USAGE)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        code = run(arguments)
        # A reader that went away shows up here rather than in the interpreter's last flush.
        sys.stdout.flush()
    except UsageError as error:
        return _say(program, arguments, f"error: {error}", EXIT_USAGE)
    except BrokenPipeError:
        _give_up_output()
        return EXIT_FAILED
    except OSError as error:
        _give_up_output()
        instead = _what_is_there(program, arguments, error)
        if instead is not None:
            return _say(program, arguments, f"error: {instead}", EXIT_USAGE)
        refused = isinstance(error, Locked) or error.errno in _ABOUT_THE_REQUEST
        code = EXIT_USAGE if refused else EXIT_FAILED
        return _say(program, arguments, f"error: {error}", code)
    except KeyboardInterrupt:
        return _say(program, arguments, "interrupted", EXIT_INTERRUPTED)
    return code


def _what_is_there(program: str, arguments: argparse.Namespace, error: OSError) -> str | None:
    # What the named directory is instead, in the words of the command; None when that is not what is wrong.
    noun = "store" if program == "mmapkv" else "log"
    place: str | None = getattr(arguments, noun, None)
    if not isinstance(error, FileNotFoundError | NotADirectoryError) or error.filename != place or not place:
        return None
    makes = "mmapkv put and mmapkv load make a store" if noun == "store" else "mmaplog append makes a log"
    try:
        names = _os.list_directory(_os.open_directory(place))
    except FileNotFoundError:
        return f"{named(place)} does not exist; {makes}"
    except NotADirectoryError:
        return f"{named(place)} is a file, and a {noun} is a directory; name that"
    except OSError:
        return None
    if not names:
        return f"{named(place)} is an empty directory; {makes}"
    if manifest.NAME in names:
        return None
    return f"{named(place)} holds no {noun}, but other files ({named(min(names))}, ...); name another one"


def damage_line(path: str, where: str, reason: str, remedy: str) -> str:
    """What is wrong at a place of a file, and what to do about it: that, and not what the reason advises.

    >>> damage_line("INDEX", "", "its header is damaged; restore it", "run repair")
    "DAMAGE: 'INDEX': its header is damaged; run repair"
    """
    return f"DAMAGE: {named(path)}{where}: {without_advice(reason)}; {remedy}"


def _stand_in_for_closed() -> bool:
    # Whoever started the program may have closed its standard streams: whether the output was. Their numbers
    # are taken before a file of the log gets one.
    closed = sys.stdout is None
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - to the end of the process
    return closed


def _give_up_output() -> None:
    # What cannot be written now is not tried once more by the interpreter when it exits.
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            sys.stdout.close()


def _say(program: str, arguments: argparse.Namespace, message: str, code: int) -> int:
    print(f"{program} {arguments.command}: {message}", file=sys.stderr)
    return code


def in_short(error: Exception) -> str:
    """What is wrong, without the input, which the `repr` of some holds as a whole.

    >>> in_short(ValueError("no number"))
    'ValueError: no number'
    """
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= 200 else f"{text[:200]}..."


def named(path: str | bytes | os.PathLike[str]) -> str:
    r"""`path` as a message may show it: quoted ASCII, whatever bytes the name is made of.

    File names are bytes and may hold line ends, terminal escapes or no valid text at all.

    >>> print(named(b"caf\xe9.txt"), named("a b"))
    'caf\udce9.txt' 'a b'
    """
    return ascii(os.fsdecode(path))
