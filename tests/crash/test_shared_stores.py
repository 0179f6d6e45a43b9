"""Writers of one store of which one is killed: the others go on, and finish what it was at."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mmapio import FlushPolicy
from mmapkv import KVStore
from tests.crash.ack_page import ACKNOWLEDGED, AckPage
from tests.crash.child import Child
from tests.crash.commands import count, count_of_kind, run
from tests.crash.crowd.writer import EARLY_ACK, HALF_CLEAR, LOST_UPDATE
from tests.crash.defects import LOSSY_STEP
from tests.crash.moments import die_at, moments_of
from tests.unit.mmapkv.index_words import PAGE, ROOT, STATE, IndexWords

SEGMENT_BYTES = 64 << 10
APPLIED, SPLIT_OLD = STATE + 8, STATE + 192
KILLS = 12
# The storm ends when it is caught.
DEFECT_KILLS = 600

State = dict[bytes, bytes]
Step = Callable[[KVStore], object]


def shared(path: Path) -> KVStore:
    """The store as one of its writers."""
    return KVStore.open(path, shared=True, flush_policy=FlushPolicy.MANUAL, segment_bytes=SEGMENT_BYTES)


def killed(body: Callable[[], object]) -> None:
    """Run it in a child, which then is killed."""

    def then_die(_: Callable[[], None]) -> None:
        body()
        os.kill(os.getpid(), signal.SIGKILL)

    child = Child(then_die)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert child.kill() == ""


def directory_of(path: Path) -> dict[int, int]:
    """The words of the index's directory, by where they are."""
    with (path / "INDEX").open("rb") as file:
        file.seek(ROOT)
        (root,) = struct.unpack("<Q", file.read(8))
        file.seek((root >> 8) * PAGE)
        words = struct.unpack(f"<{1 << (root & 0x7F)}Q", file.read(8 << (root & 0x7F)))
    return {(root >> 8) * PAGE + 8 * at: word for at, word in enumerate(words)}


def die_at_work(path: Path, work: Callable[[KVStore], dict[int, int]]) -> None:
    """Have a writer of the store die with the lock in its hand, words of the index being what `work` says."""

    def body() -> None:
        store = shared(path)
        words = work(store)
        store._log.control.mutexes()[0].acquire()
        with (path / "INDEX").open("r+b") as file:
            for at, word in words.items():
                file.seek(at)
                file.write(struct.pack("<Q", word))

    killed(body)


def require(store: KVStore, model: State, who: str) -> None:
    """Look-ups, the count, a walk, and all else that can be verified."""
    assert {key: store.get(key) for key in model} == model, who
    assert dict(store.items()) == model, who
    assert len(store) == len(model), who
    assert store.verify().damages == (), who


# ---- what a dead one leaves in the index ----


def test_a_record_without_its_entry_is_entered_by_the_next_writer(tmp_path: Path) -> None:
    """It was committed and its writer killed before the index knew. The next writer's record was entered, and
    the count and number behind it said that all before it was, too.
    """
    with shared(tmp_path) as kv:
        kv["a"] = b"1"

        def work(store: KVStore) -> dict[int, int]:
            before = IndexWords(tmp_path)
            store["b"] = b"2"
            store["a"] = b"3"
            after = IndexWords(tmp_path)
            # Entries, and what counts them, are as they were.
            changed = [at for _, _, at in after.entries() if after[at] != before[at]]
            assert len(changed) == 2
            restored = [*changed, *range(STATE, APPLIED + 32, 8)]
            return {at: before[at] for at in restored}

        die_at_work(tmp_path, work)
        assert "b" not in kv
        assert kv.incr("count") == 1
        model = {b"a": b"3", b"b": b"2", b"count": b"1"}
        require(kv, model, "the writer that was there")
        with shared(tmp_path) as other:
            require(other, model, "one that comes")


@pytest.mark.parametrize("fresh", [False, True])
def test_a_split_is_finished_by_the_next_writer(tmp_path: Path, fresh: bool) -> None:
    """Half of the words led to the new index segments, and the half that did not to one that was given up."""
    keys = [b"%d" % number for number in range(6000)]
    model: State = {}
    with shared(tmp_path) as kv:
        kv["before"] = model[b"before"] = b"1"

        def work(store: KVStore) -> dict[int, int]:
            # Until a segment splits that several words lead to, and no directory was made for it.
            before = directory_of(tmp_path)
            for key in keys:
                store[key] = b"x"
                after = directory_of(tmp_path)
                changed = [at for at in after if after[at] != before.get(at)]
                if changed and after.keys() == before.keys():
                    old = before[changed[0]]
                    # The last word was not yet changed, nor said that all is done.
                    return {SPLIT_OLD: old, changed[-1]: old}
                before = after
            raise AssertionError("nothing was split")

        die_at_work(tmp_path, work)
        stopped = int(kv.stats()["committed"]) - 1
        model.update(dict.fromkeys(keys[:stopped], b"x"))
        writer = shared(tmp_path) if fresh else kv
        # Enough to split again, into what the last split had left over.
        for key in keys[stopped:]:
            writer[key] = model[key] = b"y"
        require(writer, model, "the next writer")
        require(kv, model, "the writer that was there")
        if fresh:
            writer.close()
    assert IndexWords(tmp_path)[SPLIT_OLD] == 0


