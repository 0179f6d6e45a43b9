"""A few hundred crash images of logs, and that images catch every planted defect."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.crash.commands import count, run
from tests.crash.images.defects import DEFECTS, EARLY_ACKNOWLEDGEMENT
from tests.crash.images.disk import PAGE, Disk
from tests.crash.images.recording import OUTSIDE, Event, Step, play

IMAGES = 600
DEFECT_IMAGES = 3000

needs_compiler = pytest.mark.skipif(
    shutil.which("gcc") is None and shutil.which("cc") is None,
    reason="no C compiler: NOT TESTED what a power cut leaves of a log",
)


def images(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command from the root of the repository: it is loaded with the recording library."""
    return run("log_images", directory, *arguments)


@needs_compiler
def test_what_was_durable_is_in_every_image(tmp_path: Path) -> None:
    # Dirty pages, sizes and names reach the device in any order. A log that counts on one opens on most
    # machines.
    ran = images(tmp_path, "--images", str(IMAGES), "--seed", "1")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert count(ran.stdout, "images opened") == IMAGES
    assert count(ran.stdout, "violations") == 0
    assert count(ran.stdout, "sessions after a crash, 1 before") > 0
    # Images that are all complete would have shown nothing.
    assert count(ran.stdout, "images without the last records") > 0
    assert list(tmp_path.iterdir()) == []


@needs_compiler
def test_a_control_of_before_the_power_cut_says_nothing(tmp_path: Path) -> None:
    # It stood for records that a truncation had dropped since: its page had not reached the disk since then.
    ran = images(tmp_path, "--images", "338", "--seed", "3013", "--first-workload", "9")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert count(ran.stdout, "violations") == 0


@needs_compiler
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_caught(tmp_path: Path, defect: str) -> None:
    # Images that find nothing wrong with a log that does not sync say nothing about one that does.
    ran = images(tmp_path, "--images", str(DEFECT_IMAGES), "--seed", "1", "--defect", defect)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    found = re.search(r"it is kept in (\S+); python -m tests\.crash\.log_images (.*)", ran.stdout)
    assert found, ran.stdout + ran.stderr
    # As every violation, it can be seen again, and its image is there to be studied.
    assert Path(found[1]).is_dir()
    if defect == EARLY_ACKNOWLEDGEMENT:
        again = images(tmp_path, *found[2].split())
        assert again.returncode == 1, again.stdout + again.stderr


@pytest.mark.parametrize(
    "arguments", [("--images", "0"), ("--first-workload", "0"), ("--dir", "nowhere"), ("--defect", "none")]
)
def test_bad_arguments_are_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    # No images at all would be a run that passes without having looked.
    ran = images(tmp_path, *arguments)
    assert ran.returncode == 2
    assert arguments[0] in ran.stderr


def step(event: Event, file: int | None, **look: bytes) -> Step:
    """A moment at which the files of the directory, numbered by order, have these contents."""
    return Step({name: (at, content) for at, (name, content) in enumerate(look.items())}, event, file, None)


def test_a_page_is_as_of_the_call_of_the_last_sync_or_as_at_any_moment_since() -> None:
    # The model of the disk decides what is looked for: with what it leaves out, any log would pass.
    one, two, three = (letter * PAGE for letter in (b"1", b"2", b"3"))
    disk = Disk()
    steps = [
        step(Event.LOOK, None, a=one + one),
        step(Event.SYNC_BEGINS, 0, a=one + one),
        # Stored to while the sync ran: that may be on the disk or not.
        step(Event.SYNCED, 0, a=one + two),
        step(Event.LOOK, None, a=one + three),
        step(Event.LOOK, None, a=one + three + two),
    ]
    for _ in play(disk, steps):
        pass
    file = disk.files[0]
    assert file.durable == one + one
    assert file.pages == {1: [one, two, three], 2: [bytes(PAGE), two]}
    assert file.sizes == [2 * PAGE, 3 * PAGE]
    assert file.whole(3 * PAGE, {1: two}) == one + two + bytes(PAGE)
    assert file.whole(2 * PAGE, {1: two, 2: two}) == one + two


def test_names_are_durable_by_a_sync_of_their_directory_alone() -> None:
    # A file's own sync says nothing about its name, and of several changes since any may be there without the
    # others.
    disk = Disk()
    steps = [
        step(Event.LOOK, None, a=b"1"),
        step(Event.SYNC_BEGINS, 0, a=b"1"),
        step(Event.SYNCED, 0, a=b"1"),
    ]
    for _ in play(disk, steps):
        pass
    assert (disk.durable_names, disk.exists) == ({}, False)
    steps = [
        step(Event.SYNC_BEGINS, None, a=b"1"),
        step(Event.SYNCED, None, a=b"1"),
        step(Event.SYNCED, OUTSIDE, a=b"1"),
        step(Event.LOOK, None, b=b"1"),
        Step({"b": (0, b"1"), "c": (1, b"")}, Event.LOOK, None, None),
        Step({"c": (1, b"")}, Event.LOOK, None, None),
    ]
    for _ in play(disk, steps):
        pass
    assert (disk.durable_names, disk.exists) == ({"a": 0}, True)
    renamed, created, removed = disk.changes
    assert disk.names_with([]) == {"a": 0}
    assert disk.names_with([created]) == {"a": 0, "c": 1}
    assert disk.names_with([renamed, created]) == {"b": 0, "c": 1}
    assert disk.names_with([renamed, removed]) == {}
