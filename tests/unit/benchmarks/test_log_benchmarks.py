"""The log's benchmarks run, small; what is checked is structure and answers, never a time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from benchmarks.adapters import LOG_PEERS, Peer, RivalMissing, load_log_peer
from benchmarks.adapters.file_log import BufferedFile, framed, frames, unframed
from benchmarks.adapters.log_peer import LogPeer, LogStage
from benchmarks.adapters.mmaplog_log import MmaplogLog
from benchmarks.adapters.peer import Statements, Task
from benchmarks.bench_mmaplog import SUITE, main
from benchmarks.dataset import WrongAnswer
from benchmarks.harness import Result, Row
from benchmarks.log_workloads import GROUP_SIZE, RECORD_BYTES, WORKLOADS, Amounts, Supply, new_records
from benchmarks.mapping_rounds import run
from benchmarks.report import verdicts
from benchmarks.targets import Limit, Target
from mmaplog import CorruptionError
from tests.unit.benchmarks import runs

PARAMETERS = {"rounds": 1, "records": 200, "threaded": 16, "wakes": 3, "log_mib": 130, "sample_us": 10}
SMALL = [part for name, value in PARAMETERS.items() for part in (f"--{name.replace('_', '-')}", str(value))]
AMOUNTS = Amounts(records=200, threaded=16, wakes=2, log_bytes=4 << 20, sample_ns=10e3)

#: What is part of Python or of the project.
ALWAYS = {"mmaplog", "buffered-file", "pwrite", "sqlite", "mp-pipe", "mp-queue"}

#: What a tmpfs has no figure for.
OF_A_DEVICE = {"durable-bytes"}


def start(*arguments: str) -> subprocess.Popen[str]:
    return runs.start("benchmarks.bench_mmaplog", *SMALL, *arguments)


def test_a_small_run_prints_and_stores_every_figure_and_cleans_up(tmp_path: Path) -> None:
    """Without it, a change of the log's surface would break its benchmark unseen."""
    logs, document_path = tmp_path / "logs", tmp_path / "run.json"
    logs.mkdir()
    bench = start("--dir", str(logs), "--json", str(document_path))
    output, document = runs.end(bench, logs, document_path)
    assert document["parameters"] == PARAMETERS
    present = runs.present_in(SUITE, document, output, ALWAYS)
    runs.check_order(SUITE, document, output, OF_A_DEVICE)
    for name, result in document["results"].items():
        check_result(name, result, present, output)

    lines = output[output.index("\ntargets\n") :].splitlines()[2:]
    assert len(lines) == len(SUITE.targets) == len(document["targets"])
    for line, target, stored in zip(lines, SUITE.targets, document["targets"], strict=True):
        assert (
            f"target >= {target.ratio_min:.3g}x: " in line
            if isinstance(target, Target)
            else f"target <= {target.ns_max / target.unit_size:g} {target.unit}: " in line
        )
        verdict = {True: "met", False: "MISSED", None: "not judged"}[stored["met"]]
        assert f": {verdict}" in line
        assert ("stated for a log of 10,240 MiB, this one had 130" in line) == ("log_mib" in stored)


def check_result(name: str, result: dict[str, Any], present: set[str], output: str) -> None:
    assert f"\n{name}: {WORKLOADS[name].operation}\n" in output
    expected = [
        (peer, statement)
        for peer in (*SUITE.subjects, *SUITE.rivals)
        if peer in present
        for statement in load_log_peer(peer).statements.get(name, ())
    ]
    # Everything takes some time; but a device may have a cache of which the kernel does not know.
    runs.check_rows(result, expected, output, may_be_zero=name in OF_A_DEVICE)
    for row in result["rows"]:
        assert ("note" in row) == (name in ("wake", "reopen"))


def test_a_terminated_run_removes_its_logs(tmp_path: Path) -> None:
    asked = ["--workloads", "durable", "--rivals", "mmaplog", "--rounds", "1000000", "--dir", str(tmp_path)]
    runs.check_terminated(start(*asked), tmp_path)


def lying(base: type[Peer], statement: str, workload: str, **names: Any) -> type[Peer]:
    """A peer whose statement is not what it says it is."""

    class Liar(base):  # type: ignore[valid-type, misc]
        name = "liar"
        statements: ClassVar[Statements] = {workload: (statement,)}

        @contextmanager
        def scene(self, task: Task) -> Iterator[LogStage]:
            with super().scene(task) as stage:
                lies = {"names": {**stage.names, **names}, "crash": lambda: None}
                fields = stage.__dataclass_fields__
                yield LogStage(**{**{name: getattr(stage, name) for name in fields}, **lies})

    return Liar


