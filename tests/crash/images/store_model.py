"""What a store must hold after a power cut: all of its commits up to one of them, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

CONTENT_SHOWN = 3


class Change(NamedTuple):
    """A key that got a value, or lost it (None). One that expired at once is counted, and not to be seen."""

    key: bytes
    value: bytes | None
    is_seen: bool = True


CLEAR = Change(b"", None)
"""All keys lost their values, by one record. No key is empty."""

Pairs = dict[bytes, Change]
"""The keys that are counted, in the order of their last change."""


class Commit(NamedTuple):
    """Changes that are there together or not at all, and the number of the next record behind them."""

    seq: int
    changes: tuple[Change, ...]


class Found(NamedTuple):
    """What an open store showed: by its log, by a walk, and by looking each key up."""

    committed: int
    count: int
    walked: list[tuple[bytes, bytes]]
    looked_up: dict[bytes, bytes | None]


@dataclass(frozen=True)
class Expected:
    """The commits in their order, and the number below which everything was durable."""

    commits: tuple[Commit, ...] = (Commit(0, ()),)
    floor: int = 0

    def then(self, *groups: Sequence[Change]) -> Self:
        """The same with these groups of changes, each a commit if it changes anything."""
        commits = list(self.commits)
        pairs = contents(commits)
        for group in groups:
            changes = effective(group, pairs)
            if changes:
                commits.append(Commit(commits[-1].seq + len(changes), changes))
                apply(changes, pairs)
        return replace(self, commits=tuple(commits))

    def at(self, committed: int) -> Pairs | None:
        """What the store held at a number of its log; None when no commit ended there."""
        if all(commit.seq != committed for commit in self.commits):
            return None
        return contents([commit for commit in self.commits if commit.seq <= committed])

    def settled(self, floor: int, end: int | None = None) -> Self:
        """The same with all below `floor` durable, in one commit; nothing from `end` on, if given."""
        kept = [commit for commit in self.commits if end is None or commit.seq <= end]
        old = [commit for commit in kept if commit.seq <= floor] or kept[:1]
        base = Commit(old[-1].seq, tuple(contents(old).values()))
        return replace(self, commits=(base, *kept[len(old) :]), floor=floor)

    def complaints(self, found: Found) -> list[str]:
        """What keeps a store that was found from being this one."""
        if found.committed < self.floor:
            return [f"the log ends before {found.committed}, but what is below {self.floor} was durable"]
        pairs = self.at(found.committed)
        if pairs is None:
            ends = [commit.seq for commit in self.commits if commit.seq >= self.floor]
            return [f"the log ends before {found.committed}, but commits ended before {ends}"]
        seen = [(key, change.value) for key, change in pairs.items() if change.is_seen]
        wrong = []
        # What has expired counts until a compaction or sweep takes it away.
        if not len(seen) <= found.count <= len(pairs):
            wrong.append(f"len() is {found.count}, should be from {len(seen)} to {len(pairs)}")
        if found.walked != seen:
            wrong.append(f"before {found.committed}, a walk {_difference(dict(found.walked), dict(seen))}")
        values = dict(seen)
        right = {key: values.get(key) for key in found.looked_up}
        if found.looked_up != right:
            wrong.append(f"before {found.committed}, a look-up {_difference(found.looked_up, right)}")
        return wrong


def effective(group: Sequence[Change], pairs: Pairs) -> tuple[Change, ...]:
    """Those of one commit's changes that make a record: of each key the last, deletions of what is there."""
    last = {change.key: at for at, change in enumerate(group)}
    return tuple(
        change
        for at, change in enumerate(group)
        if last[change.key] == at
        and (change.value is not None or (pairs if change == CLEAR else change.key in pairs))
    )


def apply(changes: Sequence[Change], pairs: Pairs) -> None:
    """Make changes."""
    for change in changes:
        if change == CLEAR:
            pairs.clear()
        pairs.pop(change.key, None)
        if change.value is not None:
            pairs[change.key] = change


def contents(commits: Sequence[Commit]) -> Pairs:
    """What is there after all of these commits."""
    pairs: Pairs = {}
    for commit in commits:
        apply(commit.changes, pairs)
    return pairs


def _difference(found: Mapping[bytes, bytes | None], right: Mapping[bytes, bytes | None]) -> str:
    # One of order has no key of its own.
    wrong = [key for key in {**found, **right} if found.get(key) != right.get(key)]
    if not wrong:
        return "is in another order"
    shown = [f"{key[:40]!r} is {_short(found.get(key))}, not {_short(right.get(key))}" for key in wrong]
    return f"is wrong about {len(wrong)} keys: {'; '.join(shown[:CONTENT_SHOWN])}"


def _short(value: bytes | None) -> str:
    if value is None:
        return "absent"
    return repr(value) if len(value) <= 32 else f"{value[:32]!r}... ({len(value)} bytes)"
