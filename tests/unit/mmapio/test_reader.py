"""The reader keeps the contract of ``io.RawIOBase``, so that code which reads files reads mappings."""

from __future__ import annotations

import array
import csv
import io
import json
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from mmapio import Closed, MappingFault, MemoryMappedFile, OutOfBounds, Reader, ResizeFailed

CONTENT = b"".join(b"line %d\n" % number for number in range(2000))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of lines."""
    made = tmp_path / "file"
    made.write_bytes(CONTENT)
    return made


@pytest.fixture
def mapped(path: Path) -> Iterator[MemoryMappedFile]:
    """It, mapped."""
    with MemoryMappedFile.open_rw(path) as made:
        yield made


def test_a_reader_is_a_raw_file(mapped: MemoryMappedFile) -> None:
    """Libraries ask these before they begin."""
    with mapped.reader() as reader:
        assert isinstance(reader, Reader)
        assert isinstance(reader, io.RawIOBase)
        assert (reader.readable(), reader.seekable(), reader.writable()) == (True, True, False)
        assert (reader.isatty(), reader.closed, reader.tell()) == (False, False, 0)
        with pytest.raises(io.UnsupportedOperation):
            reader.fileno()
        with pytest.raises(io.UnsupportedOperation):
            reader.truncate(5)
        unknown: Any = reader
        with pytest.raises((io.UnsupportedOperation, AttributeError)):
            unknown.write(b"x")
        reader.flush()


def test_reading_goes_on_where_it_ended(mapped: MemoryMappedFile) -> None:
    """And at the end gives nothing, as often as it is asked."""
    reader = mapped.reader()
    assert reader.read(0) == b""
    assert reader.read(4) == CONTENT[:4]
    assert reader.readline() == CONTENT[4:7]
    buffer = bytearray(5)
    assert reader.readinto(buffer) == 5
    assert bytes(buffer) == CONTENT[7:12]
    assert reader.tell() == 12
    assert reader.read() == CONTENT[12:]
    for ask in (
        reader.read,
        reader.readall,
        lambda: reader.read(5),
        lambda: reader.read(None),
        reader.readline,
    ):
        assert ask() == b""
    assert reader.readinto(buffer) == 0
    assert bytes(buffer) == CONTENT[7:12]
    reader.seek(-3, io.SEEK_END)
    assert reader.readinto(buffer) == 3
    assert bytes(buffer) == CONTENT[-3:] + CONTENT[10:12]


def test_readers_do_not_disturb_each_other(mapped: MemoryMappedFile) -> None:
    """Each has a position of its own, which is why there can be any number."""
    first, second = mapped.reader(), mapped.reader()
    first.seek(100)
    assert second.read(3) == CONTENT[:3]
    assert first.read(3) == CONTENT[100:103]
    first.close()
    assert second.read(3) == CONTENT[3:6]
    assert mapped[0:3] == CONTENT[:3]


def test_a_reader_fills_any_writable_buffer(mapped: MemoryMappedFile) -> None:
    """Bytes are counted, whatever the items are; what cannot be filled is refused and moves nothing."""
    reader = mapped.reader()
    words = array.array("I", bytes(16))
    assert reader.readinto(words) == 16
    assert words.tobytes() == CONTENT[:16]
    part = bytearray(10)
    assert reader.readinto(memoryview(part)[3:7]) == 4
    assert bytes(part) == bytes(3) + CONTENT[16:20] + bytes(3)
    assert reader.readinto(bytearray()) == 0
    wrong: list[Any] = [b"1234", "1234", None, 5, memoryview(bytearray(8))[::2]]
    for at in (20, len(CONTENT)):
        reader.seek(at)
        for buffer in wrong:
            with pytest.raises((TypeError, BufferError)):
                reader.readinto(buffer)
        assert reader.tell() == at


@pytest.mark.parametrize("whence", [-1, 3, 5])
def test_a_whence_that_is_none_is_refused(mapped: MemoryMappedFile, whence: int) -> None:
    """And the position stays."""
    reader = mapped.reader()
    reader.seek(5)
    with pytest.raises(ValueError, match=f"not {whence}"):
        reader.seek(0, whence)
    assert reader.tell() == 5


def test_a_position_before_the_beginning_is_refused(mapped: MemoryMappedFile) -> None:
    """Wrapping around would read from the end."""
    reader = mapped.reader()
    reader.seek(5)
    for offset, whence in ((-1, 0), (-6, 1), (-len(CONTENT) - 1, 2), (-(2**70), 0)):
        with pytest.raises(OutOfBounds, match="position cannot be -"):
            reader.seek(offset, whence)
    assert reader.tell() == 5


@pytest.mark.parametrize("wrong", [1.5, "1", None, b"1"], ids=repr)
def test_a_position_that_is_no_integer_is_refused(mapped: MemoryMappedFile, wrong: Any) -> None:
    """``seek(1.5)`` that is accepted fails later, at a read that did nothing wrong."""
    reader = mapped.reader()
    with pytest.raises(TypeError):
        reader.seek(wrong)
    if wrong is not None:
        with pytest.raises(TypeError):
            reader.read(wrong)
    assert (reader.tell(), reader.read(1)) == (0, CONTENT[:1])


def test_a_position_beyond_the_end_reads_nothing(mapped: MemoryMappedFile) -> None:
    """As with a file; until the file has grown there."""
    reader = mapped.reader()
    for at in (len(CONTENT), len(CONTENT) + 5, 2**70):
        assert reader.seek(at) == at
        assert (reader.read(), reader.readinto(bytearray(5)), reader.tell()) == (b"", 0, at)
    reader.seek(len(CONTENT) + 1)
    mapped.resize(len(CONTENT) + 3)
    assert reader.read() == b"\0\0"
    assert reader.seek(0, io.SEEK_END) == len(CONTENT) + 3


def test_a_reader_stands_in_the_way_of_no_resize(mapped: MemoryMappedFile) -> None:
    """It holds a position, no memory: what was cut off is the end of the file for it."""
    reader = mapped.reader()
    reader.read(100)
    mapped.resize(50)
    assert (reader.read(), reader.tell()) == (b"", 100)
    reader.seek(40)
    assert reader.read() == CONTENT[40:50]


def test_a_closed_reader_refuses(mapped: MemoryMappedFile) -> None:
    """With ValueError, as every file does; closing twice is nothing, and the mapping stays."""
    reader = mapped.reader()
    reader.close()
    reader.close()
    uses: list[Callable[[], object]] = [
        reader.read,
        reader.readall,
        reader.readline,
        reader.tell,
        lambda: reader.readinto(bytearray(1)),
        lambda: reader.seek(0),
        lambda: list(reader),
        lambda: reader.__enter__(),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="closed"):
            use()
    assert mapped[0:4] == b"line"


def test_a_reader_of_a_closed_file_refuses(mapped: MemoryMappedFile) -> None:
    """With Closed, which is a ValueError too."""
    reader = mapped.reader()
    mapped.close()
    for use in (reader.read, lambda: reader.readinto(bytearray(1)), lambda: reader.seek(0, io.SEEK_END)):
        with pytest.raises(Closed):
            use()
    with pytest.raises(Closed):
        mapped.reader()


def test_a_reader_of_a_file_that_others_cut_is_told(mapped: MemoryMappedFile, path: Path) -> None:
    """Zeros, or an end that is none, would be taken for the file's."""
    reader = mapped.reader()
    os.truncate(path, 0)
    with pytest.raises(MappingFault):
        reader.read()
    mapped.refresh()
    assert reader.read() == b""


