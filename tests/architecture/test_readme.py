"""README.md keeps its word: one-line commands, an example that prints what it says, a complete tour."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tree import PACKAGES, PROJECT, Tree

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


def tour_violations(tree: Tree, text: str) -> list[str]:
    """The modules that the tour leaves out, and the names in its tables that are no module."""
    tour = text.partition("## A tour of the files")[2]
    found = []
    for package in PACKAGES:
        section = re.search(rf"^\[{package}\].*?(?=^\S[^|]*:$|\Z)", tour, re.MULTILINE | re.DOTALL)
        cells = re.findall(r"^\| (`.*?) \|", section[0] if section else "", re.MULTILINE)
        named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
        modules = {path.stem for path in tree.sources(".py", ".pyx", ".pxd", ".h", within=(package,))} - {
            "__init__"
        }
        found += [f"the tour leaves out {package}/{name}" for name in sorted(modules - named)]
        found += [f"the tour names {package}/{name}, which is not there" for name in sorted(named - modules)]
    return found


def test_the_tour_names_every_module() -> None:
    assert tour_violations(PROJECT, README) == []


def test_a_module_that_the_tour_leaves_out_is_caught(tmp_path: Path) -> None:
    for name in ("mmapio/a.pyx", "mmapio/a.pxd", "mmapio/b.py", "mmaplog/c.py", "mmapkv/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    table = "\n\n| File | What |\n|---|---|\n"
    low = f"[mmapio](mmapio):{table}| `a`, `b` | `x` |"
    text = f"## A tour of the files\n\n{low}\n\n[mmaplog](mmaplog):{table}| `c` | |"
    assert tour_violations(Tree(tmp_path), text) == []
    assert tour_violations(Tree(tmp_path), text.replace("`c`", "`b`")) == [
        "the tour leaves out mmaplog/c",
        "the tour names mmaplog/b, which is not there",
    ]
