"""The examples run, print what their docstrings promise, and are short, numbered and listed."""

from __future__ import annotations

import ast
import doctest
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.tree import PROJECT

EXAMPLES = sorted((PROJECT.root / "examples").glob("*.py"))
README = (PROJECT.root / "README.md").read_text(encoding="utf-8")

#: An example has fewer lines than this.
LINES_LIMIT = 100

#: An example that has not ended by then hangs.
TIMEOUT_SECONDS = 120

_NAME = re.compile(r"(\d\d)_[a-z0-9_]+\.py")
_LISTED = re.compile(r"^\| \[[^\]]+\]\(examples/([^)]+)\) \| [^|]*\S[^|]* \|$", re.MULTILINE)

# What other modules than the package itself an example may import: those that the package does not re-export.
_PUBLIC = {"mmapio", "mmapio.aio", "mmaplog", "mmapkv", "mmapkv.codecs", "mmapkv.dbm"}


def promised(path: Path) -> str:
    """What an example says that it prints: the block below ``Prints::``, the last one of its docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    block = text.partition("\nPrints::\n")[2]
    return textwrap.dedent(block).strip() + "\n" if block.strip() else ""


def run_violations(path: Path, directory: Path) -> list[str]:
    """What is wrong with a run of an example in an empty directory, with warnings as errors."""
    command = [sys.executable, "-W", "error", str(path)]
    done = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )
    wanted = promised(path)
    same = doctest.OutputChecker().check_output(wanted, done.stdout, doctest.ELLIPSIS)
    left = sorted(each.name for each in directory.iterdir())
    found = {
        f"it ended with {done.returncode}": done.returncode != 0,
        f"it wrote to stderr: {done.stderr}": done.stderr != "",
        "it promises no output": wanted == "",
        f"it promised:\n{wanted}and printed:\n{done.stdout}": not same,
        f"it left files behind: {left}": left != [],
    }
    return [text for text, is_so in found.items() if is_so]


def shape_violations(paths: list[Path]) -> list[str]:
    """What is wrong with the files themselves: names, numbers, lengths, imports."""
    found = [f"{path.name} is not named NN_name.py" for path in paths if not _NAME.fullmatch(path.name)]
    numbers = [int(match[1]) for path in paths if (match := _NAME.fullmatch(path.name))]
    if numbers != list(range(1, len(numbers) + 1)):
        found.append(f"the numbers are {numbers}, not 1 to {len(numbers)}")
    for path in paths:
        text = path.read_text(encoding="utf-8")
        count = len(text.splitlines())
        if count >= LINES_LIMIT:
            found.append(f"{path.name} has {count} lines, {LINES_LIMIT} or more")
        found += [f"{path.name} uses {name}" for name in sorted(private_names(ast.parse(text)))]
    return found


def private_names(module: ast.Module) -> set[str]:
    """The names of the packages that an example uses and that are not for its readers."""
    found = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
            found |= {f"{node.module}.{each.name}" for each in node.names if each.name.startswith("_")}
    return {name for name in found if name.partition(".")[0] in ("mmapio", "mmaplog") and name not in _PUBLIC}


def listing_violations(text: str, names: list[str]) -> list[str]:
    """How the table of examples in README.md differs from the files that there are."""
    section = re.search(r"^## Examples\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if section is None:
        return ["README.md has no section Examples"]
    listed = _LISTED.findall(section[1])
    return [] if listed == names else [f"README.md lists {listed}, and there are {names}"]


def test_there_are_examples() -> None:
    """Without it, an empty directory would pass every test below."""
    assert len(EXAMPLES) >= 10


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_does_what_it_says(path: Path, tmp_path: Path) -> None:
    """Without it, an example could fail, warn, leave files behind or print something else than it says."""
    assert run_violations(path, tmp_path) == []


def test_the_examples_are_short_numbered_and_use_what_is_public() -> None:
    """Without it, an example could grow into a program, or teach what users must not rely on."""
    assert shape_violations(EXAMPLES) == []


def test_the_readme_lists_every_example() -> None:
    """Without it, an example could be there and nobody find it."""
    assert listing_violations(README, [path.name for path in EXAMPLES]) == []


GOOD = '"""Say.\n\nPrints::\n\n    a ...\n    b\n"""\nprint("a 1")\nprint("b")\n'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (GOOD, None),
        (GOOD.replace('print("b")', 'print("c")'), "it promised"),
        (GOOD.replace('print("b")', "pass"), "it promised"),
        (GOOD + 'print("more")', "it promised"),
        (GOOD + "raise SystemExit(3)", "it ended with 3"),
        (GOOD + "import warnings; warnings.warn('old')", "it ended with 1"),
        (GOOD + "import sys; sys.stderr.write('oh')", "it wrote to stderr: oh"),
        (GOOD + "open('x', 'w').close()", "it left files behind: ['x']"),
        ('"""Say nothing."""', "it promises no output"),
        ('"""Say nothing.\n\nPrints::\n"""', "it promises no output"),
    ],
)
def test_an_example_that_breaks_its_word_is_caught(text: str, complaint: str | None, tmp_path: Path) -> None:
    """The control of the runs: each way of failing is noticed, and success is none."""
    path = tmp_path / "01_planted.py"
    path.write_text(text)
    empty = tmp_path / "empty"
    empty.mkdir()
    found = run_violations(path, empty)
    assert found == [] if complaint is None else any(each.startswith(complaint) for each in found), found


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"01_a.py": "", "02_b.py": ""}, None),
        ({"01_a.py": "", "03_b.py": ""}, "the numbers are [1, 3], not 1 to 2"),
        ({"01_a.py": "", "01_b.py": ""}, "the numbers are [1, 1], not 1 to 2"),
        ({"a.py": ""}, "a.py is not named NN_name.py"),
        ({"01_a.py": "\n" * LINES_LIMIT}, f"01_a.py has {LINES_LIMIT} lines, {LINES_LIMIT} or more"),
        ({"01_a.py": "\n" * (LINES_LIMIT - 1)}, None),
        ({"01_a.py": "import mmapio\nfrom mmapio import aio\nimport os"}, None),
        ({"01_a.py": "import mmapio.mapping"}, "01_a.py uses mmapio.mapping"),
        ({"01_a.py": "from mmapio import _os"}, "01_a.py uses mmapio._os"),
        ({"01_a.py": "from mmapio.region import Region"}, "01_a.py uses mmapio.region"),
    ],
)
def test_a_planted_bad_shape_is_caught(files: dict[str, str], complaint: str | None, tmp_path: Path) -> None:
    """The control of the shapes."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert shape_violations(sorted(tmp_path.iterdir())) == ([] if complaint is None else [complaint])


def test_a_planted_wrong_list_is_caught() -> None:
    """The control of the table: an example that is missing, invented, misplaced or unexplained is noticed."""
    row = "| [{0}](examples/{0}) | What it shows |\n"
    names = ["01_a.py", "02_b.py"]
    head, tail = (
        "# X\n\n## Examples\n\n| Example | Shows |\n|---|---|\n",
        "\n## More\n\n" + row.format("03_c.py"),
    )
    assert listing_violations(head + "".join(map(row.format, names)) + tail, names) == []
    for listed in ([], names[:1], names[::-1], [*names, "03_c.py"]):
        assert len(listing_violations(head + "".join(map(row.format, listed)) + tail, names)) == 1
    assert (
        listing_violations(head + "".join(map(row.format, names)).replace("What it shows", " "), names) != []
    )
    assert listing_violations("# X\n", names) == ["README.md has no section Examples"]
