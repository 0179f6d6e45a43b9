"""What the store must hold."""

from __future__ import annotations

from collections.abc import Iterator

from tests.crash.operations import Kind, Operation, Version, loaded_key, loaded_version, value_of


class Model:
    """The keys that are present, which write each value comes from, and how many records the log has."""

    def __init__(self, keys: int) -> None:
        self.versions: dict[bytes, Version] = {
            loaded_key(number): loaded_version(number) for number in range(keys)
        }
        self.committed = keys

    def __len__(self) -> int:
        return len(self.versions)

    def apply(self, operation: Operation) -> bool:
        """Carry an operation out. False when it writes nothing: a flush, or deleting what is absent."""
        if operation.kind is Kind.PUT:
            self.versions[operation.key] = operation.version
        elif operation.kind is not Kind.DELETE or self.versions.pop(operation.key, None) is None:
            return False
        self.committed += 1
        return True

    def would_write(self, operation: Operation) -> bool:
        """Whether an operation would write a record now."""
        if operation.kind is Kind.DELETE:
            return operation.key in self.versions
        return operation.kind is Kind.PUT

    def value(self, key: bytes) -> bytes | None:
        """The value of a key, None when it is absent."""
        version = self.versions.get(key)
        return None if version is None else value_of(key, version)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every key with its value."""
        for key, version in self.versions.items():
            yield key, value_of(key, version)
