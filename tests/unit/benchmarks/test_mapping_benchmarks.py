"""The mapping layer's benchmarks run, small; what is checked is structure and answers, never a time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from benchmarks.adapters import Peer, RivalMissing, Stage, load_peer
from benchmarks.adapters.peer import Statements, Task
from benchmarks.adapters.stdlib_mmap import StdlibMmap
from benchmarks.bench_mmapio import SUITE, main
from benchmarks.dataset import WrongAnswer
from benchmarks.environment import bytes_written_to_device
from benchmarks.harness import LOOP, Result, Row
from benchmarks.mapping_rounds import run
from benchmarks.mapping_workloads import WORKLOADS, Sizes
from benchmarks.targets import Limit, Target
from tests.unit.benchmarks import runs

SMALL = ("--touch-mib", "2", "--grow-mib", "1", "--sample-us", "10", "--rounds", "1")
SIZES = Sizes(touch_bytes=1 << 20, grow_bytes=1 << 20, sample_ns=10e3)

#: What is part of Python or of the project.
ALWAYS = {*SUITE.subjects, "stdlib-mmap", "pwrite", "multiprocessing"}

#: What a tmpfs has no figure for.
OF_A_DEVICE = {"flush-bytes", "flush-small-bytes"}


def start(*arguments: str) -> subprocess.Popen[str]:
    return runs.start("benchmarks.bench_mmapio", *SMALL, *arguments)


def test_a_small_run_prints_and_stores_every_figure_and_cleans_up(tmp_path: Path) -> None:
    """Without it, a change of the mapping layer's surface would break its benchmark unseen."""
    files, document_path = tmp_path / "files", tmp_path / "run.json"
    files.mkdir()
    bench = start("--dir", str(files), "--json", str(document_path))
    output, document = runs.end(bench, files, document_path)
    assert document["parameters"] == {"rounds": 1, "sample_us": 10, "touch_mib": 2, "grow_mib": 1}
    present = runs.present_in(SUITE, document, output, ALWAYS)
    runs.check_order(SUITE, document, output, OF_A_DEVICE)
    for name, result in document["results"].items():
        check_result(name, result, present, output)

    verdicts = output[output.index("\ntargets\n") :].splitlines()[2:]
    assert len(verdicts) == len(SUITE.targets) == len(document["targets"])
    for line, target in zip(verdicts, document["targets"], strict=True):
        assert (
            f"target >= {target['ratio_min']:.3g}x: " in line
            if "ratio_min" in target
            else f"target <= {target['ns_max']:g} ns: " in line
        )
        assert f": {'met' if target['met'] else 'MISSED'}" in line
        assert ("but it is stated for a file of 1,024 MiB, this one had 2" in line) == ("touch_mib" in target)


def check_result(name: str, result: dict[str, Any], present: set[str], output: str) -> None:
    assert f"\n{name}: {WORKLOADS[name].operation}\n" in output
    expected = [
        (peer, statement)
        for peer in (*SUITE.subjects, *SUITE.rivals)
        if peer in present
        for statement in load_peer(peer).statements.get(name, ())
    ]
    if WORKLOADS[name].has_loop:
        expected.append((LOOP, "pass"))
    # Everything takes some time; but a device may have a cache of which the kernel does not know.
    runs.check_rows(result, expected, output, may_be_zero=name in OF_A_DEVICE)
    assert any("note" in row for row in result["rows"]) == (name == "grow")


def test_growth_is_told_with_what_it_leaves_alone_and_what_the_stdlib_refuses(tmp_path: Path) -> None:
    """The figure alone would not tell that one side grew below a live view and the other could not."""
    (result,) = run([WORKLOADS["grow"](SIZES)], [load_peer("mmapio"), StdlibMmap], tmp_path, 1)
    ours, theirs = result.rows
    assert "the address stayed" in ours.note
    assert "BufferError" in theirs.note


def test_a_terminated_run_removes_its_files(tmp_path: Path) -> None:
    asked = ["--workloads", "touch", "--rivals", "mmapio", "--rounds", "1000000", "--dir", str(tmp_path)]
    runs.check_terminated(start(*asked), tmp_path)


class Notes(Peer):
    """A peer that notes whose turn it is, and has nothing to do."""

    name = "notes"
    settings = "none"
    turns: ClassVar[list[str]] = []
    statements: ClassVar[Statements] = {"mutex": ("turns.append('a')", "turns.append('b')")}

    @classmethod
    def version(cls) -> str:
        return "0"

    @contextmanager
    def stage(self, task: Task) -> Iterator[Stage]:
        yield Stage({"turns": self.turns})


def test_the_statements_take_turns(tmp_path: Path) -> None:
    """Timed one after the other instead, one would meet a busier machine than the other."""
    Notes.turns.clear()
    workload = WORKLOADS["mutex"](SIZES)
    (result,) = run([workload], [Notes], tmp_path, 3)
    changes = sum(one != next_one for one, next_one in zip(Notes.turns, Notes.turns[1:], strict=False))
    assert changes == 2 * 3 * workload.tries - 1
    assert [len(row.samples) for row in result.rows] == [3, 3, 3]
    assert [row.main for row in result.rows] == [True, False, True]


def lying(statement: str, workload: str, **names: Any) -> type[Peer]:
    """A peer whose statement is not what it says it is."""

    class Liar(StdlibMmap):
        name = "liar"
        statements: ClassVar[Statements] = {workload: (statement,)}

        @contextmanager
        def stage(self, task: Task) -> Iterator[Stage]:
            with super().stage(task) as stage:
                yield Stage({**stage.names, **names}, stage.state, stage.note)

    return Liar


