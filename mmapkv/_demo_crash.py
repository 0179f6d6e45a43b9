"""The second load of the demo: a child process writes, and is killed in the middle of it.

The child is a new interpreter, not a fork. The parent may run threads (the store's flusher, the
progress bar), and a forked child of a process with threads may deadlock in any lock one of them
held; CPython warns about it from 3.12 on. A new interpreter inherits nothing: it opens the store
like any other program, which is what the demo wants to show.

Each time a put has returned, the child writes one byte to a pipe. What is in a pipe outlives its
writer, so the parent knows exactly which writes were acknowledged: the child puts in a fixed order,
and the n bytes that were read, before and after the kill, stand for the first n puts. The next put
may have been in flight. Nothing later was ever submitted.
"""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from mmapkv.store import KVStore
from mmaplog._progress import Bar, progress

__all__ = ["ChildError", "Kill", "SecondLoad", "child_main", "kill_mid_way"]

KILL_ATTEMPTS_MAX = 8
PUTS_PER_ATTEMPT_MIN = 2_000
REPEATED_BYTES_MAX = 64 << 20
CHILD_SILENCE_S_MAX = 60
ACKNOWLEDGEMENT = b"+"

# Relative paths do not begin with a slash, so no file of any directory has such a key.
SECOND_KEY_PREFIX = b"/again/"

# The child imports what the parent imports, wherever that came from; `-m` would put the working
# directory first, where a source checkout without its native modules may lie.
CHILD_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from mmapkv._demo_crash import child_main; sys.exit(child_main(sys.argv[2:]))"
)


class ChildError(OSError):
    """The loading child did not do its part."""


@dataclass(frozen=True)
class SecondLoad:
    """What one child is to write, in its order: every file again, `rounds` times.

    Each key and each value carries the attempt and the round, so nothing that another load wrote
    can be taken for it. A value begins with its own key.
    """

    attempt: int
    rounds: int
    sources: Sequence[bytes]
    """The keys of the first load, sorted."""

    def __len__(self) -> int:
        return self.rounds * len(self.sources)

    def source(self, index: int) -> bytes:
        """The key of the first load whose value is written again by put number `index`."""
        return self.sources[index % len(self.sources)]

    def key(self, index: int) -> bytes:
        """The key of put number `index`."""
        numbers = b"%d/%d/" % (self.attempt, index // len(self.sources))
        return SECOND_KEY_PREFIX + numbers + self.source(index)

    def stamp(self, index: int) -> bytes:
        """What the value of put number `index` begins with; the content of the file follows."""
        return self.key(index) + b"\n"


@dataclass(frozen=True)
class Kill:
    """What one child was to write, and how many of its writes had been acknowledged when it died."""

    load: SecondLoad
    acknowledged: int


def kill_mid_way(store: str, keys: Sequence[bytes], content_bytes: int) -> list[Kill]:
    """Let a child load `keys` again and kill it when some puts are acknowledged and some are not.

    `content_bytes` is the size of all values of `keys` together. A child that was done too soon is
    followed by another with twice the work, killed after a smaller part of it. The result holds
    every child; the last one was killed mid-way. The store must be closed. Raises ChildError when
    a child fails by itself, falls silent, or is too fast each time.
    """
    kills = []
    rounds = _rounds(len(keys), content_bytes)
    for attempt in range(KILL_ATTEMPTS_MAX):
        load = SecondLoad(attempt, rounds << attempt, keys)
        kill_at = max(1, len(load) >> (attempt + 1))
        with progress("second load", len(load), "puts") as bar:
            acknowledged = _run_and_kill(store, load, kill_at, bar)
        kills.append(Kill(load, acknowledged))
        if acknowledged < len(load):
            return kills
    raise ChildError(f"the child completed its load before it could be killed, {KILL_ATTEMPTS_MAX} times")


def _rounds(files: int, content_bytes: int) -> int:
    """How often a small directory is loaded again, so that there is a middle to kill the child in."""
    wanted = -(-PUTS_PER_ATTEMPT_MIN // files)
    affordable = REPEATED_BYTES_MAX // max(content_bytes, 1)
    return max(min(wanted, affordable), 2 if files == 1 else 1)


def _run_and_kill(store: str, load: SecondLoad, kill_at: int, bar: Bar) -> int:
    """Run a child and kill it after `kill_at` acknowledgements; the number it gave in its life."""
    command = [sys.executable, "-P", "-c", CHILD_PROGRAM, json.dumps(sys.path)]
    command += [store, str(load.attempt), str(load.rounds)]
    child = subprocess.Popen(
        command,
        bufsize=0,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        # The child can be no further ahead of us than the pipe holds, so a load that is long enough
        # is always caught in the middle, however slowly this process is scheduled.
        pipesize=select.PIPE_BUF,
        # Ctrl-C is for the parent, which then kills the child.
        process_group=0,
    )
    with child:
        try:
            acknowledged = _count(child, kill_at, bar)
        finally:
            child.kill()
        # What it still wrote between our last read and its death was acknowledged, too.
        acknowledged += _count(child, None, bar)
    if child.returncode not in (0, -signal.SIGKILL) or acknowledged < kill_at:
        raise ChildError(
            f"the loading child ended by itself with status {child.returncode} after {acknowledged:,} writes"
        )
    return acknowledged


def _count(child: subprocess.Popen[bytes], enough: int | None, bar: Bar) -> int:
    """Read acknowledgements until there are `enough` or the child is gone."""
    assert child.stdout is not None
    poll = select.poll()
    poll.register(child.stdout, select.POLLIN)
    count = 0
    while enough is None or count < enough:
        if not poll.poll(CHILD_SILENCE_S_MAX * 1000):
            raise ChildError(f"the loading child acknowledged no write for {CHILD_SILENCE_S_MAX} s")
        received = child.stdout.read(select.PIPE_BUF)
        if not received:
            break
        if received.strip(ACKNOWLEDGEMENT):
            raise ChildError(
                f"the loading child acknowledged with {received[:80]!r}, expected {ACKNOWLEDGEMENT!r}"
            )
        count += len(received)
        bar.advance(len(received))
    return count


def child_main(arguments: Sequence[str]) -> int:
    """The child: load again what the store holds, and acknowledge each put on stdout.

    Values are copied from the first load in the store, not from the files, which may have changed.
    """
    store, attempt, rounds = arguments
    # Whatever else prints must not be taken for an acknowledgement.
    acknowledgements = sys.stdout.buffer
    sys.stdout = sys.stderr
    with KVStore.open(store, "w") as kv:
        sources = sorted(key for key in kv if not key.startswith(SECOND_KEY_PREFIX))
        load = SecondLoad(int(attempt), int(rounds), sources)
        for index in range(len(load)):
            kv.put(load.key(index), load.stamp(index) + kv[load.source(index)])
            try:
                acknowledgements.write(ACKNOWLEDGEMENT)
                # What is still in a buffer would die with the process.
                acknowledgements.flush()
            except BrokenPipeError:
                # The parent is gone, and with it the reason to go on.
                return 1
    return 0
