"""The demo, and that each of its checks can fail."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mmapkv import demo
from mmapkv._demo_files import Loaded
from mmapkv.store import KVStore
from tests.unit.mmapkv.demo.runs import (
    ACKNOWLEDGED,
    AFTER_THE_KILL,
    DONE,
    FILES,
    READ_BACK,
    Tampered,
    flip,
    refuse_to_read,
    rows,
    run_demo,
    tamper,
)


def test_everything_is_loaded_and_survives_the_kill(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, table, messages = run_demo(capsys, directory)
    assert code == 0, table
    assert table.endswith(f"{DONE}\n")
    assert table.isascii()
    row = rows(table)
    assert row["files"] == str(len(FILES))
    assert row["bytes"] == f"{sum(map(len, FILES.values())) / 1e6:.1f}"
    for name in ("files left out", "different when read back", "lost", "invented", "first load, damaged"):
        assert row[name] == "0"
    acknowledged = int(row["acknowledged at the kill"].replace(",", ""))
    assert 0 < acknowledged < int(row["writes the child was to make"].replace(",", ""))
    assert row["the one write in flight"] in ("absent", "complete")
    for name in ("puts", "gets", "open, after that close", "reopen, after the kill", "size on disk"):
        assert float(row[name].replace(",", "")) > 0
    assert [line.partition(":")[0] for line in messages.splitlines()][:2] == ["load", "read back"]


def test_it_runs_as_a_program_of_its_own_from_any_directory(directory: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mmapkv", "demo", os.path.relpath(directory, tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stdout.endswith(f"{DONE}\n")


def test_one_file_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "one"
    directory.mkdir()
    (directory / "empty").touch()
    code, table, _ = run_demo(capsys, directory)
    assert code == 0, table
    assert rows(table)["files"] == "1"


def test_without_a_directory_the_standard_library_is_loaded_and_nothing_installed_beside_it(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("site-packages", "dist-packages", "deep/site-packages", "__pycache__"):
        (directory / name).mkdir()
        (directory / name / "module").touch()
    (directory / "deep" / "dist-packages").write_text("a file, no directory")
    monkeypatch.setattr(sysconfig, "get_path", {"stdlib": str(directory)}.__getitem__)
    code, table, _ = run_demo(capsys)
    assert code == 0, table
    assert rows(table)["files"] == str(len(FILES) + 2)


def test_what_cannot_be_loaded_is_counted_and_named(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "CONTENT_BYTES_MAX", 5000)
    (directory / "loop").symlink_to("loop")
    (directory / "nowhere").symlink_to("missing")
    (directory / "up").symlink_to("..")
    (directory / "link").symlink_to("plain")
    os.mkfifo(directory / "pipe")
    code, table, _ = run_demo(capsys, directory)
    assert code == 0, table
    assert rows(table)["files"] == str(len(FILES))
    assert rows(table)["files left out"] == "5"
    assert f"large': {len(FILES[b'large']):,} bytes, and the demo loads up to 5,000" in table
    assert f"loop': {os.strerror(errno.ELOOP)}" in table
    assert f"nowhere': {os.strerror(errno.ENOENT)}" in table
    assert "up': a link to a directory" in table
    assert "pipe': not a regular file" in table


def test_what_may_not_be_read_is_counted_and_named(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Permissions do not stop root, so the refusal is made here."""
    scandir, open_path = os.scandir, Path.open

    def refuse(path: object, name: str) -> None:
        if isinstance(path, Path) and path.name == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def refusing_scandir(path: Path) -> Any:
        refuse(path, "deep")
        return scandir(path)

    def refusing_open(path: Path, *arguments: Any, **options: Any) -> Any:
        refuse(path, "plain")
        return open_path(path, *arguments, **options)

    monkeypatch.setattr(os, "scandir", refusing_scandir)
    monkeypatch.setattr(Path, "open", refusing_open)
    code, table, _ = run_demo(capsys, directory)
    assert code == 0, table
    assert rows(table)["files"] == str(len(FILES) - 3)
    assert rows(table)["files left out"] == "3"
    assert f"deep': {os.strerror(errno.EACCES)}" in table
    assert f"plain': {os.strerror(errno.EACCES)}" in table


