"""The tree of exceptions: what each is besides, what it carries, and that it travels."""

from __future__ import annotations

import copy
import errno
import inspect
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import mmapio
from mmapio import errors
from tests.unit.mmapio.processes import in_child

KINDS: list[type[errors.MmapIoError]] = [getattr(errors, name) for name in errors.__all__]

#: What callers catch, who know nothing of this library.
BESIDES = {
    "OutOfBounds": IndexError,
    "Misaligned": ValueError,
    "Closed": ValueError,
    "ResizeFailed": BufferError,
    "InvalidSize": ValueError,
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_is_one_of_ours_and_of_the_system(kind: type[errors.MmapIoError]) -> None:
    """``except OSError`` catches all; errno and filename are where everybody looks for them."""
    error = kind(errno.EIO, "what happened", "/where")
    assert isinstance(error, errors.MmapIoError)
    assert isinstance(error, OSError)
    assert (error.errno, error.strerror, error.filename) == (errno.EIO, "what happened", "/where")
    assert str(error) == f"[Errno {errno.EIO}] what happened: '/where'"
    # A number for which there is a builtin subclass must not turn it into one.
    assert type(kind(errno.ENOENT, "gone", "/where")) is kind
    assert getattr(mmapio, kind.__name__) is kind


@pytest.mark.parametrize(("name", "besides"), BESIDES.items())
def test_some_are_a_builtin_error_besides(name: str, besides: type[Exception]) -> None:
    """A loop that ends at IndexError ends, whoever raises it."""
    assert issubclass(getattr(errors, name), besides)
    ours = {kind.__name__ for kind in KINDS if issubclass(kind, IndexError | ValueError | BufferError)}
    assert ours == BESIDES.keys()
    assert issubclass(errors.InvalidSize, errors.ResizeFailed)


def test_the_tree_is_drawn_as_it_is() -> None:
    """The page is read more often than the code; what it leaves out is not caught."""
    drawn: dict[str, str] = {}
    parents = {2: "MmapIoError"}
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"( +)(\w+)(?:\((\w+)\))?(  +|$)", line)
        if found and found[2] in errors.__all__:
            depth = len(found[1])
            parents[depth] = found[2]
            drawn[found[2]] = parents.get(depth - 2, "") if depth > 4 else ""
            assert found[3] is None or issubclass(
                getattr(errors, found[2]), getattr(__import__("builtins"), found[3])
            )
    assert drawn.keys() == set(errors.__all__)
    for name, parent in drawn.items():
        if parent:
            assert issubclass(getattr(errors, name), getattr(errors, parent)), name


TRIPS: list[Callable[[errors.MmapIoError], errors.MmapIoError]] = [
    copy.copy,
    copy.deepcopy,
    *(
        lambda error, at=at: pickle.loads(pickle.dumps(error, at))
        for at in range(pickle.HIGHEST_PROTOCOL + 1)
    ),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("filename", ["/where", b"/\xff", None], ids=repr)
def test_an_error_travels_between_processes(
    kind: type[errors.MmapIoError], filename: str | bytes | None
) -> None:
    """A pool of workers hands errors on pickled; one that cannot be is an error about pickling instead."""
    error = kind(errno.EIO, "what happened", filename) if filename else kind(errno.EIO, "what happened")
    for trip in TRIPS:
        again = trip(error)
        assert type(again) is kind
        assert (again.errno, again.strerror, again.filename, str(again), again.args) == (
            error.errno,
            error.strerror,
            error.filename,
            str(error),
            error.args,
        )


def test_a_real_error_travels(tmp_path: Path) -> None:
    """As it is raised by native code, out of a child."""
    path = tmp_path / "file"
    with mmapio.create_mmap(path, 10) as mapped:

        def work() -> errors.MmapIoError | None:
            try:
                mapped.as_slice(5, 10)
            except errors.OutOfBounds as error:
                return error
            return None

        error = in_child(work)
        assert type(error) is errors.OutOfBounds
        assert (error.errno, error.filename) == (errno.EINVAL, str(path))
        assert "10 bytes at offset 5" in str(error)


def test_every_error_says_what_it_means() -> None:
    """A kind without a sentence is one that nobody can choose to catch."""
    for kind in KINDS:
        assert inspect.getdoc(kind) != inspect.getdoc(OSError)
        assert (kind.__doc__ or "").endswith(".")
