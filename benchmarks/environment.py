"""Where the figures come from: without it they say nothing."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

# Documentation/block/stat.rst of the kernel: the seventh number, in sectors of 512 bytes whatever the device.
SECTORS_WRITTEN = 6
SECTOR_BYTES = 512

MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs", "devtmpfs"})


def describe(directory: Path) -> dict[str, str]:
    """Return what the figures depend on, by name; neither host name nor path, so it can be published."""
    implementation = f"{platform.python_implementation()} {platform.python_version()}"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "python": f"{implementation}, {platform.python_compiler()}",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": f"{_cpu_model()}, {len(os.sched_getaffinity(0))} usable",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB",
        "load": " ".join(f"{average:.2f}" for average in os.getloadavg()),
        "file system": file_system(directory),
    }


def file_system(directory: Path) -> str:
    """Return the type and mount options of the file system that holds a directory."""
    real = directory.resolve()
    best = Path()
    found = "unknown"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        mount_fields = before.split()
        mount_point = Path(mount_fields[4].encode().decode("unicode_escape"))
        # Later lines are mounted over earlier ones, so an equal mount point wins.
        if real.is_relative_to(mount_point) and len(mount_point.parts) >= len(best.parts):
            best = mount_point
            found = f"{after.split()[0]} ({mount_fields[5]})"
    return found


def bytes_written_to_device(path: Path) -> int | None:
    """Return how much the device below a file has written so far; `None` where the kernel does not count."""
    device = path.stat().st_dev
    counters = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    try:
        return int(counters.read_text(encoding="ascii").split()[SECTORS_WRITTEN]) * SECTOR_BYTES
    except FileNotFoundError:
        return None


def is_busy() -> bool:
    """Tell whether others have kept half of the processors busy during the last minute."""
    return os.getloadavg()[0] > len(os.sched_getaffinity(0)) / 2


def is_memory(description: str) -> bool:
    """Tell whether `file_system` described one that has no device below it."""
    return description.split()[0] in MEMORY_FILE_SYSTEMS


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or "unknown"