def test_a_buffered_reader(mapped: MemoryMappedFile) -> None:
    """peek, readline and iteration at the speed of a buffer."""
    with io.BufferedReader(mapped.reader(), 4096) as buffered:
        assert buffered.peek(4)[:4] == b"line"
        assert list(buffered) == CONTENT.splitlines(keepends=True)
        assert buffered.seek(-5, io.SEEK_END) == len(CONTENT) - 5
        assert buffered.read() == CONTENT[-5:]
    assert not mapped.closed


def test_a_text_wrapper(mapped: MemoryMappedFile) -> None:
    """Lines of text, and what is built on them."""
    mapped.resize(1000)
    mapped[0:1000] = '{"größe": [1, 2]}\nname,größe\na,1\n'.encode().ljust(1000, b"\n")
    with io.TextIOWrapper(io.BufferedReader(mapped.reader()), encoding="utf-8") as text:
        assert json.loads(text.readline()) == {"größe": [1, 2]}
        place = text.tell()
        assert next(csv.DictReader(text)) == {"name": "a", "größe": "1"}
        text.seek(place)
        assert text.readline() == "name,größe\n"


def test_a_zip_archive(tmp_path: Path) -> None:
    """Reads from the end, seeks about, and hands the file to several readers of its own."""
    path = tmp_path / "archive"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"{number}", CONTENT * number)
    with MemoryMappedFile.open_ro(path) as mapped, zipfile.ZipFile(mapped.reader()) as archive:
        assert archive.testzip() is None
        with archive.open("1") as first, archive.open("2") as second:
            assert (first.read(9), second.read(9)) == (CONTENT[:9], CONTENT[:9])
            assert second.read() == (CONTENT * 2)[9:]


