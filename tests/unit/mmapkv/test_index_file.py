"""The index can be lost or damaged in any way: what the log says is found again, or an error is raised."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

from mmapio import FlushPolicy
from mmapkv import CorruptionError, FormatError
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapio.processes import in_child, killed_after, run_python
from tests.unit.mmapkv.index_words import BUCKETS, LINE, IndexWords
from tests.unit.mmapkv.stores import agreeing, contents, lose, opened
from tests.unit.mmaplog.damage import overwrite, replace_by_directory, replace_by_fifo, replace_by_symlink

CONTENT = {b"key %d" % number: b"%d" % number * 20 for number in range(500)}
HEADER_SIZE, STATE_AT, SLOTS_AT, DIRECTORY_AT = 56, 4096, 8192, 204800


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A store that was closed cleanly."""
    path = tmp_path / "kv"
    fill(path)
    return path


def fill(path: Path) -> None:
    """Put CONTENT, with a deletion and an overwrite on the way."""
    with opened(path) as kv:
        kv[b"gone"] = b"x"
        kv[b"key 3"] = b"before"
        kv.update(CONTENT)
        del kv[b"gone"]


def patch_header(path: Path, offset: int, form: str, value: object, *, seal: bool = True) -> None:
    """Change a field of the index's header."""
    data = bytearray(path.read_bytes()[:HEADER_SIZE])
    struct.pack_into(form, data, offset, value)
    if seal:
        struct.pack_into(
            "<Q", data, HEADER_SIZE - 8, xxhash.xxh3_64_intdigest(bytes(data[: HEADER_SIZE - 8]), 0)
        )
    overwrite(path, bytes(data))


REFUSED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "of another kind": (lambda p: overwrite(p, b"\x7fELF\2\1\1\0"), "FormatError", "not an index"),
    "newer": (lambda p: patch_header(p, 8, "<I", 2), "FormatError", "upgrade"),
    "newer, with a checksum unknown to us": (
        lambda p: (patch_header(p, 8, "<I", 2, seal=False), overwrite(p, bytes(8), HEADER_SIZE - 8)),
        "FormatError",
        "upgrade",
    ),
    "of another byte order": (
        lambda p: overwrite(p, p.read_bytes()[:8][::-1] + p.read_bytes()[8:12][::-1]),
        "FormatError",
        "another byte order; open it there",
    ),
    "with an unknown feature": (lambda p: patch_header(p, 20, "<I", 4), "FormatError", "upgrade"),
    "a directory": (replace_by_directory, "IsADirectoryError", "directory"),
    "a FIFO": (replace_by_fifo, "OSError", "regular file"),
    "a link": (replace_by_symlink, "OSError", "symbolic"),
}


@pytest.mark.parametrize(
    ("mode", "control"), [("r", True), ("w", False)], ids=["r with CONTROL", "w without CONTROL"]
)
@pytest.mark.parametrize(("spoil", "error", "word"), REFUSED.values(), ids=REFUSED.keys())
def test_an_index_that_is_not_ours_to_replace_is_refused(
    closed: Path, mode: str, control: bool, spoil: Callable[[Path], object], error: str, word: str
) -> None:
    """What a newer version made is not garbage; what is no file is somebody's mistake."""
    if not control:
        lose(closed, "CONTROL")
    spoil(closed / "INDEX")
    segment = next(closed.glob("*.seg"))
    records = segment.read_bytes()[4096:]
    with (
        unchanged(closed, ignoring=("LOCK", "CONTROL", segment.name)),
        pytest.raises(OSError, match=word) as raised,
    ):
        opened(closed, mode)
    assert segment.read_bytes()[4096:] == records
    assert type(raised.value).__name__ == error
    assert str(closed / "INDEX") in str(raised.value)


def from_another_store(path: Path) -> None:
    """The index of a store that looks the same."""
    other = path.parent.parent / "other"
    fill(other)
    path.write_bytes((other / "INDEX").read_bytes())


def retired(path: Path) -> None:
    """An index whose successor never came: its writer was killed in between."""
    (root,) = struct.unpack_from("<Q", path.read_bytes(), STATE_AT + 64)
    overwrite(path, struct.pack("<Q", root | 0x80), STATE_AT + 64)


