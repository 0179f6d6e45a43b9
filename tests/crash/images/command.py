"""The command of a suite of images: so many of them, in a process behind the recording library.

Everything follows from the seed but times and what is drawn from the system (ids of segments), on which no
choice depends.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from tests.crash.images import shim
from tests.crash.images.runner import Options, Runner
from tests.crash.images.subject import Subject

EXIT_VIOLATED = 1
SILENCE_SECONDS_MAX = 300
MEMORY = Path("/dev/shm")
PROGRESS = "working-on"
PREFIX = "crash-images-"


def main(subject: Subject, about: str | None, arguments: Sequence[str] | None = None) -> int:
    """Look at as many images as the command line asks for; 0 when nothing was violated."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.crash.{subject.command}", description=about)
    parser.add_argument("--images", type=int, default=10_000, help="how many images to open (10,000)")
    parser.add_argument("--seed", type=int, default=1, help="what everything is drawn from (1)")
    parser.add_argument("--first-workload", type=int, default=1, help="the workload to begin with (1)")
    parser.add_argument(
        "--dir", type=Path, help="where wrong ones are kept; a temporary directory if not given"
    )
    parser.add_argument("--defect", choices=subject.defects, help="plant a defect, which must be caught")
    chosen = parser.parse_args(arguments)
    if min(chosen.images, chosen.first_workload) < 1:
        parser.error("--images and --first-workload are at least 1")
    if chosen.dir is not None and not chosen.dir.is_dir():
        parser.error(f"--dir {chosen.dir}: not a directory; make it first, or leave the option out")
    if shim.is_loaded():
        return _run(subject, chosen)
    return _run_behind_the_shim(subject, sys.argv[1:] if arguments is None else list(arguments), chosen)


def _run_behind_the_shim(subject: Subject, arguments: list[str], chosen: argparse.Namespace) -> int:
    # In a process of its own, which may die of what it opens.
    scratch = Path(tempfile.mkdtemp(prefix=PREFIX, dir=MEMORY if os.access(MEMORY, os.W_OK) else chosen.dir))
    try:
        environment = {**os.environ, "LD_PRELOAD": str(shim.build(scratch)), "TMPDIR": str(scratch)}
        command = [sys.executable, "-m", f"tests.crash.{subject.command}", *arguments]
        done = subprocess.run(command, env=environment, check=False)
        if done.returncode < 0:
            where = (scratch / PROGRESS).read_text()
            print(f"VIOLATION: died of {signal.Signals(-done.returncode).name} at {where}")
            print(f"  seed {chosen.seed}")
            return EXIT_VIOLATED
        return done.returncode
    except shim.NoCompiler as error:
        print(f"NOT RUN: {error}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(scratch)


def _run(subject: Subject, chosen: argparse.Namespace) -> int:
    scratch = Path(os.environ["TMPDIR"])
    kept = Path(tempfile.mkdtemp(prefix=PREFIX, dir=chosen.dir or scratch.parent))
    draw = random.Random(chosen.seed)
    # Ids of segments and logs, so that a run can be repeated.
    os.getrandom = lambda size, flags=0: draw.randbytes(size)
    uuid.uuid4 = lambda: uuid.UUID(int=draw.getrandbits(128), version=4)
    progress = os.open(scratch / PROGRESS, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    options = Options(
        subject=subject,
        seed=chosen.seed,
        images=chosen.images,
        first_workload=chosen.first_workload,
        scratch=scratch,
        kept=kept,
        defect=chosen.defect,
        report=lambda text: print(text, flush=True),
        working_on=lambda text: _note(progress, text),
    )
    logging.disable(logging.WARNING)
    gc.freeze()
    begun = time.perf_counter()
    result = Runner(options).run()
    print(f"images opened  {result.images:,}")
    print(f"violations     {result.violations:,}")
    for what, count in sorted(result.counts.items()):
        print(f"{what}  {count:,}")
    print(f"seed {chosen.seed}, {time.perf_counter() - begun:.0f} s")
    if result.violations:
        print(f"The violating images are kept in {kept}.")
        return EXIT_VIOLATED
    shutil.rmtree(kept)
    return 0


def _note(progress: int, text: str) -> None:
    # An image that never opens ends the process, as a fault would.
    signal.alarm(SILENCE_SECONDS_MAX)
    os.pwrite(progress, text.ljust(60).encode(), 0)
