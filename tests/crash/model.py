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

    def apply(self, operation: Operation) -> list[Operation]:
        """Carry an operation out. What writes a record, so no flush, nor deleting what is absent."""
        effects = self.effects(operation)
        for effect in effects:
            if effect.kind is Kind.CLEAR:
                self.versions.clear()
            elif effect.kind is Kind.PUT:
                self.versions[effect.key] = effect.version
            else:
                del self.versions[effect.key]
        self.committed += len(effects)
        return effects

    def effects(self, operation: Operation) -> list[Operation]:
        """The puts, deletions and clears of an operation that would write a record now."""
        return [
            each
            for each in operation.writes()
            if each.kind is Kind.PUT
            or (self.versions if each.kind is Kind.CLEAR else each.key in self.versions)
        ]

    def touched(self, operation: Operation) -> set[bytes]:
        """The keys that an operation may change."""
        if operation.kind is Kind.CLEAR:
            return set(self.versions)
        return {each.key for each in operation.writes()}

    def value(self, key: bytes) -> bytes | None:
        """The value of a key, None when it is absent."""
        version = self.versions.get(key)
        return None if version is None else value_of(key, version)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every key with its value."""
        for key, version in self.versions.items():
            yield key, value_of(key, version)
