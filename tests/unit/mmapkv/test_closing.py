"""After close, in a forked child, and while another writes: a handle refuses, and does no harm."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mmapio import Closed, FlushPolicy, MappingFault
from mmapio.flusher import Flusher
from mmapkv import Batch, KVStore, Locked
from mmaplog import Log
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapio.processes import in_child, killed_after, living_child, outcome
from tests.unit.mmapkv.colliding_keys import HashInverter, seed_of
from tests.unit.mmapkv.stores import MANUAL, agreeing, contents, opened
from tests.unit.mmaplog.damage import overwrite

EVERY = FlushPolicy.every_millis(5)
Use = Callable[[KVStore], object]
READS: dict[str, Use] = {
    "[]": lambda kv: kv[b"a"],
    "[missing]": lambda kv: kv[b"missing"],
    "[empty]": lambda kv: kv[b""],
    "get": lambda kv: kv.get(b"a"),
    "get with a default": lambda kv: kv.get(b"a", 5),
    "get the empty key": lambda kv: kv.get(b""),
    "get_view": lambda kv: kv.get_view(b"a"),
    "get_into": lambda kv: kv.get_into(b"a", bytearray(9)),
    "get_versioned": lambda kv: kv.get_versioned(b"a"),
    "get_many": lambda kv: kv.get_many([b"a"]),
    "get_many of none": lambda kv: kv.get_many([]),
    "get_many_into": lambda kv: kv.get_many_into([b"a"], bytearray(9)),
    "get_many_into of none": lambda kv: kv.get_many_into([], bytearray(9)),
    "in": lambda kv: b"a" in kv,
    "the empty key in": lambda kv: b"" in kv,
    "len": len,
    "bool": bool,
    "iter": iter,
    "list": list,
    "keys": lambda kv: list(kv.keys()),
    "values": lambda kv: list(kv.values()),
    "items": lambda kv: list(kv.items()),
    "scan": lambda kv: kv.scan(),
    "changes": lambda kv: kv.changes(),
    "changes from a number on": lambda kv: kv.changes(1, follow=True),
    "==": lambda kv: kv == {},
    "ttl": lambda kv: kv.ttl(b"a"),
    "snapshot": lambda kv: kv.snapshot(),
    "stats": lambda kv: kv.stats(),
    "verify": lambda kv: kv.verify(),
    "verify quickly": lambda kv: kv.verify(full=False),
    "backup": lambda kv: kv.backup(f"{kv.path} copy"),
    "with": lambda kv: kv.__enter__(),
}
CHANGES: dict[str, Use] = {
    "[]=": lambda kv: kv.__setitem__(b"a", b"1"),
    "put": lambda kv: kv.put(b"b", b"1"),
    "put durable": lambda kv: kv.put(b"b", b"1", durable=True),
    "put a large value": lambda kv: kv.put(b"b", bytes(200_000)),
    "del": lambda kv: kv.__delitem__(b"a"),
    "pop": lambda kv: kv.pop(b"a"),
    "popitem": lambda kv: kv.popitem(),
    "clear": lambda kv: kv.clear(),
    "update": lambda kv: kv.update({b"c": b"1"}),
    "setdefault": lambda kv: kv.setdefault(b"c", b"1"),
    "add": lambda kv: kv.add(b"b", b"1"),
    "replace": lambda kv: kv.replace(b"a", b"1"),
    "append": lambda kv: kv.append(b"a", b"1"),
    "incr": lambda kv: kv.incr(b"a"),
    "compare_and_set": lambda kv: kv.compare_and_set(b"a", b"2", expected=b"1"),
    "touch": lambda kv: kv.touch(b"a", 5),
    "put_many": lambda kv: kv.put_many({b"c": b"1"}),
    "put_many of nothing": lambda kv: kv.put_many({}),
    "delete_many": lambda kv: kv.delete_many([b"a"]),
    "batch": lambda kv: _leave(kv.batch()),
    "transaction": lambda kv: kv.transaction(),
    "retry": lambda kv: kv.retry(lambda tx: tx.get(b"a")),
    "sweep": lambda kv: kv.sweep(),
    "flush": lambda kv: kv.flush(),
    "sync": lambda kv: kv.sync(),
    "compact": lambda kv: kv.compact(),
}


def _leave(block: Batch) -> None:
    with block:
        block.put(b"b", b"1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with one pair, closed."""
    with opened(tmp_path / "kv") as kv:
        kv[b"a"] = b"1"
    return tmp_path / "kv"


@pytest.mark.parametrize("mode", ["r", "w"])
@pytest.mark.parametrize("use", [*READS.values(), *CHANGES.values()], ids=[*READS, *CHANGES])
def test_a_closed_store_refuses(path: Path, mode: str, use: Use) -> None:
    """The memory is gone; the exception is all that stands between a mistake and SIGSEGV."""
    kv = opened(path, mode)
    kv.close()
    kv.close()
    assert kv.closed
    with unchanged(path), pytest.raises(Closed, match="open it again") as raised:
        use(kv)
    assert isinstance(raised.value, ValueError)
    assert raised.value.filename == str(path)


