"""README.md keeps its word: its commands are one line each, and its example prints what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tree import PROJECT

README = (PROJECT.root / "README.md").read_text(encoding="utf-8")


def marked(marker: str, language: str, text: str = README) -> list[str]:
    """The lines of the fenced block that follows a marker. There must be exactly one such block."""
    pattern = rf"^<!-- {re.escape(marker)} -->\n```{language}\n(.*?)\n```$"
    blocks: list[str] = re.findall(pattern, text, re.MULTILINE | re.DOTALL)
    if len(blocks) != 1:
        pytest.fail(f"README.md has {len(blocks)} blocks marked {marker!r}")
    return blocks[0].split("\n")


def promised(example: list[str]) -> str:
    """What the example says that it prints: the comments of its print lines."""
    return "".join(line.partition("# ")[2] + "\n" for line in example if line.lstrip().startswith("print("))


def output_of(example: list[str], directory: Path) -> str:
    """What the example prints in an interpreter of its own, with warnings as errors."""
    command = [sys.executable, "-W", "error", "-I", "-c", "\n".join(example)]
    answer = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_the_example_has_five_lines_and_prints_what_it_says(tmp_path: Path) -> None:
    if "mmapkv" not in PROJECT.modules:
        pytest.skip("mmapkv has no __init__ yet")
    example = marked("example", "python")
    assert len([line for line in example if line]) == 5
    assert promised(example)
    assert output_of(example, tmp_path) == promised(example)


def test_an_example_that_breaks_its_word_is_caught(tmp_path: Path) -> None:
    example = ["x = 1", "print(x + 1)  # 3"]
    assert output_of(example, tmp_path) != promised(example)
    with pytest.raises(AssertionError, match="NameError"):
        output_of(["y"], tmp_path)


@pytest.mark.parametrize("name", ["tests", "demo"])
def test_a_command_is_one_line_and_the_one_that_ci_runs(name: str) -> None:
    lines = marked(f"command: {name}", "sh")
    assert len(lines) == 1
    assert not lines[0].endswith("\\")
    script = PROJECT.root / ".ci" / "run"
    answer = subprocess.run(["bash", script, "--command", name], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == lines


def test_a_missing_or_doubled_marker_is_caught() -> None:
    block = "<!-- command: x -->\n```sh\ntrue\n```\n"
    assert marked("command: x", "sh", block) == ["true"]
    for text in ("", block + block):
        with pytest.raises(pytest.fail.Exception):
            marked("command: x", "sh", text)