REBUILT: dict[str, Callable[[Path], object]] = {
    "missing": lambda p: p.unlink(),
    "of another store": from_another_store,
    "retired": retired,
    "with a header cut after its magic": lambda p: overwrite(p, bytes(48), 8),
    "with a flipped bit in its header": lambda p: overwrite(p, b"\x99", 45),
    **{
        f"with bit {bit} of its version flipped": lambda p, bit=bit: patch_header(
            p, 8, "<I", 1 ^ 1 << bit, seal=False
        )
        for bit in (0, 1, 7, 8, 31)
    },
    "all zeros": lambda p: p.write_bytes(
        bytes(p.stat().st_size)[:0] + p.read_bytes()[:HEADER_SIZE] + bytes(200_000)
    ),
    **{
        f"cut to {length} bytes": lambda p, length=length: os.truncate(p, length)
        for length in (0, 1, HEADER_SIZE, 4096, 8192, DIRECTORY_AT, DIRECTORY_AT + 4096, 180_223, 180_225)
    },
}


@pytest.mark.parametrize(
    ("mode", "control"), [("w", True), ("r", False)], ids=["w with CONTROL", "r without CONTROL"]
)
@pytest.mark.parametrize("spoil", REBUILT.values(), ids=REBUILT.keys())
def test_an_index_that_is_of_no_use_is_rebuilt(
    closed: Path, mode: str, control: bool, spoil: Callable[[Path], object]
) -> None:
    """From the log alone, by whoever comes first. It must not hang, nor show what another store holds."""
    if not control:
        lose(closed, "CONTROL")
    spoil(closed / "INDEX")
    assert in_child(lambda: contents(closed, mode)) == CONTENT
    with opened(closed) as kv:
        assert b"gone" not in kv
        kv[b"more"] = b"1"
    assert contents(closed) == {**CONTENT, b"more": b"1"}
    assert not (closed / "INDEX.tmp").exists()


WORDS = [
    *range(512, 560, 8),
    *range(STATE_AT, STATE_AT + 40, 8),
    *range(STATE_AT + 64, STATE_AT + 80, 8),
    *range(STATE_AT + 128, STATE_AT + 176, 8),
    *range(STATE_AT + 192, STATE_AT + 248, 8),
    *range(SLOTS_AT, SLOTS_AT + 16, 8),
    *range(DIRECTORY_AT, DIRECTORY_AT + 8, 8),
    *range(DIRECTORY_AT + 4096, DIRECTORY_AT + 4096 + 24, 8),
]


@pytest.mark.parametrize(
    ("flip", "control"),
    [(1, True), ((1 << 64) - 1, True), (1, False)],
    ids=["a bit", "all bits", "a bit, without CONTROL"],
)
def test_a_damaged_word_of_a_closed_index_never_shows(closed: Path, flip: int, control: bool) -> None:
    """State, slots, directory, mark: each word in turn. The store is right, or it says that it is damaged."""
    if not control:
        lose(closed, "CONTROL")
    original = (closed / "INDEX").read_bytes()
    wrong = []
    for at in WORDS:
        if not control:
            (closed / "CONTROL").unlink(missing_ok=True)
        (word,) = struct.unpack_from("<Q", original, at)
        (closed / "INDEX").write_bytes(original)
        overwrite(closed / "INDEX", struct.pack("<Q", word ^ flip), at)
        for mode in ("r", "w"):
            try:
                found = in_child(lambda mode=mode: looked_at(closed, mode))
            except AssertionError as error:
                found = str(error)
            if found != "right" and (mode == "w" or not found.startswith("CorruptionError")):
                wrong.append((at, mode, found))
    assert wrong == []


def looked_at(path: Path, mode: str) -> str:
    """ "right", or what is wrong: an exception, or what differs."""
    try:
        with opened(path, mode) as kv:
            for key, value in CONTENT.items():
                if kv.get(key) != value:
                    return f"{key!r} is {kv.get(key)!r}"
            if kv.get(b"gone") is not None or kv.get(b"never") is not None:
                return "a key that is not there"
            if dict(kv.items()) != CONTENT or len(kv) != len(CONTENT):
                return f"{len(dict(kv.items()))} items, length {len(kv)}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "right"


