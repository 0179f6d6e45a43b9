"""The store's benchmarks run, small; what is checked is structure and answers, never a time."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from benchmarks import bench_mmapkv, environment
from benchmarks.adapters import RIVALS, Form, NotThere, Rival, RivalMissing, Session, load_rival
from benchmarks.adapters.python_dict import PythonDict
from benchmarks.bench_mmapkv import SUITE, main
from benchmarks.command import at_least
from benchmarks.dataset import KEY_SIZE, VALUE_SIZE, Dataset, Layout, WrongAnswer, fresh_copies
from benchmarks.harness import LOOP, Harness, Result, Row, garbage_collection_off, touch_ballast
from benchmarks.lookup_workloads import Miss
from benchmarks.opening_workloads import bytes_on_disk
from benchmarks.report import as_json, table, verdicts
from benchmarks.targets import Limit, Target
from benchmarks.workloads import WORKLOADS
from tests.unit.benchmarks import runs

PROJECT = Path(__file__).resolve().parents[3]
KEYS = 1_200
AMOUNTS = {"keys": KEYS, "operations": 200, "durable": 5, "commits": 3}
SMALL = [part for name, value in AMOUNTS.items() for part in (f"--{name}", str(value))]

#: What is part of Python or of the project.
ALWAYS = {*SUITE.subjects, "dict", "sqlite", "pwrite"}


def test_a_small_run_prints_and_stores_every_figure_and_cleans_up(tmp_path: Path) -> None:
    """Without it, a change of the store's surface would break its benchmark unseen."""
    stores, document_path = tmp_path / "stores", tmp_path / "run.json"
    stores.mkdir()
    asked = [*SMALL, "--rounds", "1", "--dir", str(stores), "--json", str(document_path)]
    output, document = runs.end(runs.start("benchmarks", *asked), stores, document_path)
    assert document["parameters"].items() >= AMOUNTS.items()

    present = runs.present_in(SUITE, document, output, ALWAYS)
    for name in (*document["environment"], *present):
        assert f"\n{name} " in f"\n{output}"

    runs.check_order(SUITE, document, output, set())
    for name, result in document["results"].items():
        check_result(name, result, present, output)
    verdicts = output[output.index("\ntargets\n") :].splitlines()[2:]
    assert len(verdicts) == len(SUITE.targets) == len(document["targets"])
    for line, target in zip(verdicts, document["targets"], strict=True):
        assert f": { ({True: 'met', False: 'MISSED', None: 'not judged'}[target['met']]) }" in line
        assert target["key_count"] in (1_000_000, 10_000_000)
        assert (f"stated for {target['key_count']:,} keys" in line) == (target["met"] is not None)


def check_result(name: str, result: dict[str, Any], present: set[str], output: str) -> None:
    not_there = result.get("not_there", {})
    for rival, reason in not_there.items():
        assert f"  {rival}: not there: {reason}" in output
    # All that a rival may lack is what was planned for the subject and is not in it yet.
    assert set(not_there) <= set(SUITE.subjects)
    assert f"\n{name}: {WORKLOADS[name].operation}\n" in output
    expected = [
        (rival, spelling)
        for rival in (*SUITE.subjects, *SUITE.rivals)
        if rival in present and rival not in not_there
        for spelling in load_rival(rival).spellings.get(name, {}).values()
    ]
    loop = [(LOOP, "for k in keys: pass")] if WORKLOADS[name].has_loop and expected else []
    runs.check_rows(result, [*expected, *loop], output)


def test_a_terminated_run_removes_its_stores(tmp_path: Path) -> None:
    """A benchmark run was killed by a time limit; gigabytes of stores stayed behind in the checkout."""
    asked = ["--rivals", "dict", "--rounds", "1000000", "--keys", "2", "--dir", str(tmp_path)]
    runs.check_terminated(runs.start("benchmarks", *asked), tmp_path)


