"""``mmapkv demo [DIR]``: load real files, read them back, kill a writer, and show that nothing is lost."""

from __future__ import annotations

import argparse
import errno
import os
import sysconfig
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from mmapkv._demo_check import check_after_kill, check_first_load
from mmapkv._demo_crash import kill_mid_way
from mmapkv._demo_files import Listing, Loaded, SkippedFileError, list_files, read_file
from mmapkv._demo_report import Figures, Findings, report
from mmapkv.store import KVStore
from mmaplog._command import UsageError, named
from mmaplog._progress import progress

if TYPE_CHECKING:
    from argparse import _SubParsersAction

__all__ = ["register", "run"]

DESCRIPTION = """\
Load every file below DIR into a store (key: relative path, value: content), read each back and
compare. Then load them again in a child process that is killed with SIGKILL in the middle, reopen
the store, and compare again: every write the child had acknowledged must be there byte for byte,
nothing else may be, and the first load must be intact.

What is not a regular file, cannot be read or is larger than 1 GiB is left out, counted and named.
Links to files are followed, links to directories are not.
"""

EPILOG = """\
Exit codes: 0 all is as it should be, 1 a mismatch or a failure, 2 nothing to load or no place for
the store.
"""

# Other people's packages live inside the standard library's directory and are not part of it.
NOT_THE_STANDARD_LIBRARY = frozenset({"site-packages", "dist-packages"})


# A file is in memory as a whole, and again as what comes back. The store's own limit is near 4 GiB.
CONTENT_BYTES_MAX = 1 << 30


def register(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``demo`` to the commands."""
    parser = commands.add_parser(
        "demo",
        help="load real files, kill a writer, and show that nothing is lost",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "directory",
        metavar="DIR",
        nargs="?",
        help="what to load; the standard library of the running Python when left out",
    )
    parser.add_argument(
        "--store",
        metavar="PATH",
        help="make the store there, in a new or empty directory, and keep it; otherwise it is temporary",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo and print its table on stdout. Returns 0, or 1 when anything did not match.

    Raises UsageError when there is nothing to load or a store cannot be made at the path given, and
    OSError for what the system or the store refuses.
    """
    if arguments.directory is None:
        root, leave_out = Path(sysconfig.get_path("stdlib")), NOT_THE_STANDARD_LIBRARY
    else:
        root, leave_out = Path(arguments.directory), frozenset()
    listing = _find_files(root, leave_out)
    figures = Figures(source=named(root))
    for message in listing.unreadable:
        figures.skipped.add(message)
    contents = _contents(root, listing.keys, figures.skipped)
    with _place_for_store(arguments.store) as store:
        # Closed here, so that the progress bar ends before the message about what went wrong.
        with closing(contents), _room_explained(store):
            loaded = _load(store, contents, figures)
        _read_back(store, loaded, figures)
        _load_again(store, loaded, figures)
        if arguments.store is not None:
            figures.kept_at = named(store)
        print(report(figures))
    return 1 if figures.mismatches else 0


def _find_files(root: Path, leave_out: frozenset[str]) -> Listing:
    # The list is complete before there is a store, which may well be made below the same directory.
    try:
        listing = list_files(root, leave_out)
    except OSError as error:
        raise UsageError(f"cannot load {named(root)}: {error.strerror}; name a directory of files") from error
    if not listing.keys:
        raise UsageError(f"there are no files below {named(root)}; name a directory that has some")
    return listing


@contextmanager
def _place_for_store(wanted: str | None) -> Iterator[str]:
    """A path for the store: a temporary one, or `wanted` if nothing is there that could be harmed."""
    if wanted is None:
        with _temporary_directory() as directory:
            yield str(Path(directory, "store"))
        return
    path = Path(wanted)
    try:
        free = not os.path.lexists(path) or next(path.iterdir(), None) is None
    except OSError as error:
        raise UsageError(f"cannot make a store at {named(path)}: {error.strerror}") from error
    if not free:
        raise UsageError(
            f"{named(path)} is not empty, and the demo does not write into what is already there; "
            "give --store a path that does not exist, or an empty directory"
        )
    yield wanted


@contextmanager
def _temporary_directory() -> Iterator[str]:
    directory = tempfile.TemporaryDirectory(prefix="mmapkv-demo-")
    try:
        yield directory.name
    finally:
        try:
            directory.cleanup()
        except KeyboardInterrupt:
            # To remove hundreds of megabytes takes long enough to be interrupted.
            directory.cleanup()
            raise


@contextmanager
def _room_explained(store: str) -> Iterator[None]:
    """Let an error that says the disk is full also say which disk, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            errno.ENOSPC,
            f"no room for the store: {error.strerror}; use --store or TMPDIR to put it where there is more",
            store,
        ) from error


def _contents(root: Path, keys: Sequence[bytes], skipped: Findings) -> Generator[tuple[bytes, bytes]]:
    """Key and content of every file that can be loaded; the others go to `skipped`.

    Raises UsageError when there are none, before the first is asked for a store.
    """
    any_loaded = False
    with progress("load", len(keys), "files") as bar:
        for key in keys:
            try:
                content = read_file(root / os.fsdecode(key), CONTENT_BYTES_MAX)
            except SkippedFileError as reason:
                skipped.add(str(reason))
            else:
                any_loaded = True
                yield key, content
            bar.advance()
    if not any_loaded:
        raise UsageError(
            f"none of the {len(keys):,} files below {named(root)} can be loaded; {skipped.examples[0]}"
        )


def _load(store: str, contents: Iterator[tuple[bytes, bytes]], figures: Figures) -> Loaded:
    loaded = Loaded()
    # Asked for before the store is made, so that nothing is made when there is nothing to load.
    first = next(contents)
    with KVStore.open(store, "c") as kv:
        for key, content in chain([first], contents):
            started = time.perf_counter()
            kv.put(key, content)
            figures.put_seconds += time.perf_counter() - started
            loaded.add(key, content)
        started = time.perf_counter()
        kv.close()
        figures.close_seconds = time.perf_counter() - started
    figures.files = len(loaded)
    figures.content_bytes = loaded.content_bytes
    figures.disk_bytes = _disk_bytes(store)
    return loaded


def _read_back(store: str, loaded: Loaded, figures: Figures) -> None:
    started = time.perf_counter()
    with KVStore.open(store, "w") as kv, progress("read back", len(loaded), "files") as bar:
        figures.open_seconds = time.perf_counter() - started
        figures.different, figures.get_seconds = check_first_load(kv, loaded, bar)


def _load_again(store: str, loaded: Loaded, figures: Figures) -> None:
    kills = kill_mid_way(store, sorted(loaded), loaded.content_bytes)
    figures.children = len(kills)
    expected = len(loaded) + sum(kill.acknowledged for kill in kills)
    started = time.perf_counter()
    with KVStore.open(store, "w") as kv, progress("check", expected, "values") as bar:
        figures.reopen_seconds = time.perf_counter() - started
        figures.after_kill = check_after_kill(kv, loaded, kills, bar)
        figures.damaged, _ = check_first_load(kv, loaded, bar)
    figures.disk_bytes_after_kill = _disk_bytes(store)


def _disk_bytes(store: str) -> int:
    """What the files of the store occupy, in blocks of 512 bytes as the file system counts them."""
    return sum(path.lstat().st_blocks * 512 for path in [Path(store), *Path(store).rglob("*")])
