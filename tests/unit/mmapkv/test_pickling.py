"""A pickled handle is one for reading the same store, wherever it is unpickled; and a copy is refused."""

from __future__ import annotations

import copy
import errno
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmapio import Closed, InvalidMode
from mmapkv import KVStore, Namespace, TypedStore
from mmapkv.codecs import Json, Text
from tests.unit.mmapio.processes import ROOT, in_child
from tests.unit.mmapkv.stores import agreeing, opened


def test_order_comes_with_it(tmp_path: Path) -> None:
    """What goes by the order of the keys gets it wherever it is unpickled."""
    with KVStore.open(tmp_path / "kv", ordered=True) as kv:
        kv.update({"c": "1", "a": "2", "b": "3"})
        with pickle.loads(pickle.dumps(kv)) as again:
            assert again._in_order
        names = pickle.loads(pickle.dumps(kv.namespace("n")))
        kv.namespace("n").update({"c": "1", "a": "2"})
        assert list(names) == [b"a", b"c"] == list(kv.namespace("n"))


@pytest.mark.parametrize("mode", ["c", "w", "r"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_handle_comes_back_for_reading(tmp_path: Path, mode: str, protocol: int) -> None:
    """Live, and whatever the first was for; the first goes on writing."""
    path = tmp_path / "kv"
    opened(path).close()
    with opened(path, mode) as kv, pickle.loads(pickle.dumps(kv, protocol)) as again:
        assert type(again) is KVStore
        assert again.path == str(path)
        if mode != "r":
            kv[b"a"] = b"1"
            assert again[b"a"] == b"1"
        with pytest.raises(InvalidMode):
            again[b"b"] = b"2"
        assert agreeing(again) == dict(kv)


def test_the_path_is_that_of_the_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative one means nothing after `chdir` or in another process; a link may lead elsewhere by then."""
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    opened(tmp_path / "there" / "one").close()
    opened(tmp_path / "there" / "two").close()
    Path("link").symlink_to("one")
    for name in ("one", "link"):
        with opened(Path(name)) as kv:
            kv["name"] = name
            monkeypatch.chdir(tmp_path)
            if name == "link":
                (tmp_path / "there" / "link").unlink()
                (tmp_path / "there" / "link").symlink_to("two")
            with pickle.loads(pickle.dumps(kv)) as again:
                assert again.path == str(tmp_path / "there" / "one")
                assert again["name"] == name.encode()
        monkeypatch.chdir(tmp_path / "there")


def test_options_of_reading_are_kept(tmp_path: Path) -> None:
    """Who does without checksums does so in his workers, too: a damaged value is handed out."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv[b"a"] = b"x" * 100
    (segment,) = path.glob("*.seg")
    raw = segment.read_bytes()
    segment.write_bytes(raw.replace(b"x" * 100, b"x" * 99 + b"y"))
    with KVStore.open(path, "r", verify=False) as kv, pickle.loads(pickle.dumps(kv)) as again:
        assert again[b"a"] == b"x" * 99 + b"y"
    with KVStore.open(path, "r") as kv, pickle.loads(pickle.dumps(kv)) as again, pytest.raises(OSError):
        again[b"a"]


def test_a_subclass_comes_back_as_itself(tmp_path: Path) -> None:
    """It is opened by its own `open`."""
    with Special.open(tmp_path / "kv") as kv, pickle.loads(pickle.dumps(kv)) as again:
        assert type(again) is Special


class Special(KVStore):
    """A store with something of its own."""


def test_what_was_pickled_and_is_gone(tmp_path: Path) -> None:
    """The error names the path, and says what unpickling does."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        raw = pickle.dumps(kv)
    shutil.rmtree(path)
    with pytest.raises(FileNotFoundError) as raised:
        pickle.loads(raw)
    assert raised.value.filename == str(path)
    assert raised.value.errno == errno.ENOENT
    (note,) = raised.value.__notes__
    assert repr(str(path)) in note
    assert "pickled handle" in note


def test_a_closed_handle_is_not_pickled(tmp_path: Path) -> None:
    """It would come back open."""
    kv = opened(tmp_path / "kv")
    views = [kv, kv.namespace("a"), kv.typed(Json())]
    kv.close()
    for each in views:
        with pytest.raises(Closed):
            pickle.dumps(each)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda kv: copy.deepcopy({"kv": [kv]})])
def test_a_store_is_not_copied(tmp_path: Path, duplicate: Callable[[object], object]) -> None:
    """A second handle of the same store is no copy of it: what one writes the other shows."""
    with opened(tmp_path / "kv") as kv, pytest.raises(TypeError, match="another handle"):
        duplicate(kv)


def test_views_take_their_store_along(tmp_path: Path) -> None:
    """Prefix, codec and type of the keys."""
    with opened(tmp_path / "kv") as kv:
        users = kv.namespace("users/").typed(Json(), keys=str)
        users["ann"] = {"age": 5}
        texts = kv.typed(Text(), keys=str)
        for view in (users, texts, kv.namespace("users/")):
            again = pickle.loads(pickle.dumps(view))
            assert type(again) is type(view)
            assert dict(again) == dict(view)
            assert again.store is not kv
            assert (again.prefix, again.codec) == (view.prefix, view.codec)
            with pytest.raises(InvalidMode):
                again["ann"] = view["ann" if view is not texts else "users/ann"]
            again.store.close()
        assert isinstance(users, Namespace)
        assert isinstance(texts, TypedStore)


def test_a_view_is_copied_as_a_view(tmp_path: Path) -> None:
    """Of the same store, which is not copied; and not deeply."""
    with opened(tmp_path / "kv") as kv:
        users = kv.namespace("users/")
        with pytest.raises(TypeError):
            copy.deepcopy(users)
        users["a"] = b"1"
        copied = copy.copy(users)
        assert copied.store is kv
        assert dict(copied) == {b"a": b"1"}


def ask(kv: Any, key: Any) -> Any:
    """What a worker does with a handle that it was sent: the value, and what another handle is told."""
    return kv[key], len(kv), kv.get("missing"), os.getpid()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_worker_opens_what_it_is_sent(tmp_path: Path, method: str) -> None:
    """However it was started, while the writer has the store open."""
    with opened(tmp_path / "kv") as kv:
        kv[b"a"] = b"1"
        typed = kv.typed(Json(), keys=str)
        typed["b"] = [1]
        with multiprocessing.get_context(method).Pool(1) as pool:
            value, count, missing, worker = pool.apply(ask, (kv, b"a"))
            assert (value, count, missing) == (b"1", 2, None)
            assert worker != os.getpid()
            kv[b"a"] = b"2"
            assert pool.apply(ask, (kv, b"a"))[0] == b"2"
            assert pool.apply(ask, (typed, "b"))[0] == [1]
        kv[b"c"] = b"3"


def test_an_error_in_a_worker_names_the_path(tmp_path: Path) -> None:
    """A process of its own, which has nothing but the bytes."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        (tmp_path / "handle").write_bytes(pickle.dumps(kv))
    shutil.rmtree(path)
    code = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "handle")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert str(path) in done.stderr
    assert "A pickled handle is opened again by its path" in done.stderr


def test_a_handle_is_unpickled_in_a_forked_child(tmp_path: Path) -> None:
    """Beside the inherited one."""
    with opened(tmp_path / "kv") as kv:
        kv[b"a"] = b"1"
        raw = pickle.dumps(kv)
        assert in_child(lambda: agreeing(pickle.loads(raw))) == {b"a": b"1"}