class Recorder(PythonDict):
    """A dict that notes each session."""

    name = "recorder-a"
    turns: ClassVar[list[str]] = []

    @contextmanager
    def reading(self) -> Iterator[Session]:
        self.turns.append(self.name)
        with super().reading() as session:
            yield session


class SecondRecorder(Recorder):
    """Another, with the same notes."""

    name = "recorder-b"


def harness(rivals: list[type[PythonDict]], directory: Path, rounds: int = 1, keys: int = 50) -> Harness:
    return Harness(Dataset(keys, seed=1), rivals, directory, rounds)


def test_the_rivals_take_turns_within_each_round(tmp_path: Path) -> None:
    Recorder.turns.clear()
    results = list(harness([Recorder, SecondRecorder], tmp_path, rounds=3).run([WORKLOADS["miss"]()]))
    filling, checking, first_round = Recorder.turns[:2], Recorder.turns[2:4], Recorder.turns[4:6]
    assert filling == checking == first_round == ["recorder-a", "recorder-b"]
    assert Recorder.turns[4:] == first_round * 3
    assert [len(row.samples) for row in results[0].rows] == [3, 3, 3]


def test_no_rival_follows_itself_in_another_form(tmp_path: Path) -> None:
    """The second form ran right after the first, found its store in the cache and looked the faster one."""
    Recorder.turns.clear()
    results = list(harness([Recorder, SecondRecorder], tmp_path).run([WORKLOADS["get"]()]))
    assert Recorder.turns[4:] == ["recorder-a", "recorder-b"] * 2
    assert [row.rival for row in results[0].rows] == [*["recorder-a"] * 2, *["recorder-b"] * 2, LOOP]


def test_every_workload_finds_the_store_in_the_state_it_needs(tmp_path: Path) -> None:
    for name in ("overwrite", "delete", "put"):
        for result in harness([PythonDict], tmp_path, rounds=2).run([WORKLOADS[name]()]):
            assert [len(row.samples) for row in result.rows] == [2, 2]
    assert list(tmp_path.iterdir()) == []


class Forgetful(PythonDict):
    """A store that loses every key it is asked to keep."""

    name = "forgetful"

    @contextmanager
    def writing(self) -> Iterator[Session]:
        lost: dict[bytes, bytes] = {}
        yield Session(lost.get, lost.__setitem__, lost.__delitem__, lost.items, lost)


class Corrupting(PythonDict):
    """A store that gives back one wrong value."""

    name = "corrupting"

    @contextmanager
    def reading(self) -> Iterator[Session]:
        wrong = dict(self._pairs)
        if wrong:
            wrong[min(wrong)] = b"wrong"
        yield Session(wrong.get, wrong.__setitem__, wrong.__delitem__, wrong.items, wrong)


class Inventing(PythonDict):
    """A store that has an answer to every key."""

    name = "inventing"

    @contextmanager
    def reading(self) -> Iterator[Session]:
        pairs = self._pairs

        def get(key: bytes) -> bytes:
            return pairs.get(key, b"invented")

        yield Session(get, pairs.__setitem__, pairs.__delitem__, pairs.items, pairs)