def test_pickles_one_after_the_other(tmp_path: Path) -> None:
    """Each load must end exactly behind its pickle, or the next one begins in the middle."""
    path, things = tmp_path / "pickles", [{"a": 1}, list(range(10_000)), b"x" * 200_000, "end"]
    with path.open("wb") as file:
        for thing in things:
            pickle.dump(thing, file, protocol=5)
    with MemoryMappedFile.open_ro(path) as mapped:
        reader = mapped.reader()
        assert [pickle.load(reader) for _ in things] == things
        with pytest.raises(EOFError):
            pickle.load(reader)


class LikeAFile(RuleBasedStateMachine):
    """A reader against an unbuffered file, call by call."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        path = Path(self.directory.name) / "file"
        path.write_bytes(CONTENT[:500])
        self.mapped = MemoryMappedFile.open_ro(path)
        self.reader = self.mapped.reader()
        self.file = path.open("rb", buffering=0)

    @rule(size=st.none() | st.integers(-2, 600))
    def read(self, size: int | None) -> None:
        """The same bytes."""
        assert self.reader.read(size) == self.file.read(-1 if size is None else size)

    @rule(size=st.integers(0, 600))
    def readinto(self, size: int) -> None:
        """The same count, and the same buffer."""
        ours, theirs = bytearray(size), bytearray(size)
        assert self.reader.readinto(ours) == self.file.readinto(theirs)
        assert ours == theirs

    @rule(size=st.integers(-1, 20))
    def readline(self, size: int) -> None:
        """The same line, as far as asked."""
        assert self.reader.readline(size) == self.file.readline(size)

    @rule(offset=st.integers(-600, 600), whence=st.sampled_from([0, 1, 2]))
    def seek(self, offset: int, whence: int) -> None:
        """The same position, or an OSError from both."""
        try:
            expected = self.file.seek(offset, whence)
        except OSError:
            with pytest.raises(OSError, match="position"):
                self.reader.seek(offset, whence)
        else:
            assert self.reader.seek(offset, whence) == expected
        assert self.reader.tell() == self.file.tell()

    def teardown(self) -> None:
        """Close, and forget."""
        self.file.close()
        self.mapped.close()
        self.directory.cleanup()


TestLikeAFile = LikeAFile.TestCase
TestLikeAFile.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_a_view_in_the_hands_of_a_reader_is_let_go(mapped: MemoryMappedFile) -> None:
    """Reading into a view of the same file must not leave a trace that refuses the next resize."""
    view = mapped.as_slice_mut(0, 100)
    assert mapped.reader().readinto(view) == 100
    with pytest.raises(ResizeFailed):
        mapped.resize(50)
    view.release()
    mapped.resize(50)