def test_a_damaged_page_is_an_error_for_readers_and_mended_by_a_writer(closed: Path) -> None:
    """Each page has a checksum from the last clean close, which is checked when it is first touched."""
    page = DIRECTORY_AT + 4096
    raw = (closed / "INDEX").read_bytes()
    for at in range(page + 64, page + 9 * 4096, 8):
        if any(raw[at : at + 8]):
            overwrite(closed / "INDEX", bytes([raw[at] ^ 1]), at)
            break
    with opened(closed, "r") as reader:
        with pytest.raises(CorruptionError, match="open the store for writing") as raised:
            reader[b"key 1"]
        assert str(closed) in str(raised.value)
        with opened(closed, "w") as kv:
            assert agreeing(kv) == CONTENT
        assert agreeing(reader) == CONTENT
    assert contents(closed) == CONTENT


@pytest.mark.parametrize("change", ["put", "delete", "overwrite"])
def test_a_damaged_page_is_mended_before_the_first_change(closed: Path, change: str) -> None:
    """Storing into it would make the checksum right and the damage lasting."""
    page = DIRECTORY_AT + 4096
    overwrite(closed / "INDEX", b"\x77" * 4, page + 64 + 64 * 100)
    expected = dict(CONTENT)
    with opened(closed, "w") as kv:
        if change == "put":
            kv[b"new"] = expected[b"new"] = b"1"
        elif change == "overwrite":
            kv[b"key 1"] = expected[b"key 1"] = b"1"
        else:
            del kv[b"key 1"], expected[b"key 1"]
        assert agreeing(kv) == expected
    assert contents(closed) == expected


@pytest.mark.parametrize("change", ["kv.put_many(more)", "kv.update(more)"])
def test_a_chain_that_leads_back_into_itself_ends(tmp_path: Path, change: str) -> None:
    """Whoever walks it without counting walks for ever."""
    path = tmp_path / "kv"
    killed_after(lambda: kept_open(path))
    words = IndexWords(path)
    for segment in words.segments:
        for bucket in range(BUCKETS):
            words[segment + LINE * (1 + bucket) + 56] = 1
        for link, onwards in ((1, 2), (2, 1)):
            for at in range(7):
                words[segment + LINE * (BUCKETS + link) + 8 * at] = 0
            words[segment + LINE * (BUCKETS + link) + 56] = onwards
    overwrite(path / "INDEX", bytes(words.data))
    code = f"""
from mmapkv import KVStore
more = {{b"more %d" % number: b"" for number in range(5000)}}
with KVStore.open(arguments[0], "w") as kv:
    {change}
    answer([len(kv), all(kv[key] == b"" for key in more)])
"""
    assert run_python(code, path) == [len(CONTENT) + 5000, True]


def kept_open(path: Path) -> object:
    """A store with CONTENT that is not closed."""
    kv = opened(path, "c", FlushPolicy.NEVER)
    kv.update(CONTENT)
    return kv


@pytest.mark.parametrize("lost", [[], ["INDEX"], ["CONTROL"], ["CONTROL", "INDEX"]], ids=str)
@pytest.mark.parametrize("mode", ["r", "w"])
def test_a_killed_writer_loses_nothing(tmp_path: Path, lost: list[str], mode: str) -> None:
    """The page cache outlives it, whatever of the derived files goes."""
    path = tmp_path / "kv"

    def write() -> object:
        kv = opened(path, "c", FlushPolicy.NEVER)
        kv.update(CONTENT)
        kv[b"gone"] = b"x"
        del kv[b"gone"]
        return kv

    killed_after(write)
    lose(path, *lost)
    assert contents(path, mode) == CONTENT


def test_an_old_index_beside_a_newer_log(closed: Path, tmp_path: Path) -> None:
    """Put back from a backup it knows nothing of what came since."""
    old = (closed / "INDEX").read_bytes()
    with opened(closed) as kv:
        kv[b"new"] = b"1"
        kv[b"key 1"] = b"changed"
        del kv[b"key 2"]
    expected = {**CONTENT, b"new": b"1", b"key 1": b"changed"}
    del expected[b"key 2"]
    (closed / "INDEX").write_bytes(old)
    for mode in ("r", "w", "r"):
        assert contents(closed, mode) == expected


