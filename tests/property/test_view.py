"""A MappedSlice is to bytes what a window is to a picture: the same, until one wants to change it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from mmapio import MappedSlice, MemoryMappedFile

contents = st.binary(max_size=300)
bounds = (
    st.none()
    | st.integers(-400, 400)
    | st.sampled_from([2**31, -(2**31), 2**63, -(2**63), 2**64, 2**70, -(2**70)])
)


def view_of(content: bytes, before: int = 0, after: int = 0) -> MappedSlice:
    """A view of part of a file that is gone by the time it is looked at."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "file"
        path.write_bytes(b"\xa5" * before + content + b"\x5a" * after)
        with MemoryMappedFile.open_ro(path, reserve=1) as mapped:
            return mapped.as_slice(before, len(content))


@given(contents, st.integers(0, 5000), st.integers(0, 5000))
def test_a_view_has_the_bytes_of_its_range(content: bytes, before: int, after: int) -> None:
    """And neither one before nor one after."""
    view = view_of(content, before, after)
    assert bytes(view) == view.tobytes() == bytes(memoryview(view)) == content
    assert len(view) == len(content)
    assert list(view) == list(content)
    assert view == content
    assert bytearray(view) == content


@given(contents, st.lists(st.tuples(bounds, bounds), max_size=4))
def test_slices_of_slices_are_those_of_bytes(
    content: bytes, cuts: list[tuple[int | None, int | None]]
) -> None:
    """Whatever the bounds: negative, beyond the end, the wrong way round, too large for a machine word."""
    view = view_of(content)
    for start, stop in cuts:
        view, content = view[start:stop], content[start:stop]
        assert len(view) == len(content)
        assert view == content
        assert bytes(view) == content


@given(contents, st.integers(-400, 400) | st.sampled_from([2**63, -(2**63) - 1, 2**70]))
def test_an_index_is_that_of_bytes(content: bytes, index: int) -> None:
    """The same number or the same kind of error."""
    view = view_of(content)
    try:
        expected = content[index]
    except IndexError:
        try:
            found = view[index]
        except IndexError:
            return
        raise AssertionError(f"{index} is outside {len(content)} bytes, yet it holds {found}") from None
    assert view[index] == expected


@given(contents, contents, st.sampled_from([bytes, bytearray, memoryview]))
def test_comparing_is_that_of_bytes(one: bytes, two: bytes, form: type) -> None:
    """With any buffer, on either side."""
    view = view_of(one)
    for other in (two, one, one[:-1], one + b"\0"):
        assert (view == form(other)) is (one == other)
        assert (form(other) == view) is (one == other)
        assert (view != form(other)) is (one != other)
        assert (view == view_of(other)) is (one == other)


@given(contents, st.data())
def test_writes_through_a_file_are_those_to_a_bytearray(content: bytes, data: st.DataObject) -> None:
    """Growing and shrinking in between, with a second handle looking on."""
    size = data.draw(st.integers(1, 10_000))
    model = bytearray(size)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "file"
        with (
            MemoryMappedFile.create_rw(path, size, reserve=1) as mapped,
            MemoryMappedFile.open_ro(path) as other,
        ):
            for _ in range(data.draw(st.integers(1, 8))):
                if data.draw(st.booleans()):
                    size = data.draw(st.integers(1, 20_000))
                    mapped.resize(size)
                    model[size:] = b""
                    model.extend(bytes(size - len(model)))
                offset = data.draw(st.integers(0, size))
                written = content[: size - offset]
                mapped.update_region(offset, written)
                model[offset : offset + len(written)] = written
                assert len(mapped) == other.refresh() == len(model)
                assert mapped.as_slice() == model
                assert other.read_bytes(0, size) == model
        assert path.read_bytes() == model
