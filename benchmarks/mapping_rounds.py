"""Runs the workloads of the mapping layer: the harness' turns, taken by statements on stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from .adapters import Form, Peer, Stage
from .adapters.peer import Task
from .harness import LOOP, Result, Row, Turn, in_order
from .mapping_workloads import Act, MappedWorkload


def run(
    workloads: Sequence[MappedWorkload],
    peers: Sequence[type[Peer]],
    directory: Path,
    rounds: int,
    progress: Callable[[str], None] = lambda message: None,
) -> list[Result]:
    """Take so many samples of every statement: all workloads in each round, and in each the peers in turn.

    Whatever else keeps the machine busy for a while so spoils one sample each, and not all samples of one.
    Raises `WrongAnswer` as soon as a statement did not do what it must.
    """
    with ExitStack() as stack:
        casts = [_cast(workload, peers, directory, stack) for workload in workloads]
        for number in range(rounds):
            for workload, actors in zip(workloads, casts, strict=True):
                for _ in range(workload.tries):
                    for turn in in_order([actor.turn() for actor in actors]):
                        progress(f"round {number + 1}/{rounds} {workload.name} {turn.row.rival}")
                        turn.take()
                for actor in actors:
                    actor.row.samples[number:] = [min(actor.row.samples[number:])]
        return [
            Result(workload, [actor.row for actor in actors])
            for workload, actors in zip(workloads, casts, strict=True)
        ]


def _cast(
    workload: MappedWorkload, peers: Sequence[type[Peer]], directory: Path, stack: ExitStack
) -> list[_Actor]:
    actors = [
        _Actor(workload, peer, Row(peer.name, Form.STATEMENT, text, main=rank == 0), directory, stack)
        for peer in peers
        for rank, text in enumerate(peer.statements.get(workload.name, ()))
    ]
    if workload.has_loop:
        actors.append(_Actor(workload, None, Row(LOOP, None, "pass"), directory, stack))
    return actors


class _Actor:
    """One statement of one peer, or of nobody, with a file of its own.

    Its stage stands for all samples, or for one where the workload wants every file new.
    """

    def __init__(
        self, workload: MappedWorkload, peer: type[Peer] | None, row: Row, directory: Path, stack: ExitStack
    ) -> None:
        self.row = row
        self._workload = workload
        self._peer = peer
        self._directory = directory
        self._stack = stack
        self._standing: Act | None = None

    def turn(self) -> Turn[Act]:
        """Return the next turn."""
        stage = self._stack.enter_context(ExitStack())
        return Turn(
            self.row,
            prepare=lambda: self._prepare(stage),
            run=self._workload.sample,
            check=lambda act: self._check(act, stage),
            ballast_bytes=self._workload.ballast_bytes,
        )

    def _prepare(self, stage: ExitStack) -> Act:
        if self._workload.fresh:
            act = self._new_act(stage)
        else:
            if self._standing is None:
                self._standing = self._new_act(self._stack)
            act = self._standing
        self._workload.begin(act)
        return act

    def _new_act(self, stack: ExitStack) -> Act:
        path = self._directory / f"{self._workload.name}-{id(self):x}"
        stack.callback(path.unlink, missing_ok=True)
        if self._peer is None:
            return self._ready(Act("pass", {}, Stage({}), path))
        if not self._workload.fresh:
            self._workload.make_file(path)
        operands = self._workload.operands()
        task = Task(self._workload.name, path, self._workload.file_bytes, operands)
        stage = stack.enter_context(self._peer().stage(task))
        return self._ready(Act(self.row.spelling, operands, stage, path))

    def _ready(self, act: Act) -> Act:
        self._workload.calibrate(act)
        return act

    def _check(self, act: Act, stage: ExitStack) -> None:
        if self._peer is not None:
            self._workload.check(act)
            self.row.note = act.stage.note()
        stage.close()
