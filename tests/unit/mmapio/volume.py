"""A file system of a few megabytes, to be filled."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

VOLUME_BYTES = 4 << 20


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    """The root of an empty tmpfs of 4 MiB; skips where it cannot be mounted."""
    place = tmp_path / "volume"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("not root: NOT TESTED what a full disk does")
    command = ["mount", "-t", "tmpfs", "-o", f"size={VOLUME_BYTES},mode=0700", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command: NOT TESTED what a full disk does")
    if done.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs ({done.stderr.strip()}): NOT TESTED what a full disk does")
    try:
        yield place
    finally:
        # Lazily: a failed test may still hold a handle.
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(directory: Path, *, leaving: int = 0) -> Path:
    """Take all the space of the volume but `leaving` bytes, and return the file that holds it."""
    path = directory / "ballast"
    free = os.statvfs(directory).f_bavail * os.statvfs(directory).f_frsize - leaving
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free)
    return path
