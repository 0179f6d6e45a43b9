from typing import Final, final

from mmaplog.log import Log

NAME: Final = "VISITED"

@final
class Marks: ...

def provide(log: Log, max_bytes: int) -> Marks: ...
def find(log: Log) -> Marks | None: ...
