"""The command that runs a machine for as many steps as are wanted."""

from __future__ import annotations

import subprocess
import sys

from tests.crash.commands import count
from tests.support.tree import PROJECT

STEPS = 100


def steps(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as its users do."""
    command = [sys.executable, "-m", "tests.property.steps", *arguments]
    return subprocess.run(command, cwd=PROJECT.root, capture_output=True, text=True, timeout=300, check=False)


def test_it_makes_as_many_steps_as_are_wanted() -> None:
    # A count that is made up, or of steps of which none was compared, would be a promise without proof.
    ran = steps("--steps", str(STEPS), "--seed", "3")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert count(ran.stdout, "steps") >= STEPS
    assert count(ran.stdout, "failures") == 0


def test_no_steps_are_refused() -> None:
    # They would be a run that passes without having looked.
    ran = steps("--steps", "0")
    assert ran.returncode == 2
    assert "--steps" in ran.stderr