@pytest.mark.parametrize("workload", ["get", "get-many", "miss", "scan", "put", "overwrite", "ycsb-c"])
@pytest.mark.parametrize("liar", [Forgetful, Corrupting])
def test_a_wrong_answer_ends_the_run(workload: str, liar: type[PythonDict], tmp_path: Path) -> None:
    """A rival that had refused every put looked up nothing, and led the table."""
    with pytest.raises(WrongAnswer, match=f"^{liar.name} {workload}: "):
        list(harness([PythonDict, liar], tmp_path).run([WORKLOADS[workload]()]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workload", ["get", "miss", "delete"])
def test_an_invented_answer_ends_the_run(workload: str, tmp_path: Path) -> None:
    with pytest.raises(WrongAnswer, match="inventing"):
        list(harness([Inventing], tmp_path).run([WORKLOADS[workload]()]))


def test_the_same_seed_gives_the_same_distinct_pairs() -> None:
    data, again, other = Dataset(500, seed=7), Dataset(500, seed=7), Dataset(500, seed=8)
    assert (data.keys, data.values, data.absent) == (again.keys, again.values, again.absent)
    assert data.keys != other.keys
    assert len({*data.keys, *data.absent}) == 1_000
    assert len(set(data.values)) == 500
    assert {len(key) for key in data.keys} == {KEY_SIZE}
    assert {len(value) for value in data.values} == {VALUE_SIZE}
    assert all(old != new for old, new in zip(data.values, data.replacements, strict=True))


@pytest.mark.parametrize("layout", Layout)
def test_keys_are_handed_out_as_new_objects_in_one_order_with_their_values(layout: Layout) -> None:
    data = Dataset(500, seed=3, layout=layout)
    order = data.new_order()
    keys = order.to_look_up(data.keys)
    assert list(keys) != data.keys
    assert sorted(keys) == sorted(data.keys)
    assert not {id(key) for key in keys} & {id(key) for key in data.keys}
    assert list(order.to_store(data.keys)) == list(keys)
    stored = dict(zip(data.keys, data.values, strict=True))
    assert [stored[key] for key in keys] == list(order.to_store(data.values))
    assert list(data.new_order().to_look_up(data.keys)) != list(keys)


def test_fresh_copies_are_equal_and_not_the_same() -> None:
    originals = [b"abcd", b"efgh"]
    copies = fresh_copies(originals)
    assert copies == originals
    assert all(copy is not original for copy, original in zip(copies, originals, strict=True))


def judged(subject: list[float], rival: list[float]) -> Any:
    rows = [Row("mmapkv", Form.OPERATOR, "kv[k]", subject), Row("dict", Form.CALL, "dict.get(k)", rival)]
    target = Target("get", "mmapkv", "dict", ratio_min=1.5, key_count=1)
    return target.judge({"get": Result(WORKLOADS["get"](), rows)})


def test_a_target_is_judged_by_the_ratio_of_the_medians() -> None:
    verdict = judged([100.0, 900.0, 90.0], [150.0, 150.0, 2_000.0])
    assert (verdict.ratio, verdict.met) == (1.5, True)
    assert (verdict.ratio_lowest, verdict.ratio_highest) == (150 / 900, 2_000 / 90)
    assert judged([100.1], [150.0]).met is False


def test_a_limit_is_told_with_the_number_of_keys_it_is_stated_for() -> None:
    """A figure of 2,000 keys that keeps to a limit for a million says nothing."""
    limit = Limit("disk", "mmapkv", ns_max=1.45, key_count=1_000_000, unit="bytes on disk", times=False)
    results = {"disk": Result(WORKLOADS["disk"](), [Row("mmapkv", Form.CALL, "all files", [1.437])])}
    told = verdicts([limit], results, {"keys": 2_000})
    assert "1.44 bytes on disk (by round 1.44..1.44), target <= 1.45 bytes on disk: met" in told
    assert "(but it is stated for 1,000,000 keys, these are 2,000)" in told
    assert "but" not in verdicts([limit], results, {"keys": 1_000_000})


def test_a_target_without_its_rival_is_not_judged() -> None:
    target = Target("get", "mmapkv", "lmdb", ratio_min=1.5, key_count=1)
    assert target.judge({}) is None
    assert judged([1.0], [1.0]) is not None
    assert target.judge({"get": Result(WORKLOADS["get"](), [Row("mmapkv", Form.CALL, "", [1.0])])}) is None


@pytest.fixture
def without_lmdb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "benchmarks.adapters.lmdb_store", raising=False)
    monkeypatch.setitem(sys.modules, "lmdb", None)


@pytest.mark.usefixtures("without_lmdb")
def test_a_rival_that_is_not_installed_is_skipped_loudly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RivalMissing, match="lmdb"):
        load_rival("lmdb")
    asked = ["--rivals", "dict,lmdb", "--workloads", "get", "--keys", "10", "--dir", str(tmp_path)]
    assert main(asked) == 0
    output = capsys.readouterr().out
    assert output.startswith("SKIPPED lmdb: ")
    assert "dict.get(k)" in output
    assert "not judged" in output


