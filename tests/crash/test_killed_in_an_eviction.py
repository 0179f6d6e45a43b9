"""A cache whose writer is killed around each call to the system that evicting makes, one by one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from mmapio import FlushPolicy
from mmapkv import KVStore
from tests.crash.ack_page import ACKNOWLEDGED, AckPage
from tests.crash.child import Child
from tests.crash.moments import die_at

MAX = 256 << 10
HOT = [b"hot-%d" % number for number in range(10)]
PUTS = 900
LOST: tuple[tuple[str, ...], ...] = ((), ("INDEX",), ("CONTROL",), ("VISITED",))
SUBMITTED_AT, MOMENTS_AT = ACKNOWLEDGED + 1, ACKNOWLEDGED + 2


def opened(path: Path) -> KVStore:
    return KVStore.open(path, flush_policy=FlushPolicy.MANUAL, segment_bytes=64 << 10, max_bytes=MAX)


def key(number: int) -> bytes:
    return b"key-%d" % (number % 700)


def value(number: int) -> bytes:
    return b"%08d" % number * 200


def load(path: Path) -> None:
    """A cache that is nearly full."""
    with opened(path) as kv:
        for each in HOT:
            kv[each] = each * 50
        for number in range(400):
            kv.get_many(HOT)
            kv[key(number)] = value(number)


def session(path: Path, page: AckPage, limit: int | None) -> int:
    """Put until what was there is gone, in a child that dies at moment number `limit`; how many there are."""
    page.reset()
    page.words[SUBMITTED_AT] = page.words[MOMENTS_AT] = page.words[ACKNOWLEDGED] = 400

    def body(started: Callable[[], None]) -> None:
        kv = opened(path)
        seen = die_at(limit)
        for number in range(400, 400 + PUTS):
            kv.get_many(HOT)
            page.words[SUBMITTED_AT] = number + 1
            kv[key(number)] = value(number)
            page.words[ACKNOWLEDGED] = number + 1
        page.words[MOMENTS_AT] = len(seen)
        started()

    child = Child(body)
    child.wait_started()
    assert child.kill() == ""
    return page.words[MOMENTS_AT]


def findings(path: Path, page: AckPage, lost: tuple[str, ...]) -> list[str]:
    """What is wrong with a cache that was left in the middle: an old value, or a new one that is gone."""
    newest = {key(number): value(number) for number in range(page.acknowledged)}
    pending = page.words[SUBMITTED_AT] - 1
    last = {key(number) for number in range(page.acknowledged - 80, page.acknowledged)}
    for name in lost:
        (path / name).unlink()
    wrong = []

    def look(kv: KVStore, who: str) -> None:
        found = dict(kv.items())
        if len(kv) != len(found) or {each: kv.get(each) for each in found} != found:
            wrong.append(f"{who} walks over something else than it looks up or counts")
        for each, content in found.items():
            if content not in (newest.get(each), value(pending) if each == key(pending) else None, each * 50):
                wrong.append(f"{who} has an old value of {each!r}")
        if missing := [each for each in {*last, *HOT} if each not in found]:
            wrong.append(f"{who} lacks {missing[:3]}")
        if damages := kv.verify().damages:
            wrong.append(f"{who} finds damage: {damages}")

    with KVStore.open(path, "r") as reader:
        look(reader, "a reader before recovery")
        with opened(path) as kv:
            look(kv, "the writer after it")
            look(reader, "the reader that was there")
            kv["new"] = "1"
            if kv.stats()["live_bytes"] > MAX:
                wrong.append("it is too large")
    return wrong


def test_a_kill_at_any_moment_loses_nothing_that_is_new(tmp_path: Path) -> None:
    page = AckPage()
    loaded, path = tmp_path / "loaded", tmp_path / "killed"
    load(loaded)
    shutil.copytree(loaded, path)
    moments = session(path, page, None)
    assert moments > 40, "an eviction this short would meet little"
    wrong = []
    for limit in range(1, moments + 1, max(17, moments // 12)):
        shutil.rmtree(path)
        shutil.copytree(loaded, path)
        session(path, page, limit)
        lost = LOST[limit // 17 % len(LOST)]
        try:
            found = findings(path, page, lost)
        except OSError as error:
            found = [f"{type(error).__name__}: {error}"]
        wrong += [f"killed at moment {limit}, lost {lost}: {text}" for text in found]
    assert wrong == []
