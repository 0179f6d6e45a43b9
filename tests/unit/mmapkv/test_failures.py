"""Full disks and failing syncs: an exception from the call that was hit, and a store that is as it was."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.unit.mmapio.interposer import PRELUDE
from tests.unit.mmapio.processes import run_python
from tests.unit.mmapio.volume import fill, small_volume  # noqa: F401
from tests.unit.mmapkv.stores import agreeing, contents, opened


@pytest.mark.parametrize(
    "size", [0, 100, 5000, 200_000], ids=["empty", "small", "medium", "larger than a segment"]
)
def test_a_full_disk_is_an_error_and_the_store_goes_on(small_volume: Path, size: int) -> None:  # noqa: F811
    """Log, segment or index: whatever is out of space, the put raises before it writes."""
    path = small_volume / "kv"
    expected = {}
    with opened(path) as kv:
        number = 0
        for round_ in range(3):
            ballast = fill(small_volume, leaving=round_ * 400_000)
            with pytest.raises(OSError, match="No space left") as raised:
                while True:
                    key = b"%d" % number
                    kv[key] = key * (size // len(key))
                    expected[key] = key * (size // len(key))
                    number += 1
            assert raised.value.errno == errno.ENOSPC
            assert key not in kv
            assert agreeing(kv) == expected
            for _ in range(3):
                with pytest.raises(OSError, match="No space left"):
                    kv[b"large"] = bytes(300_000)
            assert len(kv) == len(expected)
            ballast.unlink()
            kv[key] = expected[key] = b"after"
            number += 1
            kv.flush()
        assert not list(path.glob("*.tmp"))
    assert contents(path) == expected
    for name in ("CONTROL", "INDEX"):
        (path / name).unlink()
    assert contents(path, "w") == expected


def test_every_allocation_may_fail(tmp_path: Path, interposer: Path) -> None:
    """Step by step of a growing store, log and index: the pair is refused whole, and taken the next time."""
    code = (
        PRELUDE
        + """