@pytest.mark.parametrize(
    ("workload", "statement"),
    [
        ("slice-64", "mm[a + 1:b + 1]"),
        ("slice-64k", "mm[a:b - 1]"),
        ("read-64", "len(buffer)"),
        ("read-4k", "buffer[:64] = view[a:a + 64]"),
        ("write-64", "mm[a + 1:b + 1] = data"),
        ("write-4k", "data[:]"),
        ("fetch-add", "mm[0]"),
        ("mutex", "mm[0] = 1"),
        ("chunks", "for a in range(0, size - n, n): chunk = mm[a:a + n]"),
        ("touch", "for a in range(0, size // 2, n): mm[a] = 1"),
        ("touch-write", "mm[0] = 1"),
        ("grow", "mm.resize(len(mm) + step)"),
        ("grow", "posix_fallocate(fd, 0, len(mm) + step)"),
        ("flush", "next(at); mm.flush()"),
        ("round-trip", "mm[0]"),
    ],
)
def test_a_wrong_answer_ends_the_run(workload: str, statement: str, tmp_path: Path) -> None:
    """A peer that left its work undone would lead the table."""
    with pytest.raises(WrongAnswer, match=f"^{workload}: "):
        run([WORKLOADS[workload](SIZES)], [lying(statement, workload)], tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def test_the_command_tells_of_a_wrong_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures of a run that was wrong must not be taken for figures."""
    monkeypatch.setattr("benchmarks.bench_mmapio.load_peer", lambda name: lying("mm[0:64]", "slice-64"))
    assert main(["--workloads", "slice-64", "--rivals", "stdlib-mmap", *SMALL, "--dir", str(tmp_path)]) == 1
    assert "WRONG ANSWER" in capsys.readouterr().err


def test_a_peer_that_is_not_installed_is_skipped_loudly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its column would be missing, and nobody would know."""
    monkeypatch.delitem(sys.modules, "benchmarks.adapters.pypi_atomics", raising=False)
    monkeypatch.setitem(sys.modules, "atomics", None)
    with pytest.raises(RivalMissing, match="atomics"):
        load_peer("atomics")
    asked = ["--workloads", "fetch-add", "--rivals", "mmapio,atomics", *SMALL, "--dir", str(tmp_path)]
    assert main(asked) == 0
    output = capsys.readouterr().out
    assert output.startswith("SKIPPED atomics: ")
    assert "word.fetch_add(1)" in output
    assert "not judged" in output
    assert main(["--rivals", "atomics", "--dir", str(tmp_path)]) == 2
    assert "Nothing to measure" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--workloads", "touch,bananas"], "no bananas; choose among slice-64"),
        (["--rivals", "lmdb"], "no lmdb; choose among mmapio"),
        (["--touch-mib", "0"], "0 is too few, the least is 1"),
        (["--dir", "no-such-directory"], "not a directory"),
    ],
)
def test_a_mistaken_command_line_is_refused_with_what_to_do(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.check_refused(main, arguments, told, capsys)


def test_the_glossary_explains_every_workload_and_every_adapter_knows_its_words() -> None:
    """A workload that no subject takes part in, or a statement of none, would never be timed."""
    assert set(SUITE.workloads) == set(WORKLOADS)
    for name, workload in WORKLOADS.items():
        assert workload.name == name
        assert workload.__doc__
    for name in SUITE.subjects:
        peer = load_peer(name)
        assert peer.name == name
        assert peer.settings
        assert peer.__doc__
        assert set(peer.statements) <= set(WORKLOADS)
    assert set(load_peer(SUITE.subjects[0]).statements) == set(WORKLOADS)


def judged(target: Target | Limit, samples: dict[str, list[float]]) -> Any:
    rows = [Row(name, None, "f()", each) for name, each in samples.items()]
    return target.judge({"slice-64": Result(WORKLOADS["slice-64"](SIZES), rows)})


def test_a_limit_is_judged_by_the_median() -> None:
    """One slow sample of many must not miss a target, nor one fast one meet it."""
    limit = Limit("slice-64", "mmapio", ns_max=100)
    verdict = judged(limit, {"mmapio": [100.0, 900.0, 90.0]})
    assert (verdict.ns, verdict.met) == (100.0, True)
    assert (verdict.ns_lowest, verdict.ns_highest) == (90.0, 900.0)
    assert judged(limit, {"mmapio": [100.1]}).met is False
    assert judged(limit, {"another": [1.0]}) is None
    assert limit.judge({}) is None


def test_a_target_may_allow_more_time_than_the_rival_takes() -> None:
    """`at most 1.3 times its time` is a ratio below one."""
    target = Target("slice-64", "mmapio", "stdlib-mmap", ratio_min=1 / 1.3)
    assert judged(target, {"mmapio": [130.0], "stdlib-mmap": [100.0]}).met is True
    assert judged(target, {"mmapio": [131.0], "stdlib-mmap": [100.0]}).met is False


def test_what_a_device_has_written_grows_and_may_be_unknown(tmp_path: Path) -> None:
    """A count of the wrong column would look like a count."""
    assert bytes_written_to_device(Path("/proc")) is None
    before = bytes_written_to_device(tmp_path)
    if before is None:
        pytest.skip("NOT TESTED: the kernel counts nothing for the file system of the temporary directory")
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(bytes(1 << 20))
        os.fsync(file.fileno())
    after = bytes_written_to_device(tmp_path)
    assert after is not None
    assert after - before >= 1 << 20