@pytest.mark.parametrize("reads", [False, True])
def test_an_index_is_replaced_though_who_was_at_it_is_dead(tmp_path: Path, reads: bool) -> None:
    """It had said that the old one is retired, and not yet put the new one in its place."""
    with shared(tmp_path) as kv, KVStore.open(tmp_path, "r") as reader:
        kv["a"] = b"1"
        root = IndexWords(tmp_path)[ROOT]
        die_at_work(tmp_path, lambda _: {ROOT: root | 0x80})
        if reads:
            # Nobody may come to write for long.
            assert reader["a"] == b"1"
        kv["b"] = b"2"
        for who in (kv, reader):
            require(who, {b"a": b"1", b"b": b"2"}, repr(who))


# ---- every call to the system ----


def put(key: bytes, size: int) -> Step:
    """A step that sets a key."""
    return lambda store: store.put(key, key * size)


def rebuild(store: KVStore) -> None:
    """A step that replaces the index."""
    _, index = store._parts()
    assert index is not None
    store._rebuild_index(index)


# Rolls, a record larger than a segment, many at once, a compaction, a new index, a clean close.
STEPS: list[tuple[Step, State]] = [
    (put(b"a", 30_000), {b"a": b"a" * 30_000}),
    (put(b"b", 30_000), {b"b": b"b" * 30_000}),
    (lambda store: store.put_many({b"c": b"c" * 90_000, b"d": b"d"}), {b"c": b"c" * 90_000, b"d": b"d"}),
    (KVStore.compact, {}),
    (put(b"a", 5), {b"a": b"aaaaa"}),
    (rebuild, {}),
    (put(b"e", 5), {b"e": b"eeeee"}),
    (KVStore.close, {}),
]
LOADED = {b"key-%d" % number: b"%d" % number * 500 for number in range(60)}


def session(path: Path, page: AckPage, limit: int | None) -> int:
    """All steps in a child that dies at moment number `limit`. The number of moments, 0 if it died."""
    page.reset()

    def body(started: Callable[[], None]) -> None:
        seen = die_at(limit)
        store = shared(path)
        for number, (step, _) in enumerate(STEPS, start=1):
            step(store)
            page.words[ACKNOWLEDGED] = number
        page.words[ACKNOWLEDGED + 1] = len(seen)
        started()

    return moments_of(body, page)


def go_on(path: Path, kv: KVStore, reader: KVStore, page: AckPage) -> None:
    """Whoever is left writes, compacts and reads, and finds what was acknowledged."""
    before = dict(LOADED)
    for _, change in STEPS[: page.acknowledged]:
        before.update(change)
    after = before | (STEPS[page.acknowledged][1] if page.acknowledged < len(STEPS) else {})
    kv["later"] = b"1"
    later = {b"later": b"1"}
    found = dict(kv.items())
    assert found in (before | later, after | later), "the writer that was there finds something else"
    require(kv, found, "the writer that was there")
    require(reader, found, "the reader that was there")
    with shared(path) as other:
        require(other, found, "a writer that comes")
        other["last"] = found[b"last"] = b"2"
        other.compact()
        require(kv, found, "the writer that was there, after a compaction")
    # A walk over it is what the reader has.
    require(reader, found, "the reader, after a compaction")
    kv.close()
    with KVStore.open(path, "w", flush_policy=FlushPolicy.MANUAL) as alone:
        require(alone, found, "who opens it alone")
        listed = {name for _, _, name in alone._log.segments.listing()}
    assert {entry.name for entry in path.glob("*.seg*")} == listed, "files that do not count are left"


def test_others_go_on_wherever_one_is_killed(tmp_path: Path) -> None:
    """Before or after calls to the system, one by one: some of them the storm hardly ever meets."""
    page = AckPage()

    def one_life(name: str, limit: int | None) -> int:
        path = tmp_path / name
        with KVStore.open(path, flush_policy=FlushPolicy.MANUAL, segment_bytes=SEGMENT_BYTES) as store:
            for turn in (b"old", b""):
                store.update({key: turn + value for key, value in LOADED.items()})
        with shared(path) as kv, KVStore.open(path, "r") as reader:
            moments = session(path, page, limit)
            go_on(path, kv, reader, page)
        return moments

    moments = one_life("whole", None)
    assert moments > 60, "a session this short would meet little"
    wrong = []
    for limit in range(1, moments + 1, 3):
        try:
            one_life(str(limit), limit)
        except (AssertionError, OSError) as error:
            wrong.append(f"killed at moment {limit}: {type(error).__name__}: {error}")
    assert wrong == []


# ---- the storm ----


def storm(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command: it forks, so it gets a process of its own."""
    return run("shared_kill_storm", directory, *arguments)


def test_a_short_storm(disk_path: Path) -> None:
    """Nothing that was acknowledged is lost, nothing invented, and nobody waits for a dead one."""
    ran = storm(disk_path, "--kills", str(KILLS))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert count(ran.stdout, "kills") >= KILLS
    assert count(ran.stdout, "acknowledged calls") > KILLS
    assert count(ran.stdout, "rounds with compaction in the background") > 0
    assert count_of_kind(ran.stdout, "rounds with a violation") == 0


@pytest.mark.parametrize(
    "defect", ["dropped-entry", EARLY_ACK, "invented-write", LOST_UPDATE, HALF_CLEAR, LOSSY_STEP]
)
def test_a_planted_defect_is_caught(tmp_path: Path, defect: str) -> None:
    """A storm that finds nothing wrong with a faulty store says nothing about a good one."""
    ran = storm(tmp_path, "--kills", str(DEFECT_KILLS), "--defect", defect)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "VIOLATION in round" in ran.stdout
