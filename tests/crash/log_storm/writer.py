"""The processes that are killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmapio import _os
from mmaplog import Log
from tests.crash.log_storm.page import CALLS_MAX, NO_SEQ, Line
from tests.crash.log_storm.places import is_kept, key_of, place
from tests.crash.log_storm.plan import Call, Kind, LogPlan, Plan, Trap
from tests.crash.log_storm.records import Origin, payload_of

# How long the planted defect of acknowledging too early waits to be caught at it.
EARLY_SECONDS = 0.0002
LOOK_EVERY = 64


def open_log(path: Path, plan: Plan, log: LogPlan) -> Log:
    """As the writers of a round open it."""
    more: dict[str, Any] = {"shared": True} if plan.writers > 1 else {}
    return Log.open(path, "w", flush_policy=plan.policy, timestamps=log.timestamps, **more)


def set_trap(trap: Trap) -> None:
    """Have this process kill itself where the trap is."""
    real: Callable[..., object] = vars(_os)[trap.name]
    seen = 0

    def call(*arguments: object, **named: object) -> object:
        nonlocal seen
        seen += 1
        if seen == trap.nth and not trap.after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **named)
        if seen >= trap.nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    vars(_os)[trap.name] = call


def write(
    path: Path,
    plan: Plan,
    log_plan: LogPlan,
    writer: int,
    work: Iterator[Call],
    line: Line,
    acknowledges_early: bool,
    started: Callable[[], None],
) -> None:
    """Make the calls of a plan until killed, told to stop, or left alone; acknowledge each that returned."""
    log = open_log(path, plan, log_plan)
    if writer == 0 and plan.trap is not None:
        set_trap(plan.trap)
    parent = os.getppid()
    for number, call in enumerate(work, start=1):
        if line.stopping or number > CALLS_MAX or (number % LOOK_EVERY == 0 and os.getppid() != parent):
            break
        payloads = [
            payload_of(Origin(plan.round, writer, number, index, len(call.sizes), size))
            for index, size in enumerate(call.sizes)
        ]
        line.submit(number)
        if acknowledges_early:
            line.acknowledge(number, log.committed if call.kind.appends else NO_SEQ, 0)
            time.sleep(EARLY_SECONDS)
        seq, log = perform(log, call, payloads, lambda: open_log(path, plan, log_plan))
        said = log.durable if call.durable or call.kind is Kind.FLUSH else 0
        line.acknowledge(number, seq, said)
        if number == 1:
            started()
    log.close()


def perform(log: Log, call: Call, payloads: list[bytes], reopen: Callable[[], Log]) -> tuple[int, Log]:
    """Make a call. What it returned, as a number, and the log to go on with."""
    native: Any = log
    seq = NO_SEQ
    if call.kind is Kind.APPEND:
        seq = log.append(payloads[0], durable=call.durable)
    elif call.kind is Kind.MANY:
        seq = log.append_many(payloads, durable=call.durable).start
    elif call.kind is Kind.BATCH:
        with log.batch(durable=call.durable) as batch:
            for payload in payloads:
                batch.append(payload)
        assert batch.seqs is not None
        seq = batch.seqs.start
    elif call.kind is Kind.RESERVE:
        reservation = log.reserve(len(payloads[0]), durable=call.durable)
        with reservation as buffer:
            # Piece by piece, so that a kill may come in between.
            for at in range(0, len(buffer), 64):
                buffer[at : at + 64] = payloads[0][at : at + 64]
        assert reservation.seq is not None
        seq = reservation.seq
    elif call.kind is Kind.FLUSH:
        log.flush()
    elif call.kind is Kind.REOPEN:
        log.close()
        log = reopen()
    elif call.kind is Kind.TRUNCATE_BEFORE:
        native.truncate_before(place(native.first_seq, log.committed, call.share))
        seq = native.first_seq
    elif call.kind is Kind.TRUNCATE_AFTER:
        native.truncate_after(place(native.first_seq, log.committed, call.share))
    elif call.kind is Kind.RETAIN:
        seq = native.retain(max_records=place(0, log.committed - native.first_seq, call.share))
    elif call.kind is Kind.COMPACT:
        native.compact(lambda entry: is_kept(entry.seq, call.share))
    else:
        native.compact(key=lambda entry: key_of(entry.seq, call.share))
    return seq, log
