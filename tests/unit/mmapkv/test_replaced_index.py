"""A lost or damaged index is built anew by the next writer; who has the old one mapped goes over to it."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mmapio import MappingFault
from mmapkv import KVStore, StoreError, attach
from mmaplog import control
from tests.unit.mmapio.processes import in_child
from tests.unit.mmapkv.stores import opened

HEADER_BIT = 20
COUNT = 300


def damage(index: Path) -> None:
    """A bit of the header flips."""
    content = index.read_bytes()
    with index.open("r+b") as file:
        file.seek(HEADER_BIT)
        file.write(bytes([content[HEADER_BIT] ^ 1]))


def put_back(index: Path) -> None:
    """Another file, from some other time, has its name."""
    content = index.read_bytes()
    index.unlink()
    index.write_bytes(content[: len(content) // 2])


LOSSES: dict[str, Callable[[Path], object]] = {
    "header damaged": damage,
    "removed": os.remove,
    "renamed": lambda index: index.rename(index.with_name("INDEX.away")),
    "emptied": lambda index: os.truncate(index, 0),
    "cut": lambda index: os.truncate(index, 8192),
    "replaced by half a copy": put_back,
}


@pytest.fixture(params=LOSSES.values(), ids=LOSSES.keys())
def lose(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    """Something that happens to an index which others have mapped."""

    def happen(path: Path) -> None:
        request.param(path / "INDEX")

    return happen


def key(number: int) -> bytes:
    """The key of this number."""
    return b"%d" % number


def filled(path: Path) -> Path:
    """A closed store in which every value is 1."""
    with opened(path) as kv:
        kv.put_many({key(number): b"1" for number in range(COUNT)})
    return path


def change(path: Path) -> None:
    """Open the store for writing, and make every value 2, with one key more."""
    with opened(path) as kv:
        kv.put_many({key(number): b"2" for number in range(COUNT + 1)})


def seen(kv: KVStore) -> list[object]:
    """What each way of reading shows, in an order that does not have one help the next."""
    kv_keys = [key(number) for number in range(COUNT + 1)]
    return [
        set(kv.get_many(kv_keys)),
        {kv.get(each) for each in kv_keys},
        len(kv),
        {kv.get_versioned(each, (None, 0))[0] for each in kv_keys},
        set(dict(kv).values()),
        set(dict(kv.scan()).values()),
        set(dict(kv.snapshot()).values()),
        kv.verify().damages,
    ]


NEW = [{b"2"}, {b"2"}, COUNT + 1, {b"2"}, {b"2"}, {b"2"}, {b"2"}, ()]


@pytest.mark.parametrize("first", range(8))
def test_a_reader_sees_what_was_written_after_the_loss(
    tmp_path: Path, lose: Callable[[Path], None], first: int
) -> None:
    """Whatever it asks for first, it kept showing for ever what there had been."""
    path = filled(tmp_path / "kv")
    asked: list[Callable[[KVStore], object]] = [
        lambda kv: kv.get(b"0"),
        lambda kv: kv.get_many([b"0"])[0],
        lambda kv: b"2" if len(kv) == COUNT + 1 else len(kv),
        lambda kv: next(iter(kv.items()))[1],
        lambda kv: next(kv.scan())[1],
        lambda kv: kv.snapshot()[b"0"],
        lambda kv: kv.changes(COUNT, follow=True).poll().value,  # type: ignore[union-attr]
        lambda kv: b"2" if b"%d" % COUNT in kv else None,
    ]

    def read() -> tuple[object, list[object]]:
        with KVStore.open(path, "r") as kv:
            assert kv[b"0"] == b"1"
            lose(path)
            in_child(lambda: change(path))
            return asked[first](kv), seen(kv)

    assert in_child(read) == (b"2", NEW)


def test_readers_beside_the_writer(tmp_path: Path, lose: Callable[[Path], None]) -> None:
    """In the process of the writer, while it has the store open."""
    path = filled(tmp_path / "kv")

    def read() -> list[object]:
        with KVStore.open(path, "r") as kv:
            assert kv[b"0"] == b"1"
            lose(path)
            with opened(path) as writer:
                writer.put_many({key(number): b"2" for number in range(COUNT + 1)})
                return seen(kv)

    assert in_child(read) == NEW


def test_what_was_begun_before_goes_on(tmp_path: Path, lose: Callable[[Path], None]) -> None:
    """A walk and a snapshot show their moment, by the new index; who follows changes gets the new ones."""
    path = filled(tmp_path / "kv")

    def read() -> tuple[int, set[bytes], set[bytes], list[int]]:
        with KVStore.open(path, "r") as kv:
            walk, snapshot, changes = kv.items(), kv.snapshot(), kv.changes(None, follow=True, timeout=0)
            pairs = iter(walk)
            next(pairs)
            lose(path)
            in_child(lambda: change(path))
            rest = list(pairs)
            values = {snapshot[key(number)] for number in range(COUNT)}
            return len(rest), {value for _, value in rest}, values, [each.seq for each in changes]

    count, walked, values, seqs = in_child(read)
    assert (count, walked, values) == (COUNT - 1, {b"1"}, {b"1"})
    assert seqs == list(range(COUNT, 2 * COUNT + 1))


@pytest.mark.parametrize("how", ["header damaged", "removed", "renamed"])
def test_writers_that_share_go_over_to_it(tmp_path: Path, how: str) -> None:
    """Each counted on by the index that it had, and the other never saw it."""
    path = tmp_path / "kv"
    with KVStore.open(path, shared=True, compaction=False) as one:
        one.incr("count")
        LOSSES[how](path / "INDEX")
        with KVStore.open(path, shared=True, compaction=False) as two:
            assert [each.incr("count") for _ in range(3) for each in (one, two)] == [2, 3, 4, 5, 6, 7]
            two["new"] = "2"
            assert one["new"] == b"2"
            assert one.put_many({"one": "1", "new": "1"}) is None
            assert dict(one) == dict(two)
            assert one.verify().damages == two.verify().damages == ()
            assert one.compact() is not None
            assert two["new"] == b"1"
    with KVStore.open(path, "r") as kv:
        assert kv["count"] == b"7"
        assert kv.verify().damages == ()


def test_a_reader_of_a_cut_index_is_told_what_to_do(tmp_path: Path) -> None:
    """As long as nobody has built another one: it named a method that a store does not have."""
    path = filled(tmp_path / "kv")

    def read() -> list[str]:
        found = []
        with KVStore.open(path, "r") as kv:
            assert kv[b"0"] == b"1"
            os.truncate(path / "INDEX", 0)
            for ask in (lambda: kv[b"0"], lambda: len(kv), lambda: list(kv), lambda: kv.get_many([b"0"])):
                with pytest.raises(MappingFault) as raised:
                    ask()
                found.append(str(raised.value))
            in_child(lambda: change(path))
            assert seen(kv) == NEW
        return found

    for message in in_child(read):
        assert "open the store again for writing" in message
        assert "refresh" not in message


def test_a_reader_goes_on_while_there_is_no_other(tmp_path: Path) -> None:
    """Where the index lost its name under the writer, both go on with it, though the log is compacted."""
    path = filled(tmp_path / "kv")
    with opened(path, "w") as writer, KVStore.open(path, "r") as reader:
        (path / "INDEX").unlink()
        for turn in range(2):
            for number in range(0, COUNT, 2):
                writer[key(number)] = b"x" * 2000 + b"%d" % turn
        assert writer.compact().records_removed
        assert reader[b"0"] == writer[b"0"] == b"x" * 2000 + b"1"
        assert reader.get_many([b"1"]) == [b"1"]
        assert dict(reader) == dict(writer)


def test_a_reader_who_has_it_built_tells_too(tmp_path: Path, lose: Callable[[Path], None]) -> None:
    """He maps CONTROL only to read it; the writer who comes next finds nothing wrong and tells nobody."""
    path = filled(tmp_path / "kv")

    def read() -> list[object]:
        with KVStore.open(path, "r") as kv:
            assert kv[b"0"] == b"1"
            lose(path)
            with KVStore.open(path, "r") as other:
                assert other[b"0"] == b"1"
            in_child(lambda: change(path))
            return seen(kv)

    assert in_child(read) == NEW


def test_who_is_killed_before_he_tells_leaves_no_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one to come would believe it, and a reader of the one before never hear of it."""
    path = filled(tmp_path / "kv")
    with KVStore.open(path, "r") as reader:
        assert reader[b"0"] == b"1"
        (path / "INDEX").unlink()

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(control, "name_index", die)
            assert attach.control_file is control
            with pytest.raises(KeyboardInterrupt):
                opened(path)
        assert (path / "INDEX").exists()
        change(path)
        assert reader[b"0"] == b"2"


