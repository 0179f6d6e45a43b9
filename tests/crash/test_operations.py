"""That a round can be drawn again, and holds what a storm needs."""

from __future__ import annotations

import itertools
from collections import Counter

from tests.crash.operations import Kind, belongs, operations, value_of, version_in
from tests.crash.plan import Plan

DRAWN = 2000


def test_a_round_can_be_drawn_again() -> None:
    # Otherwise the seed that a violation is reported with would be worth nothing.
    first, second = (list(itertools.islice(operations(Plan.draw(3, 14, 100)), DRAWN)) for _ in range(2))
    assert first == second
    assert first != list(itertools.islice(operations(Plan.draw(3, 15, 100)), DRAWN))


def test_a_value_tells_which_write_it_comes_from() -> None:
    # Two writes with the same value, or one value for two keys, would hide a mix-up.
    puts = [
        made for made in itertools.islice(operations(Plan.draw(1, 1, 100)), DRAWN) if made.kind is Kind.PUT
    ]
    long = [made for made in puts if made.version.size >= 20]
    assert len({value_of(made.key, made.version) for made in long}) == len(long)
    for made in long:
        value = value_of(made.key, made.version)
        assert len(value) == made.version.size
        assert version_in(made.key, value) == made.version
        assert not belongs(made.key + b"x", value)
        assert not belongs(made.key, value[:-1] + bytes([value[-1] ^ 1]))


def test_the_rounds_differ_in_all_that_matters() -> None:
    # A storm that never rolls, deletes, syncs or loses a file would leave that unproven.
    plans = [Plan.draw(1, number, 100) for number in range(1, 301)]
    kinds = Counter(made.kind for plan in plans[:50] for made in itertools.islice(operations(plan), 500))
    assert set(kinds) == set(Kind)
    assert {plan.lost for plan in plans} == {(), ("CONTROL",), ("INDEX",), ("CONTROL", "INDEX")}
    assert len({plan.policy for plan in plans}) >= 7
    for flag in (
        "at_once",
        "reader_first",
        "closes_cleanly",
        "recovery_kill_us",
        "durable",
        "large",
        "batches",
        "compactions",
        "compacts_at",
        "background",
        "snapshots",
        "clears",
    ):
        assert len({bool(getattr(plan, flag)) for plan in plans}) == 2, flag
