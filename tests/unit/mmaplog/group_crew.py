"""Processes that share a group, some of them killed at moments of chance, and a judge of what they did.

Each says what it does in one file that all append to: handed out, committed. A line is one write, so their
order is one in which it can have happened, and nothing that was said is lost with who said it.
"""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from mmaplog import FlushPolicy, GroupMember, Log
from tests.support.waiting import PATIENCE_SECONDS

DEADLINE_SECONDS = PATIENCE_SECONDS


def storm(
    directory: Path, seed: int, *, count: int, kills: int, defect: Callable[[], object] | None = None
) -> list[str]:
    """Let four members read `count` records while so many are killed; what was wrong with it, in words.

    `defect` is called in each member before it begins.
    """
    chance = random.Random(seed)
    path, told = directory / "log", directory / "told"
    told.touch()
    telling = os.open(told, os.O_WRONLY | os.O_APPEND)
    alive: list[int] = []
    try:
        with Log.open(path, flush_policy=FlushPolicy.NEVER, segment_bytes=1 << 16) as log:
            log.append_many([b"%d" % number for number in range(count // 2)])
            log.group("g", batch=1).close()
            alive += [_member(path, telling, chance.random(), defect) for _ in range(4)]
            for _ in range(kills):
                time.sleep(chance.random() * 0.02)
                if log.committed < count:
                    log.append_many([b"%d" % log.committed] * min(count - log.committed, count // kills + 1))
                victim = alive.pop(chance.randrange(len(alive)))
                # Before it is dead, so that nobody can say that he found it so earlier.
                os.write(telling, b"%d killed\n" % victim)
                os.kill(victim, signal.SIGKILL)
                os.waitpid(victim, 0)
                alive.append(_member(path, telling, chance.random(), defect))
            log.append_many([b"x"] * (count - log.committed))
            deadline = time.monotonic() + DEADLINE_SECONDS
            while log.consumers()[0].committed < count and time.monotonic() < deadline:
                time.sleep(0.01)
            reached = log.consumers()[0].committed
    finally:
        for each in alive:
            os.kill(each, signal.SIGKILL)
            os.waitpid(each, 0)
        os.close(telling)
    complaints = judge(told.read_text().splitlines(), count)
    if reached != count:
        complaints.append(f"the group came to {reached} of {count}")
    return complaints


def judge(lines: list[str], count: int) -> list[str]:
    """What is wrong with what the members say they did."""
    found: list[str] = []
    given: dict[int, list[str]] = defaultdict(list)
    committed: dict[int, str] = {}
    dead: set[str] = set()
    for line in lines:
        who, what, *numbers = line.split()
        if what == "killed":
            dead.add(who)
        elif what == "failed":
            found.append(line)
        elif what == "given":
            seq = int(numbers[0])
            if seq in committed:
                found.append(f"record {seq} was given to {who} after {committed[seq]} had committed it")
            for other in given[seq]:
                if other == who or not dead & {other, other.partition(".")[0]}:
                    found.append(f"record {seq} was given to {who}, and to {other}, who lived")
            given[seq].append(who)
        elif what == "committed":
            committed |= dict.fromkeys(range(int(numbers[0]), int(numbers[1])), who)
    found += [f"record {seq} was given to nobody" for seq in range(count) if seq not in given]
    return found


def _member(path: Path, telling: int, seed: float, defect: Callable[[], object] | None) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.alarm(DEADLINE_SECONDS)
        if defect is not None:
            defect()
        _work(path, telling, random.Random(seed))
    except BaseException:
        text = traceback.format_exc().replace("\n", " ")
        os.write(telling, f"{os.getpid()} failed {text}\n".encode())
    finally:
        os._exit(1)


def _work(path: Path, telling: int, chance: random.Random) -> None:
    # Of a member: it is another one after it left and came again.
    times = 0
    name = f"{os.getpid()}.{times}"
    log = Log.open(path, "r")
    member: GroupMember = log.group("g", batch=chance.randint(1, 12))
    pending: list[int] = []

    def commit(stop: int | None) -> None:
        # Numbers of one claim follow each other, but claims need not.
        member.commit(stop, durable=chance.random() < 0.02)
        done = [seq for seq in pending if stop is None or seq < stop]
        for seq in done:
            os.write(telling, f"{name} committed {seq} {seq + 1}\n".encode())
        pending[:] = [seq for seq in pending if seq not in done]

    while True:
        entry = member.poll()
        if entry is None:
            commit(None)
            member.wait()
            continue
        pending.append(entry.seq)
        os.write(telling, f"{name} given {entry.seq}\n".encode())
        if chance.random() < 0.3:
            time.sleep(chance.random() * 0.001)
        if chance.random() < 0.2:
            commit(chance.choice([None, entry.seq, entry.seq + 1]))
        if chance.random() < 0.002:
            # It leaves; what it did not commit is others'.
            os.write(telling, f"{name} killed\n".encode())
            member.close()
            times += 1
            name = f"{os.getpid()}.{times}"
            pending.clear()
            member = log.group("g", batch=chance.randint(1, 12))
