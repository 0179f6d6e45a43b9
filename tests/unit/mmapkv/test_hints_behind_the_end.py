"""What leads to a version before is a hint, and may lead to where a segment has nothing any more."""

from __future__ import annotations

from pathlib import Path

from tests.unit.mmapkv.stores import opened


def test_a_hint_behind_the_end_of_a_segment_that_was_rolled_past(tmp_path: Path) -> None:
    """An index that was made anew gives its slots to other segments; what those left unused is given back."""
    with opened(tmp_path / "kv") as kv:
        for number in range(120):
            kv[b"first %d" % number] = b"v" * 1000
        kv.clear()
        kv.compact()
        many = [b"many %d" % number for number in range(8000)]
        kv.put_many((key, b"v") for key in many)
        for number in range(55):
            kv[b"then %d" % number] = b"v" * 1000
        kv["key"] = "old"
        with kv.snapshot() as held:
            kv["key"] = "new"
            kv.delete_many(many)
            kv.compact()
            for turn in range(6):
                kv[b"small %d" % turn] = b"v"
                assert kv[b"small %d" % turn] == b"v"
                kv.put_many((b"large %d" % number, b"v" * 1000) for number in range(100))
            assert held["key"] == b"old"
            assert kv["key"] == b"new"
        assert kv.verify().damages == ()
