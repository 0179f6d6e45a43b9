"""One handle, many threads. Each case runs in a process of its own: what goes wrong here may be a crash."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.mmapio.processes import run_python

COMMON = """
import sys, threading, time
from mmapio import Closed, FlushPolicy
from mmapkv import KVStore
sys.setswitchinterval(1e-5)
path, policy = arguments[0], eval(arguments[1])

def together(*works):
    errors = []
    start = threading.Barrier(len(works))
    def run(work):
        start.wait()
        try:
            work()
        except BaseException as error:
            errors.append(error)
    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return errors

def open_store(name=""):
    return KVStore.open(path + name, flush_policy=policy, segment_bytes=64 << 10)
"""
POLICIES = ["FlushPolicy.NEVER", "FlushPolicy.MANUAL", "FlushPolicy.ALWAYS", "FlushPolicy.every_millis(1)"]


@pytest.mark.parametrize("policy", POLICIES)
def test_threads_with_keys_of_their_own(tmp_path: Path, policy: str) -> None:
    """Each sees exactly what it wrote; the count is the sum of all."""
    code = (
        COMMON
        + """
kv = open_store()
count = 60 if "ALWAYS" in arguments[1] else 3000
models = [{} for _ in range(4)]
def worker(name):
    model = models[name]
    def work():
        for number in range(count):
            key = b"%d:%d" % (name, number * 7919 % 997)
            if number % 5 == 4:
                assert kv.pop(key, None) == model.pop(key, None)
            else:
                kv[key] = model[key] = b"%d" % number * (number % 30)
            other = b"%d:%d" % (name, number * 31 % 997)
            assert kv.get(other) == model.get(other)
    return work
def flusher():
    for _ in range(20): kv.flush()
def walker():
    for _ in range(5):
        seen = [key for key, value in kv.items()]
        assert len(seen) == len(set(seen))
        kv.stats(), len(kv)
errors = together(*map(worker, range(4)), flusher, walker)
assert not errors, errors
expected = {key: value for model in models for key, value in model.items()}
assert dict(kv) == expected and len(kv) == len(expected)
kv.close()
with KVStore.open(path, "r") as kv:
    assert dict(kv) == expected
answer(len(expected))
"""
    )
    assert run_python(code, tmp_path / "kv", policy) > 0


def test_threads_that_want_the_same_keys(tmp_path: Path) -> None:
    """A value is one that somebody wrote, the count is right, and each pair is popped once."""
    code = (
        COMMON
        + """
kv = open_store()
keys = [b"%d" % number for number in range(20)]
def writer(name):
    def work():
        for number in range(2000):
            kv[keys[number * 13 % 20]] = b"%d" % name * 50
            kv.pop(keys[number * 7 % 20], None)
    return work
def reader():
    for number in range(4000):
        value = kv.get(keys[number % 20])
        assert value is None or len(set(value)) == 1 and len(value) == 50, value
errors = together(*map(writer, range(3)), reader, reader)
assert not errors, errors
assert len(kv) == len(list(kv)) == sum(key in kv for key in keys)
kv.update({b"%d" % number: b"x" for number in range(2000)})
popped = []
def popper():
    while True:
        try:
            popped.append(kv.popitem()[0])
        except KeyError:
            if not kv: return
errors = together(popper, popper, popper)
assert not errors, errors
assert len(popped) == len(set(popped)) == 2000
answer(len(kv))
"""
    )
    assert run_python(code, tmp_path / "kv", "FlushPolicy.NEVER") == 0


def test_threads_that_pop_items(tmp_path: Path) -> None:
    """Of a store and of parts of one, in the order of writing and in that of the keys. Each gets its own."""
    code = (
        COMMON
        + """
from mmapkv.codecs import Bytes
for ordered in (False, True):
    with KVStore.open(path + str(ordered), segment_bytes=64 << 10, ordered=ordered) as kv:
        for part in (kv, kv.namespace(b"part/"), kv.typed(Bytes(), keys=str)):
            part.put_many((f"{number}", b"v" * 100) for number in range(3000))
            found = []
            def take():
                try:
                    while True: found.append(part.popitem()[0])
                except KeyError:
                    pass
            errors = together(take, take, take, take)
            assert not errors, errors
            assert len(found) == len(set(found)) == 3000 and not kv
answer(len(found))
"""
    )
    assert run_python(code, tmp_path / "kv", "FlushPolicy.NEVER") == 3000


@pytest.mark.parametrize("policy", POLICIES)
def test_closing_while_others_use_the_store(tmp_path: Path, policy: str) -> None:
    """They get Closed, what they were told is there, and the store that is left is whole.

    Once the index was let go of before the log, and a put in between crashed the process.
    """
    code = (
        COMMON
        + """
total = 0
for round_ in range(6):
    kv = open_store(str(round_))
    acknowledged = [[], []]
    def put(name):
        def work():
            number = 0
            while True:
                kv[b"%d:%d" % (name, number)] = b"x" * 200
                acknowledged[name].append(number)
                number += 1
        return work
    def flush():
        while True: kv.flush()
    def get():
        while True: kv.get(b"0:1")
    def walk():
        while True:
            for key in kv: pass
    def close():
        while not all(len(each) > 10 for each in acknowledged): time.sleep(0)
        kv.close()
    errors = together(put(0), put(1), flush, get, walk, close)
    assert len(errors) == 5 and all(type(error) is Closed for error in errors), errors
    with KVStore.open(f"{path}{round_}", "r") as reader:
        for name in (0, 1):
            for number in acknowledged[name]:
                assert reader[b"%d:%d" % (name, number)] == b"x" * 200
        assert len(dict(reader.items())) == len(reader)
        total += len(reader)
answer(total)
"""
    )
    assert run_python(code, tmp_path / "kv", policy) >= 120


def test_closing_from_several_threads(tmp_path: Path) -> None:
    """Each of them may think that it is the one."""
    code = (
        COMMON
        + """
for round_ in range(10):
    kv = open_store(str(round_))
    kv[b"a"] = b"1"
    errors = together(*[kv.close] * 6)
    assert not errors, errors
    assert kv.closed
answer(True)
"""
    )
    for number, policy in enumerate(["FlushPolicy.MANUAL", "FlushPolicy.every_millis(1)"]):
        assert run_python(code, tmp_path / f"kv{number}", policy)


def test_opening_and_closing_from_several_threads(tmp_path: Path) -> None:
    """Exactly one is the writer at a time; the others are told so, and readers always get in."""
    code = (
        COMMON
        + """
from mmapkv import Locked
open_store().close()
wrote = []
def write():
    written = 0
    while written < 30:
        try:
            with open_store() as kv:
                kv[b"%d" % len(wrote)] = b"x"
                wrote.append(1)
                written += 1
        except Locked:
            pass
def read():
    for _ in range(30):
        with KVStore.open(path, "r") as kv:
            assert len(kv) <= len(list(kv)), 'a writer adds meanwhile, and never takes away'
errors = together(write, write, read, read)
assert not errors, errors
with KVStore.open(path, "r") as kv:
    answer([len(kv) == len(wrote), len(wrote) == 60])
"""
    )
    assert run_python(code, tmp_path / "kv", "FlushPolicy.NEVER") == [True, True]