@pytest.mark.parametrize(
    ("workload", "statement"),
    [
        ("append", "for r in records[1:]: log.append(r)"),
        ("append", "for r in records: log.append(records[0])"),
        ("append", "for r in records + records[:1]: log.append(r)"),
        ("append-many", "log.append_many(records[::-1])"),
        ("append-many", "log.append_many(joined, offsets[:-1])"),
        ("replay", "for entry in log.replay(1): pass"),
        ("replay", "for entry in log.replay(reverse=True): pass"),
        ("look-up", "for n in numbers: log[n - 1]"),
        ("look-up", "for entry in log.read_many(numbers[1:]): pass"),
        ("durable", "next(record)"),
        ("durable", "log.append(next(record)[:-1], durable=True)"),
        ("group", "[log.append(r) for r in next(group)[1:]]; log.flush()"),
        ("threads", "in_threads(8, len)"),
        ("threads", "in_threads(8, lambda record: [durably(record), durably(record)])"),
        ("wake", "log.append(bytes(8))"),
        ("wake", "stamp(); log.append(b'now')"),
        # Nobody appended the last words.
        ("reopen", "opened.append(Log.open(path, 'r'))"),
    ],
)
def test_a_wrong_answer_ends_the_run(workload: str, statement: str, tmp_path: Path) -> None:
    """A peer that left its work undone would lead the table."""
    with pytest.raises(WrongAnswer, match=f"^{workload}: "):
        run([WORKLOADS[workload](AMOUNTS)], [lying(MmaplogLog, statement, workload)], tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_does_not_hold_what_was_written_ends_the_run(tmp_path: Path) -> None:
    """The rivals' stores are read back as well, not only the subject's."""
    liar = lying(BufferedFile, "for r in records[:-1]: file.write(framed(r))", "append")
    with pytest.raises(WrongAnswer, match=r"^append: .* record 199 of 200 is missing"):
        run([WORKLOADS["append"](AMOUNTS)], [liar], tmp_path, 1)


def test_a_queue_that_was_not_emptied_ends_the_run(tmp_path: Path) -> None:
    """What reading empties cannot be read twice, so it is what is left that tells."""

    class Queue(LogPeer):
        name = "queue"
        settings = "none"
        statements: ClassVar[Statements] = {"replay": ("for record in iter(left.pop, None): break",)}

        @classmethod
        def version(cls) -> str:
            return "0"

        @contextmanager
        def scene(self, task: Task) -> Iterator[LogStage]:
            left = [None, b"a", b"b"]
            yield LogStage({"left": left}, state=lambda: len(left) - 1, consumes=True)

    with pytest.raises(WrongAnswer, match=r"^replay: .* 1 records are left"):
        run([WORKLOADS["replay"](AMOUNTS)], [Queue], tmp_path, 1)


def flipping(base: type[LogPeer], pattern: str) -> type[Peer]:
    """A peer of whose log one bit is another before it is read."""

    class Flipping(base):  # type: ignore[valid-type, misc]
        @contextmanager
        def scene(self, task: Task) -> Iterator[LogStage]:
            with super().scene(task) as stage:
                (path,) = task.path.glob(pattern)
                with path.open("r+b") as file:
                    at = file.read().index(new_records(AMOUNTS.records)[7]) + RECORD_BYTES // 2
                    file.seek(at)
                    (byte,) = file.read(1)
                    file.seek(at)
                    file.write(bytes([byte ^ 1]))
                yield stage

    return Flipping


@pytest.mark.parametrize(
    ("peer", "pattern", "error"),
    [(MmaplogLog, "log/*.seg", CorruptionError), (BufferedFile, "records", ValueError)],
)
def test_a_flipped_bit_fails_the_replay(
    peer: type[LogPeer], pattern: str, error: type[Exception], tmp_path: Path
) -> None:
    """A replay that verified nothing would be faster, and the figure is for one that does."""
    with pytest.raises(error):
        run([WORKLOADS["replay"](AMOUNTS)], [flipping(peer, pattern)], tmp_path, 1)


def test_a_flipped_bit_fails_the_verification(tmp_path: Path) -> None:
    """One that looked at nothing would be faster still."""
    with pytest.raises(WrongAnswer, match=r"^verify: .* does not verify"):
        run([WORKLOADS["verify"](AMOUNTS)], [flipping(MmaplogLog, "log/*.seg")], tmp_path, 1)


def test_the_command_tells_of_a_wrong_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures of a run that was wrong must not be taken for figures."""
    liar = lying(MmaplogLog, "log.append(b'')", "append")
    monkeypatch.setattr("benchmarks.bench_mmaplog.load_log_peer", lambda name: liar)
    assert main(["--workloads", "append", "--rivals", "mmaplog", *SMALL, "--dir", str(tmp_path)]) == 1
    assert "WRONG ANSWER" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rival", "package"),
    [
        ("lmdb", "lmdb"),
        ("persist-queue", "persistqueue"),
        ("queuelib", "queuelib"),
        ("rocksdict", "rocksdict"),
        ("plyvel", "plyvel"),
    ],
)
def test_a_peer_that_is_not_installed_is_skipped_loudly(
    rival: str,
    package: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise its column would be missing, and nobody would know."""
    module = LOG_PEERS[rival].partition(":")[0]
    for name in ("lmdb_store", module):
        monkeypatch.delitem(sys.modules, f"benchmarks.adapters.{name}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RivalMissing, match=package):
        load_log_peer(rival)
    asked = ["--workloads", "append", "--rivals", f"mmaplog,{rival}", *SMALL, "--dir", str(tmp_path)]
    assert main(asked) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"SKIPPED {rival}: ")
    assert "`pip install --group bench` installs those on PyPI" in output
    assert "for r in records: log.append(r)" in output
    assert "not judged" in output
    assert main(["--rivals", rival, "--dir", str(tmp_path)]) == 2
    assert "Nothing to measure" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--workloads", "append,bananas"], "no bananas; choose among append"),
        (["--rivals", "numpy-memmap"], "no numpy-memmap; choose among mmaplog"),
        (["--records", "1"], "1 is too few, the least is 2"),
        (["--threaded", "7"], "7 is too few, the least is 8"),
        (["--dir", "no-such-directory"], "not a directory"),
    ],
)
def test_a_mistaken_command_line_is_refused_with_what_to_do(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.check_refused(main, arguments, told, capsys)


def test_the_glossary_explains_every_workload_and_every_adapter_knows_its_words() -> None:
    """A workload that the subject takes no part in, or a statement of none, would never be timed."""
    assert set(SUITE.workloads) == set(WORKLOADS)
    for name, workload in WORKLOADS.items():
        assert workload.name == name
        assert workload.__doc__
    for name in ALWAYS:
        peer = load_log_peer(name)
        assert peer.name == name
        assert peer.settings
        assert peer.__doc__
        assert set(peer.statements) <= set(WORKLOADS)
    assert set(load_log_peer(SUITE.subjects[0]).statements) == set(WORKLOADS)


def test_the_targets_name_rows_that_there_are() -> None:
    """A target that names no row is never judged, which looks much like a rival that is not installed."""
    for target in SUITE.targets:
        assert target.workload in SUITE.workloads
        assert target.workload in load_log_peer(target.subject).statements
        if isinstance(target, Target):
            assert target.rival in LOG_PEERS
        if isinstance(target, Target) and target.rival_spelling is not None:
            assert target.rival_spelling in load_log_peer(target.rival).statements[target.workload]


def result_of(workload: str, **rows: list[float]) -> dict[str, Result]:
    made = [Row("mmaplog", None, form, each, main=form == "main") for form, each in rows.items()]
    return {workload: Result(WORKLOADS[workload](AMOUNTS), made)}


def test_a_target_may_compare_two_forms_of_the_subject() -> None:
    """That eight threads are worth more than one is a ratio within one peer."""
    target = Target("threads", "mmaplog", "mmaplog", ratio_min=4, rival_spelling="alone")
    verdict = target.judge(result_of("threads", main=[10.0], alone=[40.0]))
    assert verdict is not None
    assert (verdict.ratio, verdict.rival_spelling, verdict.met) == (4.0, "alone", True)
    assert target.judge(result_of("threads", main=[10.0])) is None


def test_a_limit_is_told_in_its_unit() -> None:
    """20 ms told as 2e+07 ns, or bytes told as ns, would be read wrongly."""
    time = Limit("reopen", "mmaplog", ns_max=20e6, unit="ms", unit_size=1e6)
    size = Limit("durable-bytes", "mmaplog", ns_max=8192, unit="KiB", unit_size=1024, times=False)
    told = verdicts([time], result_of("reopen", main=[25e6]), {})
    assert "main: 25.0 ms (by round 25.0..25.0), target <= 20 ms: MISSED" in told
    told = verdicts([size], result_of("durable-bytes", main=[4096.0]), {})
    assert "main: 4.0 KiB (by round 4.0..4.0), target <= 8 KiB: met" in told


def test_the_records_are_distinct_and_the_supply_remembers() -> None:
    """Equal records would hide one that was lost or moved."""
    records = new_records(300)
    assert len(set(records)) == 300
    assert {len(record) for record in records} == {RECORD_BYTES}
    supply = Supply(records)
    assert supply.take(GROUP_SIZE) == records[:GROUP_SIZE]
    for _ in range(250):
        next(supply)
    assert supply.given() == records + records[: GROUP_SIZE + 250 - 300]


def test_frames_verify_and_end_at_zeros(tmp_path: Path) -> None:
    """The rival must do what is claimed for it: check every CRC."""
    path = tmp_path / "records"
    records = [b"one", b"a longer one", b"3"]
    for end in (b"", bytes(7), bytes(8), bytes(4096)):
        path.write_bytes(b"".join(map(framed, records)) + end)
        assert list(frames(path)) == records
    assert unframed(framed(b"one")) == b"one"
    bad = bytearray(framed(b"one"))
    bad[-1] ^= 1
    path.write_bytes(bad)
    with pytest.raises(ValueError, match="another checksum"):
        list(frames(path))
    with pytest.raises(ValueError, match="another checksum"):
        unframed(bytes(bad))
