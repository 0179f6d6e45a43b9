"""What a store must hold after a crowd has written to it, as far as their parent can know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, combinations, islice

from tests.crash.crowd.operations import (
    COUNTERS,
    CREDIT,
    DEBIT,
    JOURNAL_BYTES_MAX,
    WRITERS,
    Kind,
    Operation,
    counter,
    operations,
)

State = dict[bytes, bytes]


class Model:
    """The keys of each writer, and the numbers that all of them add to."""

    def __init__(self) -> None:
        self.own: list[State] = [{} for _ in range(WRITERS)]
        self.sums = {counter(number): 0 for number in range(COUNTERS)} | {CREDIT: 0}
        # What each did in this round, and got an answer to.
        self.done: list[list[Operation]] = [[] for _ in range(WRITERS)]

    def follow(self, seed: int, round_number: int, writer: int, acknowledged: int) -> Operation:
        """Take part in what a writer got an answer to. Returns what it did, or would have done, next."""
        stream = operations(seed, round_number, writer)
        self.done[writer] = list(islice(stream, acknowledged))
        for operation in self.done[writer]:
            self.own[writer] = states(self.own[writer], operation)[-1]
            target = target_of(operation)
            if target:
                self.sums[target] += operation.amount
        return next(stream)

    def differences(self, found: State, pending: dict[int, Operation]) -> list[str]:
        """What is wrong with the content of a store, when the operations in flight may have taken effect.

        From then on the model is what was found.
        """
        wrong = []
        rest = dict(found)
        cleared = any(each.kind is Kind.CLEAR for each in chain.from_iterable(self.done))
        clearing = cleared or any(each.kind is Kind.CLEAR for each in pending.values())
        for writer in range(WRITERS):
            prefix = b"w%d/" % writer
            own = {key: rest.pop(key) for key in found if key.startswith(prefix)}
            before = [] if cleared else [self.own[writer]]
            allowed = chain(before, self._since_a_clear(writer) if clearing else ())
            if not any(own in _with(state, pending.get(writer)) for state in allowed):
                found_wrong = _compared(own, self.own[writer]) or ["there is what another one cleared"]
                wrong += [f"writer {writer}: {text}" for text in found_wrong]
            self.own[writer] = own
        for key, value in self.sums.items():
            steps = [each.amount for each in pending.values() if target_of(each) == key]
            sums = {value + sum(some) for some in _subsets(steps)}
            number = int(rest.pop(key, b"0"))
            if clearing:
                # Any part of it may have been added since.
                sums = set(range(max(sums) + 1))
            if clearing and number not in sums:
                wrong.append(f"{key!r} is {number}, should be {max(sums)} at most")
            elif number not in sums:
                wrong.append(f"{key!r} is {number}, should be one of {sorted(sums)}")
            self.sums[key] = number
        if int(rest.pop(DEBIT, b"0")) != -self.sums[CREDIT]:
            wrong.append("a transaction took effect by half")
        wrong += [f"{key!r} was never written" for key in rest]
        return wrong

    def _since_a_clear(self, writer: int) -> Iterator[State]:
        # Another one's, wherever it was among what this one has done since it cleared by itself.
        done = self.done[writer]
        own = [at for at, each in enumerate(done, start=1) if each.kind is Kind.CLEAR]
        for start in range(max(own, default=0), len(done) + 1):
            yield _after({}, done[start:])


def states(own: State, operation: Operation) -> list[State]:
    """What a writer's keys are after an operation; before that, what they may be for a moment."""
    if operation.kind is Kind.CLEAR:
        return [{}]
    made = dict(own)
    if operation.kind is Kind.JOURNAL:
        ((key, more),) = operation.changes.items()
        assert more is not None
        made[key] = made.get(key, b"") + more
        return (
            [made, {at: made[at] for at in made if at != key}]
            if len(made[key]) > JOURNAL_BYTES_MAX
            else [made]
        )
    for key, value in operation.changes.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = value
    return [made]


def _after(own: State, done: Iterable[Operation]) -> State:
    for operation in done:
        if operation.changes or operation.kind is Kind.CLEAR:
            own = states(own, operation)[-1]
    return own


def _with(own: State, pending: Operation | None) -> list[State]:
    return [own] if pending is None else [own, *states(own, pending)]


def target_of(operation: Operation) -> bytes:
    """The number that an operation adds to, or nothing."""
    return CREDIT if operation.kind is Kind.MOVE else operation.target


def _subsets(steps: list[int]) -> list[tuple[int, ...]]:
    return list(chain.from_iterable(combinations(steps, size) for size in range(len(steps) + 1)))


def _compared(found: State, expected: State) -> list[str]:
    keys = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
    return [f"{key!r} is {_shown(found.get(key))}, should be {_shown(expected.get(key))}" for key in keys[:5]]


def _shown(value: bytes | None) -> str:
    return "absent" if value is None else f"{value[:20]!r} ({len(value)} bytes)"
