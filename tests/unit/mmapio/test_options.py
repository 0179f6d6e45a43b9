"""Flush policies are values."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable

import pytest

from mmapio import FlushPolicy

BOUNDS = [FlushPolicy.every_bytes, FlushPolicy.every_writes, FlushPolicy.every_millis]
CONSTANTS = [FlushPolicy.NEVER, FlushPolicy.MANUAL, FlushPolicy.ALWAYS]


def test_policies_compare_hash_and_show_as_they_are_written() -> None:
    """A policy out of a configuration file must be the same as one out of code."""
    made = [*CONSTANTS, *(bound(n) for bound in BOUNDS for n in (1, 1000))]
    assert len(set(made)) == len(made)
    for policy in made:
        assert eval(repr(policy), {"FlushPolicy": FlushPolicy}) == policy
        assert copy.copy(policy) == policy
        assert pickle.loads(pickle.dumps(policy)) == policy
        assert hash(pickle.loads(pickle.dumps(policy))) == hash(policy)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("wrong", [0, -1, -(2**70), 2**31, 2**64])
def test_a_bound_that_makes_no_sense_is_refused(bound: Callable[[int], FlushPolicy], wrong: int) -> None:
    """A bound of zero means always or never, depending on who reads it; a huge one wraps."""
    with pytest.raises(ValueError, match=f"between 1 and {2**31 - 1}, not {wrong}"):
        bound(wrong)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("wrong", [1.5, "1", None])
def test_a_bound_that_is_no_integer_is_refused(bound: Callable[[object], FlushPolicy], wrong: object) -> None:
    """Half a write is no bound."""
    with pytest.raises(TypeError):
        bound(wrong)


def test_a_policy_cannot_be_changed() -> None:
    """Handles that share it would change with it."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        FlushPolicy.MANUAL.bound = 5  # type: ignore[misc]
