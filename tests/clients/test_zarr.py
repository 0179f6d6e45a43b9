"""zarr 2, which keeps arrays and groups in any mapping from str to bytes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from mmapkv.codecs import Bytes
from tests.unit.mmapkv.stores import opened

np = pytest.importorskip("numpy")


@pytest.fixture(scope="module")
def zarr() -> Any:
    """zarr, which with its codecs is 40 MB, and not installed for every run of the tests."""
    found = pytest.importorskip("zarr", reason="zarr is not installed: NOT TESTED as a store of it")
    if not found.__version__.startswith("2."):
        pytest.skip("zarr 3 takes no mappings: NOT TESTED as a store of zarr 2")
    return found


def test_a_hierarchy_of_arrays(zarr: Any, tmp_path: Path) -> None:
    """Groups, arrays, attributes, partial reads and writes; written, closed, and read again."""
    path = tmp_path / "kv"
    numbers = np.arange(10_000, dtype="i4").reshape(100, 100)
    with opened(path) as kv:
        root = zarr.group(store=kv.typed(Bytes(), keys=str), overwrite=True)
        group = root.create_group("weather")
        array = group.create_dataset("t", data=numbers, chunks=(30, 30))
        array.attrs["unit"] = "K"
        array[10:20, 5] = -1
        group.create_dataset("gone", data=numbers)
        del group["gone"]
        assert sorted(root) == ["weather"]
    numbers[10:20, 5] = -1
    with opened(path, "r") as kv:
        root = zarr.open(store=kv.typed(Bytes(), keys=str), mode="r")
        assert list(root["weather"]) == ["t"]
        array = root["weather/t"]
        assert array.attrs["unit"] == "K"
        assert (array[:] == numbers).all()
        assert (array[25:35, 90:] == numbers[25:35, 90:]).all()


def test_a_part_of_a_store(zarr: Any, tmp_path: Path) -> None:
    """Below a prefix, beside other things; and pickled, as workers get it."""
    with opened(tmp_path / "kv") as kv:
        kv["other"] = b"1"
        part = kv.namespace("arrays/").typed(Bytes(), keys=str)
        array = zarr.open_array(store=part, mode="w", shape=(50,), chunks=(10,), dtype="f8")
        array[:] = np.arange(50)
        again = pickle.loads(pickle.dumps(array))
        assert (again[:] == np.arange(50)).all()
        assert again.store._mutable_mapping.store.path == str(tmp_path / "kv")
        again.store._mutable_mapping.store.close()
        assert zarr.open_array(store=part, mode="w", shape=(1,), dtype="f8")[0] == 0
        assert kv["other"] == b"1"