def copied(index: Path) -> None:
    """What was the index has another name now, and a copy of it has its name."""
    shutil.copy(index.with_name("INDEX.away"), index)


IMPOSTORS: dict[str, Callable[[Path], object]] = {
    "directory": os.mkdir,
    "link": lambda index: index.symlink_to("INDEX.away"),
    "fifo": os.mkfifo,
    "garbage": lambda index: index.write_bytes(b"x" * 8192),
    "a copy": copied,
    "half a copy": lambda index: (copied(index), os.truncate(index, 1 << 14)),
}


@pytest.mark.parametrize("how", IMPOSTORS.values(), ids=IMPOSTORS.keys())
def test_what_merely_has_the_name_takes_nobodys_place(tmp_path: Path, how: Callable[[Path], None]) -> None:
    """The writer goes on in the one that he has. A reader went over to a copy, which nobody keeps up."""
    path = filled(tmp_path / "kv")
    with opened(path, "w") as writer, KVStore.open(path, "r") as reader:
        assert reader[b"0"] == b"1"
        (path / "INDEX").rename(path / "INDEX.away")
        how(path / "INDEX")
        for _ in range(2):
            writer.put_many({key(number): b"2" * 1000 for number in range(COUNT)})
        assert writer.compact().records_removed
        assert reader.get_many([b"0", b"1"]) == [b"2" * 1000] * 2
        assert (reader.get(b"0"), len(reader)) == (b"2" * 1000, COUNT)
        writer[b"0"] = b"3"
        assert reader[b"0"] == b"3"


