from mmapkv.index import Index
from mmaplog.replay import Replay

def catch_up(index: Index, replay: Replay) -> None: ...
