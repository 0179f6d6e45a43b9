"""For the tests of async twins: back-ends, a file, and calls that are held up until somebody lets them go."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mmapio.file import MemoryMappedFile
from tests.support.waiting import PATIENCE_SECONDS

if find_spec("anyio") is None:
    pytest.skip("no anyio: NOT TESTED that there are async twins at all", allow_module_level=True)

import anyio
from anyio import to_thread

__all__ = [
    "DEADLINE_SECONDS",
    "SIZE",
    "Gate",
    "anyio",
    "gated_class",
    "on_each_backend",
    "run",
    "sample",
    "to_thread",
]

DEADLINE_SECONDS = PATIENCE_SECONDS

SIZE = 8192

_TRIO = pytest.mark.skipif(find_spec("trio") is None, reason="no trio: NOT TESTED that twins run on trio")

on_each_backend = pytest.mark.parametrize("backend", ["asyncio", pytest.param("trio", marks=_TRIO)])


def run(backend: str, main: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine function in an event loop of its own, for so long as a test may take."""

    async def bounded() -> None:
        with anyio.fail_after(DEADLINE_SECONDS):
            await main()

    anyio.run(bounded, backend=backend)


def sample(directory: Path) -> Path:
    """A file of SIZE bytes that are not all alike."""
    made = directory / "file"
    made.write_bytes(bytes(range(256)) * (SIZE // 256))
    return made


class Gate:
    """Holds up calls in their threads until it is opened. Made in the thread of the event loop."""

    def __init__(self) -> None:
        self._loop = threading.get_ident()
        self._entered = threading.Event()
        self._opened = threading.Event()
        self.passed = 0

    def open(self) -> None:
        self._opened.set()

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, but through the gate."""

        def gated(*args: Any, **options: Any) -> Any:
            if not self._opened.is_set():
                assert threading.get_ident() != self._loop, "the event loop itself made the call"
                self._entered.set()
                assert self._opened.wait(DEADLINE_SECONDS), "the event loop did not go on"
            self.passed += 1
            return call(*args, **options)

        return gated

    async def entered(self) -> None:
        """Wait until a call is held up."""
        assert await to_thread.run_sync(self._entered.wait, DEADLINE_SECONDS), "no call came"


def gated_class(gate: Gate, name: str) -> type[MemoryMappedFile]:
    """A class one of whose methods goes through the gate."""
    original = inspect.getattr_static(MemoryMappedFile, name)
    if isinstance(original, classmethod):
        gated: Any = classmethod(gate.before(original.__func__))
    else:
        gated = gate.before(original)
    return type("Gated", (MemoryMappedFile,), {"__slots__": (), name: gated})