def test_who_comes_to_a_copy_beside_the_writer_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It agrees with the log while it is new, and never shows what is written after that."""
    path = filled(tmp_path / "kv")
    monkeypatch.setattr(attach, "WAIT_SECONDS_MAX", 0.05)
    with opened(path, "w") as writer:
        writer[b"0"] = b"2"
        (path / "INDEX").rename(path / "INDEX.away")
        copied(path / "INDEX")
        with pytest.raises(
            StoreError, match="not the index that was written to, though it has its name"
        ) as raised:
            KVStore.open(path, "r")
        assert raised.value.errno == errno.ETIMEDOUT
    with KVStore.open(path, "r") as reader:
        assert reader[b"0"] == b"2"


def test_a_copy_that_the_next_writer_takes_up_is_the_index(tmp_path: Path) -> None:
    """Who has the one before it mapped goes over to it, though nothing was wrong with either."""
    path = filled(tmp_path / "kv")
    with KVStore.open(path, "r") as reader:
        assert reader[b"0"] == b"1"
        (path / "INDEX").rename(path / "INDEX.away")
        copied(path / "INDEX")
        change(path)
        assert seen(reader) == NEW


def test_writers_that_share_and_a_copy(tmp_path: Path) -> None:
    """One who comes takes it up, and the others go over to it before they write again."""
    path = tmp_path / "kv"
    with KVStore.open(path, shared=True, compaction=False) as one:
        one.incr("count")
        (path / "INDEX").rename(path / "INDEX.away")
        copied(path / "INDEX")
        assert one.incr("count") == 2
        with KVStore.open(path, shared=True, compaction=False) as two:
            assert [each.incr("count") for _ in range(3) for each in (one, two)] == [3, 4, 5, 6, 7, 8]
            assert one.verify().damages == two.verify().damages == ()


def test_a_reader_without_descriptors_to_spare_looks_all_the_same(tmp_path: Path) -> None:
    """Whether another index has the name is asked of the name."""
    path = filled(tmp_path / "kv")

    def read() -> bytes:
        with opened(path, "w") as writer, KVStore.open(path, "r") as reader:
            for _ in range(2):
                writer.put_many({key(number): b"2" * 1000 for number in range(COUNT)})
            assert writer.compact().records_removed
            assert reader[b"0"] == b"2" * 1000
            writer.compact()
            writer._log.control.change(writer._log.first_seq)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
            try:
                return reader[b"0"][:1]
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert in_child(read) == b"2"