def test_every_public_method_is_among_those_tested() -> None:
    """A new method must be added to the tables above, or say here why it needs no open store."""
    # What the last two make refuses when it is used.
    harmless = {"open", "path", "closed", "close", "flush_policy", "namespace", "shared", "typed"}
    public = {name for name in dir(KVStore) if not name.startswith("_")}
    named = {name.split()[0] for name in (*READS, *CHANGES)}
    assert public - harmless - named == set()


def test_what_a_closed_store_gave_out_stays(path: Path) -> None:
    """Values are copies."""
    with opened(path) as kv:
        value = kv[b"a"]
        items = list(kv.items())
    for file in path.iterdir():
        file.unlink()
    assert value == b"1"
    assert items == [(b"a", b"1")]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="before 3.12 no Python class can be a buffer")
def test_a_buffer_that_closes_the_store_while_it_is_put(path: Path) -> None:
    """Getting hold of a buffer may run Python code; the store must be looked at again after it."""

    open_handles: list[KVStore | Log] = []

    class Closing:
        def __buffer__(self, flags: int) -> memoryview:
            open_handles.pop().close()
            return memoryview(b"bytes")

    uses: list[Use] = [
        lambda kv: kv.__setitem__(b"k", Closing()),  # type: ignore[arg-type]
        lambda kv: kv.__setitem__(Closing(), b"v"),  # type: ignore[index]
        lambda kv: kv.get(Closing()),  # type: ignore[call-overload]
        lambda kv: kv.__delitem__(Closing()),  # type: ignore[arg-type]
    ]
    for use in uses:
        kv = opened(path)
        open_handles.append(kv)
        with pytest.raises(Closed):
            use(kv)
    log = Log.open(path.parent / "log", flush_policy=MANUAL)
    open_handles.append(log)
    with pytest.raises(Closed):
        log.append(Closing())
    assert contents(path) == {b"a": b"1"}


def test_leaving_the_block_closes_even_after_an_exception(path: Path) -> None:
    """And what was written before it stays."""
    with pytest.raises(ZeroDivisionError), opened(path) as kv:
        kv[b"b"] = b"2"
        raise ZeroDivisionError
    assert kv.closed
    assert contents(path) == {b"a": b"1", b"b": b"2"}


@pytest.mark.parametrize("mode", ["w", "c", "n"])
def test_a_second_writer_is_refused_and_told_who_is_the_first(path: Path, mode: str) -> None:
    """In the same process and in another."""
    with opened(path) as kv:
        with pytest.raises(Locked, match=f"process {os.getpid()}, which is this one"):
            opened(path, mode)
        kind, text = in_child(lambda: outcome(lambda: opened(path, mode)))
        assert (kind, f"process {os.getpid()};" in text) == ("Locked", True)
        kv[b"b"] = b"2"
    with living_child(lambda: opened(path)) as pid, pytest.raises(Locked, match=f"process {pid};"):
        opened(path, mode)
    assert contents(path, "w") == {b"a": b"1", b"b": b"2"}


def test_n_is_refused_while_others_read(path: Path) -> None:
    """Their store would vanish below them."""
    with opened(path, "r") as reader, unchanged(path, ignoring=("LOCK",)):
        with pytest.raises(Locked, match="reading"):
            opened(path, "n")
        assert agreeing(reader) == {b"a": b"1"}


def test_a_killed_or_dropped_writer_leaves_no_lock(path: Path) -> None:
    """And nothing that it committed is lost."""
    killed_after(lambda: opened(path).update({b"b": b"2"}))
    assert contents(path, "w") == {b"a": b"1", b"b": b"2"}
    kv = opened(path)
    kv[b"c"] = b"3"
    del kv
    gc.collect()
    assert contents(path, "w") == {b"a": b"1", b"b": b"2", b"c": b"3"}


def test_a_forked_child_that_lives_on_does_not_keep_the_lock(path: Path) -> None:
    """It holds a copy of everything that the parent had."""
    kv = opened(path)
    with living_child(lambda: kv):
        kv[b"b"] = b"2"
        kv.close()
        assert contents(path, "w") == {b"a": b"1", b"b": b"2"}


@pytest.mark.parametrize("use", CHANGES.values(), ids=CHANGES.keys())
def test_a_forked_child_cannot_change_the_store(path: Path, use: Use) -> None:
    """Two processes that both think they are the writer overwrite each other."""
    with opened(path) as kv:
        with unchanged(path):
            kind, text = in_child(lambda: outcome(lambda: use(kv)))
        assert kind == "Closed"
        assert "child" in text
        use(kv)


@pytest.mark.parametrize("mode", ["r", "w"])
def test_a_forked_child_may_read(path: Path, mode: str) -> None:
    """Values and counts as the parent goes on changing them."""
    with opened(path) as writer:
        kv = writer if mode == "w" else opened(path, "r")
        for number in range(3):
            writer[b"%d" % number] = b"x" * 30_000
            expected = agreeing(writer)
            assert in_child(lambda: agreeing(kv)) == expected
        kv.close()


