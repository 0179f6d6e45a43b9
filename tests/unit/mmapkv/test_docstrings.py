"""The examples in the docstrings of all three packages work, in native modules too."""

from __future__ import annotations

import doctest
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.modules import modules


def examples(module: ModuleType) -> list[doctest.DocTest]:
    """The docstrings of a module that hold examples, each once."""
    tests = doctest.DocTestFinder(exclude_empty=True).find(module)
    unique = {(test.docstring, test.name.rpartition(".")[2]): test for test in tests if test.examples}
    return list(unique.values())


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__)
def test_examples(module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An example that does not work is worse than none."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report: list[str] = []
    for test in examples(module):
        runner.run(test, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


def test_the_examples_of_native_modules_are_found() -> None:
    """The control: the finder passes over what it does not recognise, and then nothing is tested above."""
    found = {test.name for module in modules() for test in examples(module)}
    for name in (
        "mmapio.file.MemoryMappedFile",
        "mmapio.options.FlushPolicy",
        "mmaplog.checksum.xxh3_64",
        "mmaplog.log.Log",
        "mmapkv.store.KVStore",
    ):
        assert any(each.startswith(name) for each in found), f"no example of {name} among {sorted(found)}"


def test_a_planted_wrong_example_is_caught() -> None:
    """The control of the runner."""
    planted = ModuleType("planted", ">>> 1 + 1\n3\n")
    runner = doctest.DocTestRunner()
    for test in examples(planted):
        runner.run(test, out=lambda text: None)
    assert runner.summarize(verbose=False).failed == 1