@pytest.mark.parametrize("state", ["open", "cleanly closed", "killed"])
@pytest.mark.parametrize("mode", ["r", "w"])
def test_a_copied_store_is_a_store_of_its_own(tmp_path: Path, state: str, mode: str) -> None:
    """`cp -a` of it, live or not: the copy must not believe what speaks of the original's page cache."""
    path, copied = tmp_path / "kv", tmp_path / "copy"
    holder = None
    if state == "open":
        holder = opened(path)
        holder.update(CONTENT)
    elif state == "killed":
        killed_after(lambda: fill(path) or opened(path).update({b"key 1": CONTENT[b"key 1"]}))
    else:
        fill(path)
    subprocess.run(["cp", "-a", str(path), str(copied)], check=True)
    assert in_child(lambda: contents(copied, mode)) == CONTENT
    with opened(copied) as kv:
        kv[b"copy"] = b"1"
    if holder is not None:
        holder[b"original"] = b"1"
        assert b"copy" not in holder
        holder.close()
    assert contents(copied) == {**CONTENT, b"copy": b"1"}
    assert (b"original" in contents(path)) == (state == "open")


@pytest.mark.parametrize("killed", [False, True], ids=["cleanly closed", "killed"])
def test_a_moved_store_is_the_same_store(tmp_path: Path, killed: bool) -> None:
    """Nothing inside knows the path."""
    path = tmp_path / "kv"
    if killed:
        killed_after(lambda: opened(path).update(CONTENT))
    else:
        fill(path)
    path.rename(tmp_path / "moved")
    with (
        unchanged(tmp_path / "moved", ignoring=("LOCK", "CONTROL"))
        if not killed
        else unchanged(tmp_path / "none")
    ):
        assert contents(tmp_path / "moved") == CONTENT
    assert contents(tmp_path / "moved", "w") == CONTENT


def test_a_missing_segment_is_an_error_wherever_it_is_needed(tmp_path: Path) -> None:
    """The values of keys that lie in it are gone; the others can still be read."""
    path = tmp_path / "kv"
    expected = {b"%d" % number: b"%d" % number * 400 for number in range(200)}
    with opened(path) as kv:
        kv.update(expected)
    segments = sorted(path.glob("*.seg"))
    assert len(segments) > 3
    segments[1].rename(tmp_path / "elsewhere")
    with opened(path, "r") as kv:
        found: dict[bytes, bytes] = {}
        missing = 0
        for key in expected:
            try:
                found[key] = kv[key]
            except CorruptionError as error:
                assert "missing" in str(error)
                missing += 1
        assert 0 < missing < 100
        assert all(expected[key] == value for key, value in found.items())
        with pytest.raises(CorruptionError):
            list(kv.items())
    (path / "INDEX").unlink()
    with pytest.raises(CorruptionError):
        opened(path, "w")
    (tmp_path / "elsewhere").rename(segments[1])
    assert contents(path, "w") == expected


def test_a_damaged_value_is_an_error_and_never_a_wrong_value(tmp_path: Path) -> None:
    """Every look-up checks the record unless told not to."""
    from mmapkv import KVStore

    path = tmp_path / "kv"
    with opened(path) as kv:
        kv[b"key"] = b"a rather special value"
        kv[b"other"] = b"1"
    segment = next(path.glob("*.seg"))
    overwrite(segment, b"A", segment.read_bytes().index(b"a rather special"))
    with opened(path, "r") as kv:
        for use in (
            lambda: kv[b"key"],
            lambda: kv.get(b"key"),
            lambda: b"key" in kv,
            lambda: list(kv.items()),
        ):
            with pytest.raises(CorruptionError, match=r"checksum|damaged") as raised:
                use()
            assert segment.name in str(raised.value)
        assert kv[b"other"] == b"1"
    with KVStore.open(path, "r", verify=False) as kv:
        assert kv[b"key"] == b"A rather special value"


def test_a_damaged_key_is_an_error_and_not_an_absent_key(tmp_path: Path) -> None:
    """The tag fits and the key does not: that may be another key, or this one with a flipped bit."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv[b"a rather special key"] = b"value"
    segment = next(path.glob("*.seg"))
    overwrite(segment, b"A", segment.read_bytes().index(b"a rather special"))
    with opened(path, "r") as kv, pytest.raises(CorruptionError):
        kv.get(b"a rather special key")


def test_format_errors_are_not_cured_by_deleting(closed: Path) -> None:
    """A control: with its true header back, the refused index is the old one."""
    raw = (closed / "INDEX").read_bytes()
    patch_header(closed / "INDEX", 8, "<I", 2)
    with pytest.raises(FormatError):
        opened(closed)
    overwrite(closed / "INDEX", raw[:HEADER_SIZE])
    before = (closed / "INDEX").stat().st_ino
    assert contents(closed, "w") == CONTENT
    assert (closed / "INDEX").stat().st_ino == before
