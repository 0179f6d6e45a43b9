from mmapkv.hint import Hint
from mmapkv.index import Index
from mmaplog.segment import Segment

class Builder:
    def __new__(cls, index: Index, keeps: bool) -> Builder: ...
    def enter(self, hint: Hint, segment: Segment) -> None: ...
