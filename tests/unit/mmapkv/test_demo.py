"""The demo, and that each of its checks can fail."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from mmapio import MmapIoError
from mmapkv import _demo_crash, demo
from mmapkv._demo_check import check_after_kill
from mmapkv._demo_crash import ChildError, Kill, SecondLoad
from mmapkv._demo_files import Loaded
from mmapkv._demo_report import AfterKill
from mmapkv._progress import progress
from mmapkv.cli import main
from mmapkv.store import KVStore

FILES = {
    b"again/0/0/plain": b"named like a key of the second load",
    b"deep/er/still/file": b"deep",
    b"empty": b"",
    b"line\nend": b"a name of two lines",
    b"not text \xff": b"a name that is not UTF-8",
    b"large": bytes(range(256)) * 4096,
    b"plain": b"plain",
    b"zeros": bytes(5000),
}

DONE = "OK: every acknowledged write is there, byte for byte, and nothing else is."


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory that holds :data:`FILES`."""
    directory = tmp_path / "files"
    for name, content in FILES.items():
        path = directory / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return directory


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary stores are made. None of them is there when a test is over."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield place
    assert list(place.iterdir()) == []


def rows(table: str) -> dict[str, str]:
    """The values of a printed table by their names; of a name that occurs twice, the first."""
    found: dict[str, str] = {}
    for line in table.splitlines():
        match = re.fullmatch(r"([a-z][^:]*?|  of content)  +(\S+)(?:  \S+)?", line)
        if match:
            found.setdefault(match[1].strip(), match[2])
    return found


