"""What a store must hold after a crowd has written to it, as far as their parent can know."""

from __future__ import annotations

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

    def follow(self, seed: int, round_number: int, writer: int, acknowledged: int) -> Operation:
        """Take part in what a writer got an answer to. Returns what it did, or would have done, next."""
        stream = operations(seed, round_number, writer)
        for operation in islice(stream, acknowledged):
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
        for writer in range(WRITERS):
            prefix = b"w%d/" % writer
            own = {key: rest.pop(key) for key in found if key.startswith(prefix)}
            allowed = [self.own[writer]]
            if writer in pending:
                allowed += states(self.own[writer], pending[writer])
            if own not in allowed:
                wrong += [f"writer {writer}: {text}" for text in _compared(own, allowed[0])]
            self.own[writer] = own
        for key, value in self.sums.items():
            steps = [each.amount for each in pending.values() if target_of(each) == key]
            sums = {value + sum(some) for some in _subsets(steps)}
            number = int(rest.pop(key, b"0"))
            if number not in sums:
                wrong.append(f"{key!r} is {number}, should be one of {sorted(sums)}")
            self.sums[key] = number
        if int(rest.pop(DEBIT, b"0")) != -self.sums[CREDIT]:
            wrong.append("a transaction took effect by half")
        wrong += [f"{key!r} was never written" for key in rest]
        return wrong


def states(own: State, operation: Operation) -> list[State]:
    """What a writer's keys are after an operation; before that, what they may be for a moment."""
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
