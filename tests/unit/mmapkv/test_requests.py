"""What is said of a request that cannot be carried out: where the named directory is something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmapkv import KVStore
from mmapkv.cli import main
from mmapkv.decode import KEY_BYTES_MAX
from mmaplog import Log
from mmaplog.cli import main as main_of_log
from tests.unit.mmapkv.stores import contents, opened

COMMANDS = {
    "get": ["get", "{}", "key"],
    "stat": ["stat", "{}"],
    "scan": ["scan", "{}"],
    "del": ["del", "{}", "key"],
    "verify": ["verify", "{}"],
    "verify --quick": ["verify", "{}", "--quick"],
    "repair": ["repair", "{}"],
    "compact": ["compact", "{}"],
    "dump": ["dump", "{}"],
}


def plain_log(path: Path) -> None:
    """Of one record."""
    with Log.open(path) as log:
        log.append(b"a line")


def other_files(path: Path) -> None:
    """A directory of somebody else's."""
    path.mkdir()
    (path / "notes.txt").write_text("mine")


MAKES = "mmapkv put and mmapkv load make a store\n"
FOUND: dict[str, tuple[Any, str]] = {
    "nothing": (lambda path: None, f"does not exist; {MAKES}"),
    "a file": (Path.touch, "is a file, and a store is a directory; name that\n"),
    "an empty directory": (Path.mkdir, f"is an empty directory; {MAKES}"),
    "other files": (other_files, "holds no store, but other files ('notes.txt', ...); name another one\n"),
    "a plain log": (plain_log, "use it as a log, by mmaplog, or name another directory"),
}


@pytest.mark.parametrize(("make", "told"), FOUND.values(), ids=FOUND.keys())
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_what_is_there_instead_of_a_store(
    tmp_path: Path, capsys: Any, command: list[str], make: Any, told: str
) -> None:
    """It spoke of modes and logs, of which who types never heard, and verify of a damaged plain log."""
    path = tmp_path / "place"
    make(path)
    before = sorted(tmp_path.rglob("*"))
    assert main([each.format(path) for each in command]) == 2
    assert sorted(tmp_path.rglob("*")) == before
    out, error = capsys.readouterr()
    assert error.startswith(f"mmapkv {command[0]}: error: ")
    assert told in error
    assert str(path) in error
    assert (out, error.count("\n"), "mode '" in error) == ("", 1, False)


def test_what_is_there_instead_of_a_log(tmp_path: Path, capsys: Any) -> None:
    """Likewise."""
    for name, (make, told) in FOUND.items():
        if name == "a plain log":
            continue
        make(tmp_path / name)
        for command in ("replay", "stat", "verify", "repair"):
            assert main_of_log([command, str(tmp_path / name)]) == 2
            expected = told.replace(MAKES, "mmaplog append makes a log\n").replace("store", "log")
            assert capsys.readouterr().err.endswith(expected)


def test_a_lock_that_is_missing_is_not_a_missing_store(tmp_path: Path, capsys: Any) -> None:
    """What is wrong inside is said as it is."""
    with opened(tmp_path / "kv") as kv:
        kv["a"] = "b"
    (tmp_path / "kv" / "LOCK").unlink()
    assert main(["get", str(tmp_path / "kv"), "a"]) == 2
    assert "the file is missing; open the log once with mode 'w'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["x" * (KEY_BYTES_MAX + 1), "value"], ["", "value"], ["key", "--hex", "value"], ["6b", "--hex", "0"]],
    ids=["too long", "empty", "no hexadecimal", "half a byte"],
)
def test_what_is_refused_makes_no_store(tmp_path: Path, capsys: Any, arguments: list[str]) -> None:
    """An empty one was left behind of a key that was too long."""
    assert main(["put", str(tmp_path / "kv"), *arguments]) == 2
    assert "mmapkv put: error: " in capsys.readouterr().err
    assert not (tmp_path / "kv").exists()


def test_options_anywhere(tmp_path: Path) -> None:
    """Behind a key and before its value, or between keys, an option was followed by what nobody asked for."""
    path = str(tmp_path / "kv")
    assert main(["put", path, "61", "--hex", "62"]) == 0
    assert main(["put", path, "--hex", "63", "--ttl", "1000", "64"]) == 0
    assert main(["put", path, "e", "--", "--hex"]) == 0
    assert main(["put", path, "--", "-k", "-v"]) == 0
    assert contents(tmp_path / "kv") == {b"a": b"b", b"c": b"d", b"e": b"--hex", b"-k": b"-v"}
    assert main(["del", path, "61", "--hex", "63", "65"]) == 0
    assert contents(tmp_path / "kv") == {b"-k": b"-v"}
    with pytest.raises(SystemExit):
        main(["put", path, "a", "b", "c"])


def test_a_quick_check_says_nothing_of_records(tmp_path: Path, capsys: Any) -> None:
    """It said that there were none, and no keys."""
    with KVStore.open(tmp_path / "kv") as kv:
        kv["a"] = "b"
    assert main(["verify", str(tmp_path / "kv"), "--quick"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "index",
        "entries",
        "omitted",
        "all",
    ]


@pytest.mark.parametrize(
    ("name", "head"), [("MANIFEST", b"mmaplog-manifest 1 0"), ("INDEX", b"\x7fELF\2\1\1\0")]
)
def test_one_remedy_for_one_damage(tmp_path: Path, capsys: Any, name: str, head: bytes) -> None:
    """The error had its own, and that of the check came behind it."""
    with KVStore.open(tmp_path / "kv") as kv:
        kv["a"] = "b"
    path = tmp_path / "kv" / name
    path.write_bytes(head + path.read_bytes()[len(head) :])
    assert main(["verify", str(tmp_path / "kv")]) == 1
    [line] = [each for each in capsys.readouterr().out.splitlines() if "DAMAGE" in each]
    assert line.count("; run mmapkv repair, which ") == 1
    assert "backup" not in line
    assert "move it away" not in line
    if name == "MANIFEST":
        assert main_of_log(["verify", str(tmp_path / "kv")]) == 1
        [line] = [each for each in capsys.readouterr().out.splitlines() if "DAMAGE" in each]
        assert ": the manifest does not match its checksum; restore it from a backup, or run mmapkv" in line
        assert line.count("; ") == 1