def run_demo(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the demo."""
    code = main(["demo", *map(str, arguments)])
    output = capsys.readouterr()
    return code, output.out, output.err


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


def test_the_child_imports_what_the_parent_imports(directory: Path, tmp_path: Path) -> None:
    """A source checkout as the working directory, without its native modules, broke the child."""
    checkout = tmp_path / "checkout"
    (checkout / "mmapkv").mkdir(parents=True)
    (checkout / "mmapkv" / "__init__.py").write_text("raise ImportError('not the installed package')\n")
    program = "import sys; from mmapkv.cli import main; sys.exit(main(['demo', sys.argv[1]]))"
    command = [sys.executable, "-P", "-c", program, str(directory)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=checkout)
    assert finished.returncode == 0, finished.stdout + finished.stderr


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


# Which time it is that the demo opens its store.
READ_BACK, AFTER_THE_KILL = 2, 3

# The first key that the child puts.
ACKNOWLEDGED = b"/again/0/0/" + min(FILES)


class Tampered:
    """A store whose reads go wrong for some keys."""

    def __init__(self, kv: KVStore, key: bytes, read: Callable[[bytes], bytes]) -> None:
        self.kv = kv
        self.key = key
        self.read = read

    def __getitem__(self, key: bytes) -> bytes:
        return self.read(self.kv[key]) if key == self.key else self.kv[key]

    def __contains__(self, key: object) -> bool:
        return key in self.kv

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.kv)

    def __len__(self) -> int:
        return len(self.kv)

    def __enter__(self) -> Tampered:
        return self

    def __exit__(self, *raised: object) -> None:
        self.kv.close()


def tamper(monkeypatch: pytest.MonkeyPatch, time: int, change: Callable[[KVStore], object]) -> None:
    """Let `change` have the store when the demo opens it for the `time`-th time.

    It alters what is stored, or returns what the demo shall see in place of the store.
    """
    count = 0

    class Opener:
        @staticmethod
        def open(path: str, mode: Literal["c", "w"]) -> object:
            nonlocal count
            count += 1
            kv = KVStore.open(path, mode)
            return (change(kv) or kv) if count == time else kv

    monkeypatch.setattr(demo, "KVStore", Opener)


def flip(value: bytes) -> bytes:
    """`value` with one bit of its last byte changed."""
    return value[:-1] + bytes([value[-1] ^ 1])


def refuse_to_read(value: bytes) -> bytes:
    raise MmapIoError(errno.EBADMSG, "the checksum is wrong")


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


class TestAfterKill:
    """The check of the second load, on stores made by hand."""

    SOURCES = (b"a", b"b")
    ACKNOWLEDGED = 3

    def check(
        self, tmp_path: Path, planted: dict[bytes, bytes], without: tuple[bytes, ...] = ()
    ) -> AfterKill:
        loaded = Loaded()
        load = SecondLoad(0, 3, self.SOURCES)
        with KVStore.open(tmp_path / "store", "c") as kv:
            for key in self.SOURCES:
                kv.put(key, b"content of " + key)
                loaded.add(key, b"content of " + key)
            for index in range(self.ACKNOWLEDGED):
                kv.put(load.key(index), self.value(index))
            for key, value in planted.items():
                kv.put(key, value)
            for key in without:
                del kv[key]
            with progress("check", 1, "values") as bar:
                return check_after_kill(kv, loaded, [Kill(load, self.ACKNOWLEDGED)], bar)

    def key(self, index: int) -> bytes:
        return SecondLoad(0, 3, self.SOURCES).key(index)

    def value(self, index: int) -> bytes:
        return SecondLoad(0, 3, self.SOURCES).stamp(index) + b"content of " + self.SOURCES[index % 2]

    def test_the_order_of_the_puts(self) -> None:
        keys = [self.key(index) for index in range(6)]
        assert keys == [b"/again/0/%d/%s" % (number, key) for number in range(3) for key in self.SOURCES]

    def test_the_write_in_flight_may_be_absent(self, tmp_path: Path) -> None:
        result = self.check(tmp_path, {})
        assert result == AfterKill(submitted=6, acknowledged=3, in_flight="absent")

    def test_the_write_in_flight_may_be_complete(self, tmp_path: Path) -> None:
        result = self.check(tmp_path, {self.key(3): self.value(3)})
        assert result == AfterKill(submitted=6, acknowledged=3, in_flight="complete")

    @pytest.mark.parametrize("cut", [0, 1, -1])
    def test_the_write_in_flight_may_not_be_half(self, tmp_path: Path, cut: int) -> None:
        result = self.check(tmp_path, {self.key(3): self.value(3)[:cut]})
        assert result.in_flight == "damaged"
        assert (result.invented.count, result.lost.count) == (1, 0)

    def test_nothing_may_be_there_after_the_write_in_flight(self, tmp_path: Path) -> None:
        result = self.check(tmp_path, {self.key(4): self.value(4)})
        assert (result.invented.count, result.lost.count) == (1, 0)

    def test_an_acknowledged_write_may_not_be_absent(self, tmp_path: Path) -> None:
        result = self.check(tmp_path, {}, without=(self.key(2),))
        assert (result.invented.count, result.lost.count) == (0, 1)


class TestChild:
    """The child that is killed, and what happens when it cannot be."""

    def test_a_child_that_was_done_too_soon_is_followed_by_another(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run_and_kill = _demo_crash._run_and_kill
        loads = []

        def too_late(store: str, load: SecondLoad, kill_at: int, *rest: object) -> int:
            loads.append(load)
            return run_and_kill(store, load, kill_at if len(loads) > 1 else len(load), *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(_demo_crash, "_run_and_kill", too_late)
        code, table, _ = run_demo(capsys, directory)
        assert code == 0, table
        assert [len(load) // len(loads[0]) for load in loads] == [1, 2]
        assert "before they could be killed, and counted above: 1\n" in table
        assert int(rows(table)["acknowledged at the kill"].replace(",", "")) > len(loads[0])

    def test_children_that_are_always_done_too_soon_are_a_failure(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(_demo_crash, "_run_and_kill", lambda store, load, kill_at, bar: len(load))
        code, table, messages = run_demo(capsys, directory)
        assert (code, table) == (1, "")
        assert "the child completed its load before it could be killed, 8 times" in messages

    @pytest.mark.parametrize(
        ("program", "message"),
        [
            ("raise SystemExit(3)", "ended by itself with status 3 after 0 writes"),
            ("import os; os.kill(os.getpid(), 9)", "ended by itself with status -9 after 0 writes"),
            ("print('hello', end='')", "acknowledged with b'hello', expected b'+'"),
            ("import time; time.sleep(600)", "acknowledged no write for 0.2 s"),
        ],
    )
    def test_a_child_that_fails_by_itself(
        self,
        directory: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        program: str,
        message: str,
    ) -> None:
        monkeypatch.setattr(_demo_crash, "CHILD_PROGRAM", program)
        if "sleep" in program:
            monkeypatch.setattr(_demo_crash, "CHILD_SILENCE_S_MAX", 0.2)
        code, table, messages = run_demo(capsys, directory)
        assert (code, table) == (1, "")
        assert f"mmapkv demo: error: the loading child {message}" in messages

    def test_a_child_that_cannot_open_the_store_says_why(self, tmp_path: Path) -> None:
        with pytest.raises(ChildError, match="ended by itself with status 1 after 0 writes"):
            _demo_crash.kill_mid_way(str(tmp_path / "missing"), [b"key"], 0)

    @pytest.mark.parametrize(
        ("files", "size", "rounds"), [(7000, 10**8, 1), (3, 0, 667), (1, 10**9, 2), (9, 10**7, 6)]
    )
    def test_a_small_directory_is_loaded_again_several_times(
        self, files: int, size: int, rounds: int
    ) -> None:
        assert _demo_crash._rounds(files, size) == rounds


class TestInterrupt:
    """Ctrl-C: the child is dead, and the fixture checks that the temporary store is gone."""

    def test_while_the_child_loads(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        children = []

        def interrupt(child: subprocess.Popen[bytes], *rest: object) -> int:
            children.append(child)
            raise KeyboardInterrupt

        monkeypatch.setattr(_demo_crash, "_count", interrupt)
        code, table, messages = run_demo(capsys, directory)
        assert (code, table) == (130, "")
        assert messages.endswith("mmapkv demo: interrupted\n")
        assert [child.returncode for child in children] == [-signal.SIGKILL]

    def test_while_the_temporary_store_is_removed(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """That takes a while: Ctrl-C left parts of one store in six behind."""
        cleanup = tempfile.TemporaryDirectory.cleanup
        calls = []

        def interrupted_cleanup(place: tempfile.TemporaryDirectory[str]) -> None:
            calls.append(place)
            if len(calls) == 1:
                raise KeyboardInterrupt
            cleanup(place)

        monkeypatch.setattr(tempfile.TemporaryDirectory, "cleanup", interrupted_cleanup)
        assert run_demo(capsys, directory)[0] == 130
        assert len(calls) == 2

    def test_by_a_signal(self, directory: Path) -> None:
        """The child never acknowledges anything, so the signal is sure to find the parent waiting for it."""
        program = (
            "import sys; from mmapkv import _demo_crash; from mmapkv.cli import main; "
            "_demo_crash.CHILD_PROGRAM = 'import sys, time; print(file=sys.stderr); time.sleep(600)'; "
            "sys.exit(main(['demo', sys.argv[1]]))"
        )
        command = [sys.executable, "-c", program, str(directory)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            assert process.stdout is not None
            # The empty line is the child's.
            while process.stderr.readline() != "\n":
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            messages = process.stderr.read()
            table = process.stdout.read()
        assert process.returncode == 130
        assert table == ""
        assert messages.splitlines()[-1] == "mmapkv demo: interrupted"
        assert "Traceback" not in messages
