"""The kill of the demo: the child, what may be in the store afterwards, and Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mmapkv import _demo_crash
from mmapkv._demo_check import check_after_kill
from mmapkv._demo_crash import ChildError, Kill, SecondLoad
from mmapkv._demo_files import Loaded
from mmapkv._demo_report import AfterKill
from mmapkv.store import KVStore
from mmaplog._progress import progress
from tests.unit.mmapkv.demo.runs import rows, run_demo


def test_the_child_imports_what_the_parent_imports(directory: Path, tmp_path: Path) -> None:
    """A source checkout as the working directory, without its native modules, broke the child."""
    checkout = tmp_path / "checkout"
    (checkout / "mmapkv").mkdir(parents=True)
    (checkout / "mmapkv" / "__init__.py").write_text("raise ImportError('not the installed package')\n")
    program = "import sys; from mmapkv.cli import main; sys.exit(main(['demo', sys.argv[1]]))"
    command = [sys.executable, "-P", "-c", program, str(directory)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=checkout)
    assert finished.returncode == 0, finished.stdout + finished.stderr


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
            "_demo_crash.CHILD_PROGRAM = 'import time; time.sleep(600)'; count = _demo_crash._count; "
            "_demo_crash._count = lambda *rest: (print(file=sys.stderr, flush=True), count(*rest))[1]; "
            "sys.exit(main(['demo', sys.argv[1]]))"
        )
        command = [sys.executable, "-c", program, str(directory)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            assert process.stdout is not None
            # The empty line is of who begins to wait: when the child begins, its parent may not have it yet.
            while process.stderr.readline() != "\n":
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            messages = process.stderr.read()
            table = process.stdout.read()
        assert process.returncode == 130
        assert table == ""
        assert messages.splitlines()[-1] == "mmapkv demo: interrupted"
        assert "Traceback" not in messages