from mmapio import FlushPolicy
from mmapkv import KVStore
kv = KVStore.open(arguments[0], flush_policy=FlushPolicy.NEVER, segment_bytes=1 << 20)
model, refused = {}, 0
for number in range(20_000):
    key = b"%d" % number
    if number % 7 == 0:
        kv.pop(b"%d" % (number // 2), None), model.pop(b"%d" % (number // 2), None)
    fail(FALLOCATE, 1, errno.ENOSPC, 100)
    try:
        kv[key] = key * 20
    except OSError as error:
        assert error.errno == errno.ENOSPC
        refused += 1
        assert key not in kv and len(kv) == len(model)
        fail(FALLOCATE, 0, 0)
        kv[key] = key * 20
    fail(FALLOCATE, 0, 0)
    model[key] = key * 20
assert dict(kv) == model
kv.close()
with KVStore.open(arguments[0], "r") as kv:
    answer([refused, dict(kv) == model])
"""
    )
    refused, same = run_python(code, tmp_path / "kv", preload=interposer)
    assert refused >= 8
    assert same


def test_a_store_on_a_full_disk_can_be_read_and_closed(small_volume: Path) -> None:  # noqa: F811
    """Neither needs space; a new one does, and leaves nothing in the way of a second try."""
    path = small_volume / "kv"
    with opened(path) as kv:
        kv[b"a"] = b"1"
        ballast = fill(small_volume)
        kv[b"b"] = b"2"
    assert contents(path) == contents(path, "w") == {b"a": b"1", b"b": b"2"}
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            opened(small_volume / "new")
    ballast.unlink()
    with opened(small_volume / "new") as kv:
        kv[b"a"] = b"1"
    assert contents(small_volume / "new") == {b"a": b"1"}


def test_an_index_that_cannot_be_rebuilt_for_lack_of_space(small_volume: Path) -> None:  # noqa: F811
    """The error says so, nothing half made stays, and with space again it is done."""
    path = small_volume / "kv"
    with opened(path) as kv:
        for number in range(3000):
            kv[b"%d" % number] = b"x"
    (path / "INDEX").unlink()
    ballast = fill(small_volume)
    for mode in ("r", "w"):
        with pytest.raises(OSError, match="No space left"):
            opened(path, mode)
    ballast.unlink()
    assert len(contents(path, "w")) == 3000
    assert not (path / "INDEX.tmp").exists()


def test_a_failed_sync_poisons_the_store(tmp_path: Path, interposer: Path) -> None:
    """No later write is acknowledged; what is there can still be read."""
    code = (
        PRELUDE
        + """
from mmapio import FlushPolicy
from mmapkv import KVStore
found = {}
for name, policy, use in (
    ("flush", FlushPolicy.MANUAL, lambda kv: kv.flush()),
    ("durable", FlushPolicy.NEVER, lambda kv: kv.put(b"b", b"2", durable=True)),
    ("always", FlushPolicy.ALWAYS, lambda kv: kv.put(b"b", b"2")),
    ("delete", FlushPolicy.ALWAYS, lambda kv: kv.__delitem__(b"a")),
):
    kv = KVStore.open(f"{arguments[0]}/{name}", flush_policy=policy)
    kv[b"a"] = b"1"
    fail(FDATASYNC, 1, errno.EIO)
    first = outcome(lambda: use(kv))
    uses = [kv.flush, kv.sync, lambda: kv.put(b"c", b"3"), lambda: kv.put(b"c", b"3", durable=True)]
    then = [outcome(work) for work in uses]
    reader = KVStore.open(f"{arguments[0]}/{name}", "r")
    readable = len(kv) == len(reader) == len(list(kv))
    found[name] = [first, then, readable, kv.get(b"b", b"").decode(), outcome(kv.close), kv.closed]
answer(found)
"""
    )
    found = run_python(code, tmp_path, preload=interposer)
    for first, then, readable, _, closing, closed in found.values():
        assert first == "FlushFailed"
        assert then == ["Poisoned"] * 4
        assert (readable, closing, closed) == (True, "", True)
    assert [figures[3] for figures in found.values()] == ["", "2", "2", ""]


def test_policies_sync_for_a_store_as_for_a_log(tmp_path: Path, interposer: Path) -> None:
    """One sync makes a put durable: the log's. The index is not synced on the way."""
    code = (
        PRELUDE
        + """
from mmapio import FlushPolicy
from mmapkv import KVStore
found = []
policies = [FlushPolicy.NEVER, FlushPolicy.MANUAL, FlushPolicy.ALWAYS, FlushPolicy.every_writes(2)]
for number, policy in enumerate(policies):
    kv = KVStore.open(f"{arguments[0]}/{number}", flush_policy=policy)
    kv[b"warm"] = b"up"
    kv.flush()
    found.append([synced_by(lambda: kv.put(b"%d" % step, b"x")) for step in range(4)])
    found[-1].append(synced_by(lambda: kv.put(b"d", b"x", durable=True)))
    found[-1].append(synced_by(lambda: kv.__delitem__(b"d")))
    found[-1].append(synced_by(lambda: kv.pop(b"d", None)))
    kv.close()
answer(found)
"""
    )
    assert run_python(code, tmp_path, preload=interposer) == [
        [0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 0],
        [0, 1, 0, 1, 1, 0, 0],
    ]


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_a_sync_that_fails_on_close_is_raised_and_the_store_is_closed(
    tmp_path: Path, interposer: Path, nth: int
) -> None:
    """Log, index and mark are synced in turn; whichever fails, the lock is gone and the pairs are there."""
    code = (
        PRELUDE
        + """
from mmapio import FlushPolicy
from mmapkv import KVStore
kv = KVStore.open(arguments[0], flush_policy=FlushPolicy.MANUAL)
kv[b"a"] = b"1"
fail(FDATASYNC, arguments[1], errno.EIO)
found = [outcome(kv.close), kv.closed, outcome(kv.close)]
library.interposer_fail(FDATASYNC, ctypes.c_long(0), ctypes.c_long(0), 0)
with KVStore.open(arguments[0], "w", flush_policy=FlushPolicy.MANUAL) as kv:
    found += [kv.get(b"a", b"").decode(), len(kv)]
    kv[b"b"] = b"2"
answer(found)
"""
    )
    found = run_python(code, tmp_path / "kv", nth, preload=interposer)
    assert found == ["FlushFailed", True, "", "1", 1]
    assert contents(tmp_path / "kv") == {b"a": b"1", b"b": b"2"}


@pytest.mark.parametrize("call", ["FDATASYNC", "FALLOCATE", "PWRITE", "RENAMEAT"])
def test_creation_that_fails_anywhere_can_be_done_again(tmp_path: Path, interposer: Path, call: str) -> None:
    """Whichever system call it is that fails: the error comes out, and no left-over is in the way."""
    code = (
        PRELUDE
        + """
from mmapio import FlushPolicy
from mmapkv import KVStore
call = eval(arguments[1])
found = []
for nth in range(1, 40):
    path = f"{arguments[0]}/{nth}"
    before = library.interposer_count(call)
    fail(call, nth, errno.EIO)
    failed = outcome(lambda: KVStore.open(path, flush_policy=FlushPolicy.NEVER).close())
    made = library.interposer_count(call) - before
    library.interposer_fail(call, ctypes.c_long(0), ctypes.c_long(0), 0)
    with KVStore.open(path, flush_policy=FlushPolicy.NEVER) as kv:
        kv[b"a"] = b"1"
        found.append([failed != "", made >= nth, len(kv)])
    if made < nth:
        break
answer(found)
"""
    )
    found = run_python(code, tmp_path, call, preload=interposer)
    assert len(found) >= 2
    for failed, reached, length in found:
        assert failed == reached
        assert length == 1