class Lacking(PythonDict):
    """A store that takes part with calls that it does not have, and cannot be opened to last."""

    name = "lacking"
    spellings: ClassVar[Any] = {
        **PythonDict.spellings,
        "get-many": {Form.CALL: "d.get_many(keys)"},
        "durable": {Form.CALL: "d.put(k, v, durable=True)"},
    }

    def open(self, directory: Path) -> None:
        if self.durable:
            raise NotThere("it forgets")
        super().open(directory)


def test_what_a_rival_cannot_do_is_told_and_the_others_are_timed(tmp_path: Path) -> None:
    """The subject was about to get calls that its benchmark had already; until then, no run ended well."""
    workloads = [WORKLOADS[name]() for name in ("get", "get-many", "put", "durable")]
    results = {
        result.workload.name: result for result in harness([PythonDict, Lacking], tmp_path, 2).run(workloads)
    }
    rows = {name: [row.rival for row in result.rows] for name, result in results.items()}
    both = ["dict", "dict", "lacking", "lacking", LOOP]
    once = ["dict", "lacking", LOOP]
    assert rows == {"get": both, "get-many": ["dict", LOOP], "put": once, "durable": []}
    assert all(len(row.samples) == 2 for result in results.values() for row in result.rows)
    assert "get_many" in results["get-many"].not_there["lacking"]
    assert results["durable"].not_there == {"lacking": "it forgets"}
    assert "lacking: not there: it forgets" in table(results["durable"], ["dict", "lacking"])
    target = Target("get-many", "lacking", "dict", ratio_min=5)
    document: Any = as_json({}, [], {}, {}, results, [target])
    assert document["results"]["durable"]["not_there"] == {"lacking": "it forgets"}
    assert "not_there" not in document["results"]["get"]
    assert document["targets"][0]["met"] is None
    assert list(tmp_path.iterdir()) == []


def test_a_slow_rival_is_given_fewer_pairs_and_its_row_says_so(tmp_path: Path) -> None:
    """One that takes 20 us a put would take most of the time of a run with millions."""

    class Slow(PythonDict):
        name = "slow"
        keys_max = 20
        counts: ClassVar[list[int]] = []

        def close(self) -> None:
            self.counts.append(self.count())
            super().close()

    workloads = [WORKLOADS[name]() for name in ("get", "put", "ycsb-a")]
    for result in harness([PythonDict, Slow], tmp_path, keys=50).run(workloads):
        notes = {row.rival: row.note for row in result.rows}
        assert notes == {"dict": "", "slow": "with 20 pairs only", LOOP: ""}
    assert Slow.counts == [20, 20, 20]


def test_a_sample_is_the_smallest_of_the_tries(tmp_path: Path) -> None:
    """A device that is slow for a moment would make one rival look slow in a whole round."""

    class Tried(Miss):
        tries = 3
        taken: ClassVar[Iterator[float]] = iter([30.0, 10.0, 20.0, 5.0, 7.0, 6.0])

        def run(self, rival: Rival, *arguments: Any) -> float:
            return next(self.taken)

    (result,) = harness([Recorder], tmp_path, rounds=2).run([Tried()])
    assert result.rows[0].samples == [10.0, 5.0]


@pytest.mark.parametrize(("text", "number"), [("100k", 100_000), ("1M", 1_000_000), ("1_000", 1_000)])
def test_a_number_may_be_told_in_thousands_and_millions(text: str, number: int) -> None:
    assert at_least(1)(text) == number


