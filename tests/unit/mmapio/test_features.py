"""What ``features()`` promises is there; what it denies is refused with the error that it names."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from mmapio import PAGE_SIZE, MemoryMappedFile, MmapAdvice, SharedMutex, Unsupported, copy_mmap, features
from tests.unit.mmapio.processes import in_child, outcome

NAMES = {
    "platform",
    "page_size",
    "advice",
    "fault_guard",
    "futex",
    "robust_mutex",
    "punch_hole",
    "reflink",
    "copy_file_range",
    "huge_pages",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of two pages."""
    made = tmp_path / "file"
    made.write_bytes(b"x" * 2 * PAGE_SIZE)
    return made


def test_it_tells_everything_in_plain_values() -> None:
    """For a log line or a bug report; the names are what programs ask for."""
    found = features()
    assert found.keys() == NAMES
    assert json.loads(json.dumps(found)) == found
    assert found["platform"] == sys.platform
    assert found["page_size"] == os.sysconf("SC_PAGE_SIZE")
    assert features() == found
    found["advice"] = None
    assert features()["advice"] is not None


def test_advice_is_known_or_unsupported(path: Path) -> None:
    """A name that is listed and refused sends its user looking in the wrong place."""
    known: Any = features()["advice"]
    assert set(known) <= set(MmapAdvice.__members__)
    with MemoryMappedFile.open_rw(path) as mapped:
        for advice in MmapAdvice:
            kind = outcome(lambda: mapped.advise(0, None, advice))[0]  # noqa: B023
            assert (kind == Unsupported.__name__) == (advice.name not in known)
            if sys.platform == "linux":
                assert kind in ("", "AdviceFailed")


def test_the_guard_guards(path: Path) -> None:
    """Or the process ends, which the child shows."""
    if not features()["fault_guard"]:
        pytest.skip("no fault guard on this platform: NOT TESTED that a cut file is an exception")

    def work() -> str:
        with MemoryMappedFile.open_ro(path) as mapped:
            os.truncate(path, 0)
            return outcome(lambda: mapped.read_bytes(PAGE_SIZE, 1))[0]

    assert in_child(work) == "MappingFault"


def test_a_mutex_can_be_had_where_it_is_promised(path: Path) -> None:
    """And is refused, in so many words, where it is not."""
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped:
        kind = outcome(lambda: SharedMutex(mapped, 0))[0]
    assert kind == ("" if features()["robust_mutex"] else Unsupported.__name__)


def test_a_hole_can_be_punched_where_it_is_promised(path: Path) -> None:
    """Unless it is the file system that cannot: then the error is the same."""
    with MemoryMappedFile.open_rw(path) as mapped:
        kind = outcome(lambda: mapped.punch_hole(0, PAGE_SIZE))[0]
        assert kind in ("", Unsupported.__name__)
        assert mapped[0] == (0 if kind == "" else ord("x"))


def test_a_copy_is_made_as_promised(path: Path) -> None:
    """What is denied is not used."""
    found = features()
    how = copy_mmap(path, path.with_name("copy"))
    names = {"reflink": "reflink", "copy_file_range": "copy_file_range"}
    assert how not in names or found[names[how]] is True


def test_the_switches_of_huge_pages_are_the_kernels() -> None:
    """One word of each, as it stands in the file."""
    switches: Any = features()["huge_pages"]
    place = Path("/sys/kernel/mm/transparent_hugepage")
    assert set(switches) == {
        name for name in ("enabled", "shmem_enabled", "defrag") if (place / name).exists()
    }
    for name, chosen in switches.items():
        assert f"[{chosen}]" in (place / name).read_text()
