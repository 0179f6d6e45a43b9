"""How a file begins: what is another machine's, what is newer, and what is damaged."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmaplog
from mmaplog import CorruptionError, FormatError, Log
from mmaplog.cli import main
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmaplog import damage
from tests.unit.mmaplog.segment_file import CHECKSUM_AT, VERSION_AT, segment_paths


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log with two segments and a consumer."""
    with Log.open(tmp_path / "log", segment_bytes=64 << 10) as log:
        log.append_many([b"x" * 1000] * 80)
        log.consumer("one", start=7).close()
    return tmp_path / "log"


def swap(file: Path) -> None:
    """Magic and version, as a machine of another byte order has them in memory."""
    head = file.read_bytes()[:12]
    damage.overwrite(file, head[:8][::-1] + head[8:12][::-1])


def flip(file: Path, bit: int) -> None:
    """One bit of the version."""
    (version,) = struct.unpack_from("<I", file.read_bytes(), VERSION_AT)
    damage.overwrite(file, struct.pack("<I", version ^ 1 << bit), VERSION_AT)


def read(path: Path) -> int:
    """How far the consumer is, by a log that is opened as after a power cut."""
    (path / "CONTROL").unlink(missing_ok=True)
    with Log.open(path, "r") as log, log.consumer("one") as consumer:
        return consumer.committed


@pytest.mark.parametrize("mode", ["r", "w", "c"])
def test_a_log_of_another_byte_order_is_told_from_a_newer_one(path: Path, mode: Any) -> None:
    """It was said to be no segment, which whoever wrote it cannot make sense of."""
    for each in segment_paths(path):
        swap(each)
    with unchanged(path, ignoring=("LOCK",)), pytest.raises(FormatError, match="byte order; open it there"):
        Log.open(path, mode)


@pytest.mark.parametrize("without", ["", "MANIFEST", "CONTROL"])
def test_a_log_of_another_byte_order_is_no_damage(path: Path, capsys: Any, without: str) -> None:
    """Repair set every segment aside, and all was lost."""
    for each in segment_paths(path):
        swap(each)
    if without:
        (path / without).unlink()
    for command in (["verify"], ["repair", "--dry-run"], ["repair"]):
        with unchanged(path):
            assert main([*command, str(path)]) == 2
        assert "another byte order; open it there, and take over what" in capsys.readouterr().err


def test_a_consumer_of_another_byte_order(path: Path) -> None:
    """Nothing else than it is refused."""
    swap(path / "one.consumer")
    with pytest.raises(FormatError, match="another byte order"):
        read(path)
    assert len(Log.open(path, "r")) == 80


@pytest.mark.parametrize("bit", range(32))
def test_a_damaged_version_is_no_newer_one(path: Path, bit: int) -> None:
    """An upgrade was advised, which does not help: the checksum tells."""
    last = segment_paths(path)[-1]
    flip(last, bit)
    with pytest.raises(CorruptionError, match="the version in the header is damaged"):
        read(path)
    report = mmaplog.repair(path)
    assert (report.lost, report.committed) == ((), 80)
    assert read(path) == 7
    flip(path / "one.consumer", bit)
    with pytest.raises(CorruptionError, match=r"is damaged: it says \d+; remove the consumer"):
        read(path)


NEWER: dict[str, Callable[[Path], object]] = {
    "its checksum where ours is": lambda file: damage.patch_segment(file, VERSION_AT, "<I", 2),
    "its checksum elsewhere": lambda file: (
        damage.patch_segment(file, VERSION_AT, "<I", 255, seal=False),
        damage.overwrite(file, bytes(8), CHECKSUM_AT),
    ),
}


@pytest.mark.parametrize("make", NEWER.values(), ids=NEWER.keys())
def test_a_newer_segment_is_no_damage(path: Path, make: Callable[[Path], object]) -> None:
    """Wherever it has its checksum."""
    make(segment_paths(path)[-1])
    with unchanged(path, ignoring=("LOCK", "CONTROL")):
        with pytest.raises(FormatError, match="upgrade"):
            read(path)
        with pytest.raises(FormatError, match="upgrade"):
            mmaplog.repair(path)


def test_no_version_and_no_checksum_is_damage(path: Path) -> None:
    """Nobody writes such a version: 0 was taken for a newer one."""
    for version in (0, 256, 0xFFFFFFFF):
        damage.patch_segment(segment_paths(path)[-1], VERSION_AT, "<I", version, seal=False)
        damage.overwrite(segment_paths(path)[-1], bytes(8), CHECKSUM_AT)
        with pytest.raises(CorruptionError, match=f"it says {version}"):
            read(path)


@pytest.mark.parametrize("version", [b"0", b"q", b"-1", b"", b"256", b"9" * 5000])
def test_the_version_of_a_manifest_that_none_has(path: Path, version: bytes) -> None:
    """An upgrade was advised, of what verify called damage. Of thousands of digits Python makes no number."""
    damage.rewrite_manifest(path, bytes, version=version)
    with pytest.raises(CorruptionError, match="the manifest does not match its checksum"):
        read(path)
    report = mmaplog.repair(path)
    assert (report.lost, report.committed) == ((), 80)
    assert read(path) == 7
