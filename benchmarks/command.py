"""What the command lines of the suites share."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from . import environment
from .adapters import RivalMissing

EXIT_WRONG_ANSWER = 1
EXIT_UNUSABLE = 2
EXIT_TERMINATED = 128 + signal.SIGTERM

UNITS = {"k": 1_000, "m": 1_000_000}

T = TypeVar("T")


def add_common_options(
    parser: argparse.ArgumentParser, workloads: Sequence[str], rivals: Sequence[str]
) -> None:
    """Add the options that every suite has."""
    parser.add_argument(
        "--workloads", type=names_among(workloads), metavar="A,B,...", help="default: all of the suite"
    )
    parser.add_argument(
        "--rivals",
        type=names_among(rivals),
        metavar="A,B,...",
        help=f"among {', '.join(rivals)}; default: all",
    )
    parser.add_argument("--rounds", type=at_least(1), default=5, help="samples of each figure (%(default)s)")
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path(__file__).parent,
        help="where the files are made and removed; it must be on a real file system, not on a tmpfs "
        "(default: the directory of the benchmarks)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there as well")


def check_common_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the program with what to do about a directory that is not there."""
    if not options.dir.is_dir():
        parser.error(f"--dir {options.dir}: not a directory; make it first, or leave the option out")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        parser.error(f"--json {options.json}: its directory does not exist; make it first")


@contextmanager
def scratch_directory(parent: Path) -> Iterator[Path]:
    """A directory for the files of one run, which is removed however the run ends."""
    # Not tempfile's, whose name is known only once it is made: a signal in between would leave it behind.
    scratch = parent / f".run-{os.getpid()}"
    try:
        scratch.mkdir()
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def load(names: Sequence[str], load_one: Callable[[str], T]) -> tuple[list[T], dict[str, str]]:
    """Return the rivals that import, and why the others do not, which is printed too."""
    rivals = []
    missing = {}
    for name in names:
        try:
            rivals.append(load_one(name))
        except RivalMissing as error:
            missing[name] = str(error)
            print(
                f"SKIPPED {error}. It is not in this run; `pip install --group bench` installs those on PyPI."
            )
    return rivals, missing


def warn(surroundings: Mapping[str, str]) -> None:
    """Say what makes the figures of this run worth less."""
    if environment.is_memory(surroundings["file system"]):
        print(
            "WARNING: this file system has no device below it, so writes cost nothing real. Choose a --dir."
        )
    if environment.is_busy():
        print("WARNING: others are using this machine; times mean little and even ratios are unsteady.")


def write_json(path: Path | None, document: Mapping[str, object]) -> None:
    """Write the document, if it was asked for."""
    if path is not None:
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def names_among(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return a type for argparse: comma-separated names, each of them known, in the known order."""

    def parse(text: str) -> tuple[str, ...]:
        asked = text.split(",")
        unknown = [name for name in asked if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}; choose among {', '.join(known)}")
        return tuple(name for name in known if name in asked)

    return parse


def at_least(minimum: int) -> Callable[[str], int]:
    """Return a type for argparse: a number that is not below `minimum`, such as 1000, 1_000 or 1k."""

    def parse(text: str) -> int:
        digits = text.replace("_", "").replace(",", "")
        unit = UNITS.get(digits[-1:].lower(), 1)
        number = int(digits[:-1] if unit > 1 else digits) * unit
        if number < minimum:
            raise argparse.ArgumentTypeError(f"{number} is too few, the least is {minimum}")
        return number

    return parse


def summary(entries: Mapping[str, str | None]) -> str:
    """Return the first sentence of every entry of a glossary."""
    return "; ".join(
        f"{name}: {' '.join((text or '').partition('.')[0].split())}" for name, text in entries.items()
    )


def show_progress(message: str) -> None:
    """Show what is being done, on a terminal only."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{message}")
        sys.stderr.flush()
