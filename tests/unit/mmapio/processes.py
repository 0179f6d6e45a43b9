"""Running a piece of work in another process: forked, unprivileged, killed, or started from nothing."""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from tests.support.waiting import PATIENCE_SECONDS

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[3]

#: A child that has not answered by then hangs.
TIMEOUT_SECONDS = PATIENCE_SECONDS


def in_child(work: Callable[[], T]) -> T:
    """What `work` returns in a forked child. Its exception is raised here; a signal is an AssertionError."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _work_and_exit(work, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        raw = answer.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, f"the child ended with {status}"
    result, error = pickle.loads(raw)
    if error is not None:
        raise AssertionError(f"in the child:\n{error}")
    return result  # type: ignore[no-any-return]


def _work_and_exit(work: Callable[[], Any], writing: int) -> NoReturn:
    # Never back into pytest: whatever happens ends here.
    signal.alarm(TIMEOUT_SECONDS)
    answer: tuple[Any, str | None]
    try:
        answer = work(), None
    except BaseException:
        answer = None, traceback.format_exc()
    os.write(writing, pickle.dumps(answer))
    os._exit(0)


@contextmanager
def living_child(work: Callable[[], object]) -> Iterator[int]:
    """Do `work` in a forked child that stays alive, with what `work` returned, until the block ends.

    Yields its pid. It goes by SIGKILL.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            held = work()
            os.write(writing, b"y")
            signal.alarm(TIMEOUT_SECONDS)
            while held is not signal:
                signal.pause()
        except BaseException:
            os.write(writing, traceback.format_exc().encode())
        finally:
            os._exit(1)
    os.close(writing)
    try:
        answer = os.read(reading, 65536).decode()
        assert answer == "y", f"in the child:\n{answer}"
        yield pid
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def killed_after(work: Callable[[], object]) -> None:
    """Do `work` in a forked child and kill it there and then, with whatever it has open."""

    def then_die() -> None:
        try:
            work()
        except BaseException:
            os.write(2, traceback.format_exc().encode())
            os._exit(1)
        os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        signal.alarm(TIMEOUT_SECONDS)
        then_die()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == -signal.SIGKILL, f"the child ended with {status}"


def outcome(work: Callable[[], object]) -> tuple[str, str]:
    """("", "") when `work` succeeds, else the exception's type and text; both travel between processes."""
    try:
        work()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def give_up_privileges() -> None:
    """Make this process an ordinary user's: file permissions count from now on, even for root."""
    libc = ctypes.CDLL(None, use_errno=True)
    version_3 = 0x20080522
    header = struct.pack("<Ii", version_3, 0)
    if libc.capset(header, bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def unprivileged(work: Callable[[], T]) -> T:
    """As `in_child`, where file permissions count even when the tests run as root."""

    def without() -> T:
        give_up_privileges()
        return work()

    return in_child(without)


def run_python(
    code: str, *arguments: object, preload: Path | None = None, prefix: tuple[str, ...] = ()
) -> Any:
    """Run `code` in a fresh interpreter and return what it passes to `answer()`.

    The code finds `arguments` in the list of the same name. `preload` is a library for LD_PRELOAD, `prefix` a
    command in front of the interpreter.
    """
    prologue = (
        "import json, sys\n"
        f"sys.path.append({str(ROOT)!r})\n"
        "arguments = json.loads(sys.argv[1])\n"
        "def answer(value): print('answer ' + json.dumps(value), flush=True)\n"
    )
    environment = dict(os.environ)
    if preload is not None:
        # Behind what is preloaded already: a sanitizer's library has to come first.
        environment["LD_PRELOAD"] = ":".join(filter(None, [os.environ.get("LD_PRELOAD"), str(preload)]))
    command = [*prefix, sys.executable, "-c", prologue + code, json.dumps(arguments, default=str)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_SECONDS, check=False
    )
    assert done.returncode == 0, f"the child ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    answers = [line for line in done.stdout.splitlines() if line.startswith("answer ")]
    assert answers, f"the child did not answer:\n{done.stdout}{done.stderr}"
    return json.loads(answers[-1].removeprefix("answer "))