def test_only_a_run_of_everything_becomes_a_published_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of one workload, started to look at something, would replace the figures that README cites."""
    written: list[Path | None] = []
    monkeypatch.setattr(bench_mmapkv, "write_json", lambda path, document: written.append(path))
    monkeypatch.setattr(bench_mmapkv, "SUITE", replace(SUITE, subjects=(), rivals=("dict",)))
    monkeypatch.setattr(bench_mmapkv, "PUBLISHED", {30: "30"})
    common = ["--rounds", "1", "--dir", str(tmp_path), "--keys"]
    for arguments in (["30"], ["31"], ["30", "--workloads", "get"], ["30", "--rivals", "dict"]):
        assert main([*common, *arguments]) == 0
    results = PROJECT / "benchmarks" / "results"
    assert written == [results / "store-30.json", None, None, None]


@pytest.mark.usefixtures("without_lmdb")
def test_a_run_with_nothing_to_measure_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rivals", "lmdb", "--keys", "10", "--dir", str(tmp_path)]) == 2
    assert "Nothing to measure" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--workloads", "get,bananas"], "no bananas; choose among get, get-many"),
        (["--rivals", "sqlite9"], "no sqlite9; choose among mmapkv"),
        (["--keys", "1"], "1 is too few, the least is 2"),
        (["--keys", "many"], "invalid"),
        (["--keys", "1g"], "invalid"),
        (["--rounds", "0"], "0 is too few, the least is 1"),
        (["--dir", "no-such-directory"], "not a directory"),
        (["--json", "no-such-directory/run.json"], "does not exist"),
        (["mmapkw"], "unrecognized arguments"),
    ],
)
def test_a_mistaken_command_line_is_refused_with_what_to_do(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.check_refused(main, arguments, told, capsys)


def test_the_glossary_explains_every_workload_and_every_adapter_knows_its_words() -> None:
    assert set(SUITE.workloads) <= set(WORKLOADS)
    for name, workload in WORKLOADS.items():
        assert workload.name == name
        assert workload.__doc__
    assert set(load_rival(SUITE.subjects[0]).spellings) == set(WORKLOADS) - {"ycsb-e"}
    for name in RIVALS:
        try:
            rival = load_rival(name)
        except RivalMissing:
            continue
        assert rival.name == name
        assert set(rival.spellings) <= set(WORKLOADS)
        assert rival.settings
        assert rival.__doc__
        # Where its own documentation says what its settings do; what has none is not told any.
        assert ("https://" in rival.__doc__) == (name not in {*SUITE.subjects, "dict", "pwrite"})


def test_bytes_on_disk_counts_blocks_and_not_holes(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    with (tmp_path / "below" / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    with (tmp_path / "full").open("wb") as file:
        file.write(bytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())
    assert 1 << 20 <= bytes_on_disk(tmp_path) < 1 << 21


def test_the_environment_names_the_file_system_below_a_directory() -> None:
    described = environment.describe(PROJECT)
    assert {"python", "kernel", "cpu", "file system"} <= set(described)
    assert all(described.values())
    assert environment.file_system(Path("/proc")).startswith("proc (")
    assert environment.is_memory("tmpfs (rw)")
    assert not environment.is_memory("ext4 (rw,relatime)")


@pytest.mark.parametrize("raises", [False, True])
def test_the_collector_is_off_inside_and_on_again_after(raises: bool) -> None:
    import gc

    outcome: Callable[[], object] = (lambda: 1 / 0) if raises else (lambda: None)
    try:
        with garbage_collection_off():
            assert not gc.isenabled()
            outcome()
    except ZeroDivisionError:
        assert raises
    assert gc.isenabled()


def test_a_ballast_of_any_size_can_be_touched() -> None:
    for size in (4096, 4097, 1 << 20):
        touch_ballast(size)
