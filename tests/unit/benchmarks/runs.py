"""Small runs of a benchmark: started as a user would, and what must hold for each."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.targets import Suite

PROJECT = Path(__file__).resolve().parents[3]


def start(module: str, *arguments: str) -> subprocess.Popen[str]:
    """Start `python -m` this module from the root of the repository."""
    command = [sys.executable, "-W", "error", "-m", module, *arguments]
    return subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


def end(bench: subprocess.Popen[str], directory: Path, document_path: Path) -> tuple[str, dict[str, Any]]:
    """What it printed and stored at its end, of which `directory` keeps nothing."""
    output, errors = bench.communicate()
    assert (bench.returncode, errors) == (0, "")
    assert list(directory.iterdir()) == []
    text = document_path.read_text(encoding="utf-8")
    assert str(directory.parent) not in text
    return output, json.loads(text)


def present_in(suite: Suite, document: dict[str, Any], output: str, always: set[str]) -> set[str]:
    """Who took part: all there are but those of whom it says that they were left out, and `always` these."""
    present = set(document["contestants"])
    assert present | set(document["missing"]) == {*suite.subjects, *suite.rivals}
    assert present >= always
    for name in document["missing"]:
        assert f"SKIPPED {name}: " in output
    return present


def check_order(suite: Suite, document: dict[str, Any], output: str, may_lack: set[str]) -> None:
    """It ran all there is, in order, but what it says it left out, which only these `may_lack`."""
    ran = list(document["results"])
    skipped = [name for name in suite.workloads if name not in ran]
    assert set(skipped) <= may_lack
    assert ran == [name for name in suite.workloads if name not in skipped]
    for name in skipped:
        assert f"\nSKIPPED {name}: " in output


def check_rows(
    result: dict[str, Any], expected: Sequence[tuple[str, str]], output: str, *, may_be_zero: bool = False
) -> None:
    """A row for each of `expected`, of one sample."""
    assert [(row["rival"], row["spelling"]) for row in result["rows"]] == list(expected)
    for row in result["rows"]:
        assert row["samples"] == [row["median"]]
        assert row["median"] > 0 or may_be_zero
        assert row["spelling"] in output
        assert row.get("note", "") in output


def check_terminated(bench: subprocess.Popen[str], directory: Path) -> None:
    """One that a time limit ends leaves nothing: it would be gigabytes."""
    assert bench.stdout is not None
    for line in bench.stdout:
        if line.startswith("figures"):
            break
    # Not just its directory: between making that and entering it there is no moment to clean up.
    while not list(directory.glob("*/*")):
        assert bench.poll() is None
    bench.send_signal(signal.SIGTERM)
    bench.communicate()
    assert bench.returncode == 128 + signal.SIGTERM
    assert list(directory.iterdir()) == []


def check_refused(
    main: Callable[[list[str]], int], arguments: Iterable[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A typing error must not end in a run of an hour that measures something else."""
    with pytest.raises(SystemExit) as refused:
        main(list(arguments))
    assert refused.value.code == 2
    assert told in capsys.readouterr().err