@pytest.mark.parametrize("way", ["close", "collect", "exit"])
def test_a_childs_end_writes_nothing_and_unlocks_nothing(path: Path, way: str) -> None:
    """However it lets go of what it inherited."""
    holder = [opened(path)]
    holder[0][b"b"] = b"2"

    def child() -> None:
        if way == "close":
            holder[0].close()
            holder[0].close()
        elif way == "collect":
            holder.clear()
            gc.collect()

    with unchanged(path):
        in_child(child)
    assert in_child(lambda: outcome(lambda: opened(path)))[0] == "Locked"
    holder[0][b"c"] = b"3"
    holder[0].close()
    assert contents(path) == {b"a": b"1", b"b": b"2", b"c": b"3"}


def test_a_child_does_not_mend_the_index(path: Path) -> None:
    """A look-up that finds it damaged has a writer rebuild it; the parent's child is no writer."""
    raw = (path / "INDEX").read_bytes()
    overwrite(path / "INDEX", bytes([raw[208_896 + 64] ^ 1]), 208_896 + 64)
    with opened(path) as kv:
        with unchanged(path):
            kind, _ = in_child(lambda: outcome(lambda: kv[b"a"]))
        assert kind in ("Closed", "CorruptionError")
        assert kv[b"a"] == b"1"
    assert contents(path) == {b"a": b"1"}


@pytest.mark.parametrize("mode", ["r", "w"])
def test_a_child_that_meets_a_new_index(path: Path, mode: str) -> None:
    """It has nothing to open it with: a typed error, and the advice to open the store again."""
    with opened(path) as writer, opened(path, "r") as reader:
        kv = writer if mode == "w" else reader
        assert kv[b"a"] == b"1"
        reading, writing = os.pipe()

        def child() -> tuple[str, str]:
            os.read(reading, 1)
            return outcome(lambda: kv[b"a"])

        pid = os.fork()
        if pid == 0:
            try:
                kind, text = child()
                os._exit(0 if kind in ("", "Closed") and "NoneType" not in text else 1)
            finally:
                os._exit(2)
        before = seed_of(path)
        for key in HashInverter(before).twins(7, 24, 5, 64):
            writer[key] = b"x"
        assert seed_of(path) != before
        os.write(writing, b".")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        os.close(reading)
        os.close(writing)
        assert reader[b"a"] == b"1"


@pytest.mark.parametrize("name", ["CONTROL", "*.seg"])
@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
def test_a_store_that_was_cut_is_closed(path: Path, shared: bool, name: str) -> None:
    """One that wrote alone stayed open at each close, and locked for its process."""
    kv = KVStore.open(path, flush_policy=MANUAL, compaction=False, shared=shared)
    kv[b"b"] = b"2"
    for file in path.glob(name):
        os.truncate(file, 0)
    with pytest.raises(MappingFault):
        # Of what is not looked at nobody knows.
        kv[b"b"] = kv[b"a"]
        kv.close()
    with suppress(MappingFault):
        kv.close()
    assert kv.closed
    kv.close()
    kind, _ = outcome(lambda: KVStore.open(path, "w", shared=shared).close())
    assert kind in ("", "CorruptionError")


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
def test_a_handle_whose_close_was_interrupted_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """Its index stayed marked as closed, so that it was damaged for readers. Its threads were gone."""
    kv = KVStore.open(path, flush_policy=EVERY, segment_bytes=64 << 10, shared=shared)
    before = opened(path, "r")
    kv[b"b"] = b"2" * 1000
    # A store that is shared tries twice.
    left = [None] * (2 if shared else 1)

    def interrupted(flusher: Flusher) -> None:
        stop(flusher)
        if left:
            left.pop()
            raise KeyboardInterrupt

    stop = Flusher.stop
    with monkeypatch.context() as patched:
        patched.setattr(Flusher, "stop", interrupted)
        with pytest.raises(KeyboardInterrupt):
            kv.close()
    assert not kv.closed
    with opened(path, "r") as between:
        for number in range(1000):
            kv[b"b"] = b"%d" % number * 400
        for reader in (before, between):
            assert reader[b"b"] == b"999" * 400
            assert len(reader) == 2
    assert in_child(lambda: contents(path)) == {b"a": b"1", b"b": b"999" * 400}
    until = time.monotonic() + 20
    while kv.stats()["compactions"] == 0 and time.monotonic() < until:
        time.sleep(0.01)
    assert kv.stats()["compactions"] > 0
    before.close()
    kv.close()
    assert contents(path, "w") == {b"a": b"1", b"b": b"999" * 400}


@pytest.mark.parametrize("how", ["removed", "replaced by a copy"])
def test_a_child_that_outlives_its_parents_index(path: Path, how: str) -> None:
    """It showed what there had been, for ever."""
    kv = opened(path)
    assert kv[b"a"] == b"1"
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.read(reading, 1)
            os._exit(0 if outcome(lambda: kv[b"a"])[0] == "Closed" else 1)
        finally:
            os._exit(2)
    kv.close()
    (path / "INDEX").rename(path / "INDEX.away")
    if how != "removed":
        shutil.copy(path / "INDEX.away", path / "INDEX")
    with opened(path) as another:
        another[b"a"] = b"2"
        os.write(writing, b".")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(reading)
    os.close(writing)
