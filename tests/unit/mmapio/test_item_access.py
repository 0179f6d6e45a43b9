"""``m[i]`` and ``m[a:b]``: what ``bytes`` and a ``bytearray`` that keeps its length would do."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mmapio import InvalidMode, MemoryMappedFile, MmapIoError, OutOfBounds
from tests.unit.mmapio.footprint import unchanged

SIZE = 10_000
CONTENT = bytes(n * 7 % 256 for n in range(SIZE))
HUGE = [2**31, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 2**70, -(2**70)]

bounds = st.none() | st.integers(-SIZE - 3, SIZE + 3) | st.sampled_from(HUGE)
steps = st.none() | st.integers(-SIZE - 1, SIZE + 1).filter(bool) | st.sampled_from([2**63, -(2**70)])


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[MemoryMappedFile]:
    """A file whose bytes tell where they are."""
    with MemoryMappedFile.create_rw(tmp_path / "file", SIZE) as made:
        made.update_region(0, CONTENT)
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryMappedFile]:
    """The same, for examples that only read."""
    path = tmp_path_factory.mktemp("shared") / "file"
    path.write_bytes(CONTENT)
    with MemoryMappedFile.open_ro(path) as made:
        yield made


@given(start=bounds, stop=bounds, step=steps)
@settings(max_examples=300)
def test_a_range_is_what_bytes_would_give(
    shared: MemoryMappedFile, start: int | None, stop: int | None, step: int | None
) -> None:
    """Clamped at both ends, negative from the end, empty when reversed, with any step."""
    found = shared[start:stop:step]
    assert type(found) is bytes
    assert found == CONTENT[start:stop:step]


@given(index=st.integers(-SIZE - 3, SIZE + 3) | st.sampled_from(HUGE))
def test_an_index_is_what_bytes_would_give(shared: MemoryMappedFile, index: int) -> None:
    """An int, or an IndexError that gives the numbers; never a byte of somebody else's memory."""
    try:
        expected = CONTENT[index]
    except IndexError:
        with pytest.raises(OutOfBounds, match=f"index {index} is outside the {SIZE} bytes") as raised:
            shared[index]
        assert isinstance(raised.value, IndexError)
        assert isinstance(raised.value, MmapIoError)
    else:
        assert shared[index] == expected


@pytest.mark.parametrize("wrong", ["0", b"0", None, 1.0, (0, 1), ..., [0]], ids=repr)
def test_a_key_that_is_none_is_a_type_error(mapped: MemoryMappedFile, tmp_path: Path, wrong: Any) -> None:
    """As with bytes."""
    with unchanged(tmp_path):
        with pytest.raises(TypeError):
            mapped[wrong]
        with pytest.raises(TypeError):
            mapped[wrong] = 1
        if wrong is not None:  # which stands for an end in a range
            with pytest.raises(TypeError):
                mapped[wrong:]
            with pytest.raises(TypeError):
                mapped[wrong:wrong] = b""


def test_whatever_has_an_index_is_a_key(mapped: MemoryMappedFile) -> None:
    """Numbers of array libraries are no ``int``; bools are."""

    class Three:
        def __index__(self) -> int:
            return 3

    assert mapped[Three()] == CONTENT[3]
    assert mapped[Three() : 2**70 : Three()] == CONTENT[3::3]
    assert mapped[True] == CONTENT[1]
    mapped[Three()] = Three()
    assert mapped[3] == 3


def test_a_step_copies_no_more_than_lies_between_the_ends(tmp_path: Path) -> None:
    """Ten bytes out of a large file must not cost the memory, and the reading, of all of it."""
    size = 64 << 20
    with MemoryMappedFile.create_rw(tmp_path / "large", size, sparse=True) as mapped:
        mapped.update_region(0, bytes(range(100)))
        tracemalloc.start()
        try:
            assert mapped[0:100:10] == bytes(range(0, 100, 10))
            assert mapped[99:0:-33] == bytes([99, 66, 33])
            assert mapped[size - 1 : 5 : 2] == b""
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 1 << 20


def test_iterating_gives_the_bytes(mapped: MemoryMappedFile) -> None:
    """The end of the file is the end of the loop."""
    sequence: Any = mapped
    assert bytes(sequence) == CONTENT
    assert list(reversed(sequence))[:3] == list(CONTENT[:-4:-1])


def test_an_item_can_be_assigned(mapped: MemoryMappedFile, tmp_path: Path) -> None:
    """From either end."""
    mapped[0], mapped[-1] = 1, 2
    assert (tmp_path / "file").read_bytes() == b"\1" + CONTENT[1:-1] + b"\2"
    for index in (SIZE, -SIZE - 1, *HUGE):
        with pytest.raises(OutOfBounds):
            mapped[index] = 1
    assert (tmp_path / "file").read_bytes() == b"\1" + CONTENT[1:-1] + b"\2"


@pytest.mark.parametrize("wrong", [-1, 256, 2**64, -(2**70)])
def test_a_number_that_is_no_byte_cannot_be_assigned(
    mapped: MemoryMappedFile, tmp_path: Path, wrong: int
) -> None:
    """Cut to eight bits it would be another number."""
    with unchanged(tmp_path), pytest.raises(ValueError, match=f"between 0 and 255, not {wrong}"):
        mapped[5] = wrong


@pytest.mark.parametrize("wrong", ["x", b"x", None, 1.0, [1]], ids=repr)
def test_what_is_no_number_cannot_be_assigned_to_an_item(
    mapped: MemoryMappedFile, tmp_path: Path, wrong: Any
) -> None:
    """Nor can a single byte that comes as bytes."""
    with unchanged(tmp_path), pytest.raises(TypeError):
        mapped[5] = wrong


