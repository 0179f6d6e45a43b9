"""What a consumer or a member of a group hands out."""

from __future__ import annotations

from mmaplog import Consumer, GroupMember
from tests.support.waiting import PATIENCE_SECONDS

DEADLINE = PATIENCE_SECONDS


def seqs(subscription: Consumer | GroupMember, count: int | None = None) -> list[int]:
    """The numbers of what it hands out: so many, or all that there is."""
    found: list[int] = []
    while len(found) != count:
        entry = subscription.poll()
        if entry is None:
            break
        found.append(entry.seq)
    return found
