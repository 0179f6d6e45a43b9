"""What happens to a group's table of claims. No file, no lock and no log in here: numbers only.

A place has `next`, the first number that nobody was handed, and claims, each some numbers below it that were
handed to a member and are not committed. What is below `next` and in no claim was processed; `seq` is the
least number that was not.
"""

from __future__ import annotations

from collections.abc import Callable

from mmaplog.bookmark_format import CLAIMS_MAX, NOBODY, Claim, Place


def settle(place: Place) -> None:
    """Take out the claims that have nothing left, and find `seq` anew."""
    place.claims = [each for each in place.claims if each.at < each.stop]
    place.seq = min([place.next, *(each.at for each in place.claims)])


def take_over(place: Place, member: int, count: int, is_gone: Callable[[int], bool]) -> bool:
    """Give `member` the first claim of somebody who is gone, `count` numbers of it. Whether there was one.

    What is more than that is left to the next; all of it goes, when the table has no room for the rest.
    """
    for claim in sorted(place.claims, key=lambda each: each.at):
        if claim.member != member and is_gone(claim.member):
            if claim.stop - claim.at > count and len(place.claims) < CLAIMS_MAX:
                place.claims.append(Claim(claim.at + count, claim.stop, NOBODY))
                claim.stop = claim.at + count
            claim.member = member
            return True
    return False


def take_next(place: Place, member: int, count: int, end: int) -> bool:
    """Give `member` the next `count` numbers, or as many as there are below `end`. Whether there were any.

    Raises OverflowError when the table is full.
    """
    count = min(count, end - place.next)
    if count <= 0:
        return False
    start, place.next = place.next, place.next + count
    for claim in place.claims:
        if claim.member == member and claim.stop == start:
            claim.stop = place.next
            return True
    if len(place.claims) == CLAIMS_MAX:
        place.next = start
        raise OverflowError
    place.claims.append(Claim(start, place.next, member))
    return True


def release(place: Place, member: int) -> None:
    """What `member` has not committed is anybody's."""
    for claim in place.claims:
        if claim.member == member:
            claim.member = NOBODY


def pass_below(place: Place, seq: int) -> None:
    """Numbers below `seq` were all processed."""
    place.next = max(place.next, seq)
    for claim in place.claims:
        claim.at = max(claim.at, seq)
    settle(place)


def cut(place: Place, seq: int) -> None:
    """Numbers from `seq` on are not in the log any more."""
    place.next = min(place.next, seq)
    for claim in place.claims:
        claim.stop = min(claim.stop, seq)
    settle(place)