@pytest.mark.parametrize("wrong", ["abc", None, 3, 1.5, [1, 2, 3]], ids=repr)
def test_what_is_no_buffer_cannot_be_assigned_to_a_range(
    mapped: MemoryMappedFile, tmp_path: Path, wrong: Any
) -> None:
    """A list of numbers is one to a bytearray; to a file it is a mistake more often than not."""
    with unchanged(tmp_path), pytest.raises(TypeError):
        mapped[0:3] = wrong


def test_a_range_takes_any_contiguous_buffer_of_its_length(mapped: MemoryMappedFile) -> None:
    """Whatever its items are: bytes are what is assigned."""
    mapped[0:3] = b"abc"
    mapped[3:5] = bytearray(b"de")
    mapped[5:9] = memoryview(b"xxfghiyy")[2:6]
    mapped[16:32] = memoryview(bytes(range(16))).cast("Q")
    assert mapped[0:10] == b"abcdefghi" + CONTENT[9:10]
    assert mapped[16:32] == bytes(range(16))
    mapped[0:9] = mapped.as_slice(1, 9)
    assert mapped[0:10] == b"bcdefghi" + CONTENT[9:10] * 2
    with pytest.raises(BufferError):
        mapped[0:3] = memoryview(b"abcdef")[::2]


@pytest.mark.parametrize(
    ("key", "data"),
    [
        (slice(0, 3), b"ab"),
        (slice(0, 3), b"abcd"),
        (slice(5, 2), b"a"),
        (slice(SIZE - 1, SIZE + 5), b"ab"),
        (slice(SIZE, None), b"a"),
        (slice(None), b""),
        (slice(2**70, None), b"a"),
    ],
    ids=str,
)
def test_a_range_cannot_be_assigned_another_length(
    mapped: MemoryMappedFile, tmp_path: Path, key: slice, data: bytes
) -> None:
    """A bytearray would shift what follows; a file does not, so it must refuse, and tell both numbers."""
    size = len(range(*key.indices(SIZE)))
    with unchanged(tmp_path), pytest.raises(ValueError, match=f"{size} bytes cannot be assigned {len(data)}"):
        mapped[key] = data


def test_a_range_with_a_step_cannot_be_assigned(mapped: MemoryMappedFile, tmp_path: Path) -> None:
    """It is not contiguous."""
    with unchanged(tmp_path):
        for step in (2, -1, 3):
            with pytest.raises(ValueError, match=f"step must be 1, not {step}"):
                mapped[0:6:step] = b"abc"
        with pytest.raises(ValueError, match="zero"):
            mapped[0:6:0]


def test_items_cannot_be_deleted(mapped: MemoryMappedFile, tmp_path: Path) -> None:
    """A file is made shorter by its end."""
    sequence: Any = mapped
    with unchanged(tmp_path):
        for key in (0, slice(0, 1), slice(0, 0)):
            with pytest.raises(TypeError, match="resize"):
                del sequence[key]


def test_a_read_only_file_cannot_be_assigned_to(shared: MemoryMappedFile) -> None:
    """Not even nothing: the mistake is in the program, whatever the data."""
    items: list[tuple[Any, Any]] = [(0, 1), (slice(0, 1), b"x"), (slice(0, 0), b"")]
    for key, value in items:
        with pytest.raises(InvalidMode):
            shared[key] = value


def test_every_assignment_is_on_the_books(mapped: MemoryMappedFile) -> None:
    """What is not counted is not flushed by a policy that counts."""
    mapped.flush()
    mapped[0] = 1
    mapped[10:13] = b"abc"
    assert mapped.pending_bytes == 4
    mapped[5:5] = b""
    assert mapped.pending_bytes == 4


class LikeBytearray(RuleBasedStateMachine):
    """A mapped file against a bytearray of the same length."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.size = 300
        self.path = Path(self.directory.name) / "file"
        self.mapped = MemoryMappedFile.create_rw(self.path, self.size)
        self.model = bytearray(self.size)

    small = st.none() | st.integers(-310, 310) | st.sampled_from(HUGE)

    @rule(index=st.integers(-305, 305), value=st.integers(-2, 258))
    def assign_an_item(self, index: int, value: int) -> None:
        """The same outcome, or an error of the same kind."""
        try:
            self.model[index] = value
        except (IndexError, ValueError) as error:
            kind = IndexError if isinstance(error, IndexError) else ValueError
            with pytest.raises((kind, IndexError) if not 0 <= value <= 255 else kind):
                self.mapped[index] = value
        else:
            self.mapped[index] = value

    @rule(start=small, stop=small, data=st.data())
    def assign_a_range(self, start: int | None, stop: int | None, data: st.DataObject) -> None:
        """Of the length that the range has."""
        size = len(self.model[start:stop])
        value = data.draw(st.binary(min_size=size, max_size=size))
        key = slice(start, stop)
        # A bytearray inserts where a range is reversed; nothing is what both do with nothing.
        self.model[key] = value
        self.mapped[key] = value

    @rule(size=st.integers(1, 400))
    def resize(self, size: int) -> None:
        """A longer file ends in zeros."""
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))
        self.mapped.resize(size)

    @invariant()
    def agree(self) -> None:
        """Seen through the handle, a view and the file."""
        assert self.mapped[:] == self.model
        assert len(self.mapped) == len(self.model)
        assert bytes(self.mapped.as_slice()) == self.path.read_bytes() == self.model

    def teardown(self) -> None:
        """Close, and forget."""
        self.mapped.close()
        self.directory.cleanup()


TestLikeBytearray = LikeBytearray.TestCase
TestLikeBytearray.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