def make_pipe_below(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "pipe")


def test_a_full_disk_is_named_with_a_way_out(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full:
        @staticmethod
        def open(path: str, mode: str) -> KVStore:
            raise OSError(errno.ENOSPC, "cannot grow", "segment")

    monkeypatch.setattr(demo, "KVStore", Full)
    code, table, messages = run_demo(capsys, directory, "--store", tmp_path / "store")
    assert (code, table) == (1, "")
    assert "no room for the store: cannot grow; use --store or TMPDIR" in messages
    assert repr(str(tmp_path / "store")) in messages


class TestUsage:
    """Requests that cannot be carried out: exit code 2, one message, and nothing was made."""

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda path: None, os.strerror(errno.ENOENT)),
            (lambda path: path.touch(), os.strerror(errno.ENOTDIR)),
            (lambda path: path.symlink_to(path.name), os.strerror(errno.ELOOP)),
            (lambda path: path.mkdir(), "there are no files below"),
            (lambda path: (path / "only" / "directories").mkdir(parents=True), "there are no files below"),
            (make_pipe_below, "none of the 1 files below"),
        ],
    )
    def test_a_directory_that_has_nothing_to_load(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], object], message: str
    ) -> None:
        directory = tmp_path / "what"
        make(directory)
        code, table, messages = run_demo(capsys, directory, "--store", tmp_path / "store")
        assert code == 2
        assert table == ""
        assert messages.splitlines()[-1].startswith("mmapkv demo: error: ")
        assert message in messages
        assert repr(str(directory)) in messages
        assert not (tmp_path / "store").exists()

    def test_a_store_that_is_there_already_is_left_alone(
        self, directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        store = tmp_path / "store"
        with KVStore.open(store, "c") as kv:
            kv.put(b"key", b"value")
        before = {path: path.read_bytes() for path in store.iterdir()}
        code, _, messages = run_demo(capsys, directory, "--store", store)
        assert code == 2
        assert "is not empty" in messages
        assert {path: path.read_bytes() for path in store.iterdir()} == before

    def test_a_file_where_the_store_should_be_is_left_alone(
        self, directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "store").write_text("mine")
        code, _, messages = run_demo(capsys, directory, "--store", tmp_path / "store")
        assert code == 2
        assert f"cannot make a store at {str(tmp_path / 'store')!r}: {os.strerror(errno.ENOTDIR)}" in messages
        assert (tmp_path / "store").read_text() == "mine"


class TestStore:
    """``--store``: where it may be made, and that it is kept."""

    def check(self, store: Path) -> None:
        with KVStore.open(store, "r") as kv:
            first = {key: kv[key] for key in kv if not key.startswith(b"/")}
            again = [key for key in kv if key.startswith(b"/again/")]
            assert len(kv) == len(first) + len(again)
        assert first == FILES
        assert again

    def test_a_new_path(self, directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, table, _ = run_demo(capsys, directory, "--store", tmp_path / "store")
        assert code == 0, table
        assert f"The store is kept at {str(tmp_path / 'store')!r}" in table
        self.check(tmp_path / "store")

    def test_an_empty_directory(
        self, directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "store").mkdir()
        assert run_demo(capsys, directory, "--store", tmp_path / "store")[0] == 0
        self.check(tmp_path / "store")

    def test_a_path_below_what_is_loaded(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run_demo(capsys, directory, "--store", directory / "deep" / "store")[0] == 0
        self.check(directory / "deep" / "store")

    def test_it_is_kept_when_something_does_not_match(
        self,
        directory: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        tamper(monkeypatch, AFTER_THE_KILL, lambda kv: kv.put(b"/planted", b""))
        code, table, _ = run_demo(capsys, directory, "--store", tmp_path / "store")
        assert code == 1
        assert "The store is kept at" in table
        assert (tmp_path / "store").is_dir()


class TestMismatches:
    """A store that is not as it should be: the exit code is 1, and the table says what is wrong."""

    def check(self, capsys: pytest.CaptureFixture[str], directory: Path, expected: dict[str, int]) -> str:
        code, table, _ = run_demo(capsys, directory)
        assert code == 1, table
        row = rows(table)
        names = ("different when read back", "lost", "invented", "first load, damaged")
        assert {name: int(row[name]) for name in names} == {name: expected.get(name, 0) for name in names}
        assert f"FAILED: {sum(expected.values())} mismatches." in table
        return table

    def test_a_value_that_reads_back_altered(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tamper(monkeypatch, READ_BACK, lambda kv: Tampered(kv, b"large", flip))
        table = self.check(capsys, directory, {"different when read back": 1})
        assert "'large': byte 1,048,575 of 1,048,576 is 0xfe instead of 0xff" in table

    def test_a_value_that_reads_back_shorter(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tamper(monkeypatch, READ_BACK, lambda kv: Tampered(kv, b"zeros", lambda value: value[1:]))
        table = self.check(capsys, directory, {"different when read back": 1})
        assert "'zeros': 4,999 bytes instead of 5,000" in table

    def test_a_value_that_cannot_be_read(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tamper(monkeypatch, READ_BACK, lambda kv: Tampered(kv, b"plain", refuse_to_read))
        table = self.check(capsys, directory, {"different when read back": 1})
        assert "'plain': cannot be read: " in table
        assert "the checksum is wrong" in table

    def test_a_value_altered_in_the_store(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The child copies it, so what it acknowledged is not what was loaded either."""
        tamper(monkeypatch, READ_BACK, lambda kv: kv.put(b"plain", b"pl@in"))
        code, table, _ = run_demo(capsys, directory)
        assert code == 1
        assert rows(table)["different when read back"] == "1"
        assert rows(table)["first load, damaged"] == "1"
        assert int(rows(table)["lost"]) > 0

    def test_an_empty_value_that_is_gone(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tamper(monkeypatch, AFTER_THE_KILL, lambda kv: kv.__delitem__(b"empty"))
        assert "'empty': is absent" in self.check(capsys, directory, {"first load, damaged": 1})

    def test_a_lost_write(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tamper(monkeypatch, AFTER_THE_KILL, lambda kv: kv.__delitem__(ACKNOWLEDGED))
        assert "is absent" in self.check(capsys, directory, {"lost": 1})

    def test_an_acknowledged_write_with_an_altered_byte(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tamper(monkeypatch, AFTER_THE_KILL, lambda kv: kv.put(ACKNOWLEDGED, flip(kv[ACKNOWLEDGED])))
        assert "Lost:\n" in self.check(capsys, directory, {"lost": 1})

    def test_an_acknowledged_write_with_the_value_of_another(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tamper(monkeypatch, AFTER_THE_KILL, lambda kv: kv.put(ACKNOWLEDGED, kv[b"again/0/0/plain"]))
        assert "instead of its own key" in self.check(capsys, directory, {"lost": 1})

    def test_an_invented_write(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tamper(monkeypatch, AFTER_THE_KILL, lambda kv: kv.put(b"/again/0/999999/plain", b""))
        table = self.check(capsys, directory, {"invented": 1})
        assert "'/again/0/999999/plain': was never submitted" in table

    def test_more_mismatches_than_can_be_shown(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def plant(kv: KVStore) -> None:
            for number in range(100):
                kv.put(b"/planted/%d" % number, b"")

        tamper(monkeypatch, AFTER_THE_KILL, plant)
        table = self.check(capsys, directory, {"invented": 100})
        assert table.count("was never submitted") == 5
        assert "and 95 more" in table

    def test_an_altered_value_of_which_only_the_digest_is_known(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(demo, "Loaded", partial(Loaded, memory_bytes_max=0))
        tamper(monkeypatch, AFTER_THE_KILL, lambda kv: kv.put(ACKNOWLEDGED, flip(kv[ACKNOWLEDGED])))
        assert "another digest" in self.check(capsys, directory, {"lost": 1})
