"""A few hundred crash images of stores, and that images catch every planted defect."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.crash.commands import count, run
from tests.crash.images import defects
from tests.crash.images.store_defects import BELIEVED_INDEX
from tests.crash.images.store_model import Change, Expected, Found

IMAGES = 200
# Where each shows within hundreds: (seed, workload, images at most). Two take thousands, and are not here:
# nothing is flushed before a removal (seed 2, workload 3, image 1134), and a batch is not whole.
SHOWN = {
    defects.DROPPED_SYNC: (1, 3, 1000),
    defects.DROPPED_HEADER_SYNC: (1, 1, 1000),
    defects.DROPPED_DIRECTORY_SYNC: (1, 1, 2000),
    defects.EARLY_ACKNOWLEDGEMENT: (1, 4, 2500),
    defects.KEPT_TORN_RECORD: (1, 4, 1000),
    defects.NO_BOUNDARY: (5, 1, 2500),
    BELIEVED_INDEX: (1, 3, 2500),
}

needs_compiler = pytest.mark.skipif(
    shutil.which("gcc") is None and shutil.which("cc") is None,
    reason="no C compiler: NOT TESTED what a power cut leaves of a store",
)


def images(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command from the root of the repository: it is loaded with the recording library."""
    return run("store_images", directory, *arguments)


@needs_compiler
def test_every_image_is_the_store_at_one_commit(tmp_path: Path) -> None:
    # Pages of segments, INDEX and MANIFEST reach the device in any order, and so do names. A store that
    # counts on one opens on most machines.
    ran = images(tmp_path, "--images", str(IMAGES), "--seed", "1", "--first-workload", "2")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert count(ran.stdout, "images opened") == IMAGES
    assert count(ran.stdout, "violations") == 0
    # Images that are all complete would have shown nothing, nor would those that only ever build an index.
    assert count(ran.stdout, "images without the last commits") > 0
    assert count(ran.stdout, "indexes built anew") > 0
    assert count(ran.stdout, "indexes believed by their clean mark") > 0
    assert list(tmp_path.iterdir()) == []


@needs_compiler
@pytest.mark.parametrize("defect", SHOWN)
def test_a_planted_defect_is_caught(tmp_path: Path, defect: str) -> None:
    # Images that find nothing wrong with a faulty store say nothing about a good one.
    seed, workload, most = SHOWN[defect]
    arguments = ("--images", str(most), "--seed", str(seed), "--first-workload", str(workload))
    ran = images(tmp_path, *arguments, "--defect", defect)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    found = re.search(r"it is kept in (\S+); python -m tests\.crash\.store_images (.*)", ran.stdout)
    assert found, ran.stdout + ran.stderr
    assert Path(found[1]).is_dir()
    if defect == BELIEVED_INDEX:
        # As every violation, it can be seen again.
        again = images(tmp_path, *found[2].split())
        assert again.returncode == 1, again.stdout + again.stderr


def found(committed: int, *pairs: tuple[bytes, bytes], counted: int = 0) -> Found:
    """What an open store showed that holds these pairs, and some that have expired."""
    looked_up: dict[bytes, bytes | None] = {b"a": None, b"b": None, **dict(pairs)}
    return Found(committed, len(pairs) + counted, list(pairs), looked_up)


def test_a_store_is_at_one_commit_or_it_is_wrong() -> None:
    # The oracle decides what is looked for: with what it lets pass, any store would.
    batch = [Change(b"b", b"2"), Change(b"a", None)]
    made = Expected().then([Change(b"a", b"1")], batch, [Change(b"x", None)])
    assert [commit.seq for commit in made.commits] == [0, 1, 3]
    assert made.complaints(found(0)) == []
    assert made.complaints(found(1, (b"a", b"1"))) == []
    assert made.complaints(found(3, (b"b", b"2"))) == []
    # Half of a batch, another commit's content, an old value, a wrong count, less than was durable.
    assert made.complaints(found(2, (b"b", b"2"), (b"a", b"1")))
    assert made.complaints(found(3, (b"a", b"1")))
    assert made.complaints(found(1, (b"a", b"0")))
    assert made.complaints(found(3, (b"b", b"2"), counted=1))
    durable = made.settled(3)
    assert durable.complaints(found(1, (b"a", b"1")))
    assert durable.complaints(found(3, (b"b", b"2"))) == []
    # What expired is counted and not seen; a walk goes in the order of the last change.
    expired = made.then([Change(b"a", b"3", is_seen=False)])
    assert expired.complaints(found(4, (b"b", b"2"), counted=1)) == []
    both = made.then([Change(b"a", b"3")])
    assert both.complaints(found(4, (b"b", b"2"), (b"a", b"3"))) == []
    assert both.complaints(found(4, (b"a", b"3"), (b"b", b"2")))
