"""The built-in dict: what a look-up costs with no store at all."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import ClassVar

from .rival import Form, Rival, Session, Spellings, mixes


class PythonDict(Rival):
    """A dict that holds the very key and value objects it was given.

    No settings. It keeps nothing, so it has no open time and nothing on disk.
    """

    name = "dict"
    settings = "holds the objects it is given, in memory only"
    spellings: ClassVar[Spellings] = {
        "get": {Form.CALL: "dict.get(k)", Form.OPERATOR: "d[k]"},
        "get-many": {Form.EACH: "for k in keys: dict.get(k)"},
        "miss": {Form.CALL: "dict.get(k)"},
        "scan": {Form.CALL: "dict.items()"},
        "put": {Form.OPERATOR: "d[k] = v"},
        "overwrite": {Form.OPERATOR: "d[k] = v"},
        "delete": {Form.OPERATOR: "del d[k]"},
        **mixes("dict.get(k), d.__setitem__(k, v)"),
    }

    def __init__(self, keys_expected: int, bytes_expected: int, *, durable: bool = False) -> None:
        super().__init__(keys_expected, bytes_expected, durable=durable)
        self._pairs: dict[bytes, bytes] = {}

    @classmethod
    def version(cls) -> str:
        return f"{platform.python_implementation()} {platform.python_version()}"

    def open(self, directory: Path) -> None:
        self._pairs = {}

    def close(self) -> None:
        self._pairs = {}

    def flush(self) -> None:
        """Nothing to flush."""

    def count(self) -> int:
        return len(self._pairs)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        pairs = self._pairs
        yield Session(pairs.get, pairs.__setitem__, pairs.__delitem__, pairs.items, pairs)

    def writing(self) -> AbstractContextManager[Session]:
        return self.reading()
