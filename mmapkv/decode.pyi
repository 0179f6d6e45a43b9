from typing import Final, TypeAlias

from mmaplog.follow import Follower
from mmaplog.replay import Replay

_Change: TypeAlias = tuple[int, bytes, bytes | int | None, int | None, int | None]

KEY_BYTES_MAX: Final[int]
VALUE_BYTES_MAX: Final[int]

def note_presence(replay: Replay, present: dict[bytes, bool], count: int, known: int) -> tuple[int, bool]: ...
def take_change(follower: Follower, stop: int) -> _Change | None: ...
