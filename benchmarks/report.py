"""The figures as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .adapters import Rival
from .dataset import KEY_SIZE, VALUE_SIZE, Dataset
from .harness import LOOP, Result, Row
from .targets import Target, Verdict

JSON_VERSION = 1


def header(
    environment: Mapping[str, str], contestants: Sequence[type[Rival]], data: Dataset, rounds: int
) -> str:
    """Return what is measured with what, one line each."""
    lines = [f"{name:<14} {value}" for name, value in environment.items()]
    lines += [f"{rival.name:<14} {rival.version()}; {rival.settings}" for rival in contestants]
    lines.append(
        f"{'pairs':<14} {data.count:,} distinct ones, keys of {KEY_SIZE} B, values of {VALUE_SIZE} B; "
        f"handed out as new objects in shuffled order, layout {data.layout.value}"
    )
    lines.append(
        f"{'figures':<14} median, lowest and highest of {rounds} rounds, and how many times as fast as each "
        f"rival; {LOOP} is contained in all"
    )
    return "\n".join(lines)


def table(result: Result, rivals: Sequence[str], data: Dataset) -> str:
    """Return a workload's rows, each with its ratio to the main form of those `rivals` that took part."""
    workload = result.workload
    opponents = [row for rival in rivals if (row := result.main_row(rival)) is not None]
    titles = ["", "", workload.unit, "lowest..highest", *(f"vs {row.rival}" for row in opponents)]
    body = [titles]
    for row in result.rows:
        spread = f"{_figure(min(row.samples), result)}..{_figure(max(row.samples), result)}"
        if not workload.times:
            spread = f"{row.median * data.bytes_stored / 1e6:,.1f} MB in all"
        ratios = [f"{rival.median / row.median:.2f}x" for rival in opponents]
        if row.rival == LOOP:
            ratios = [""] * len(opponents)
        body.append([row.rival, row.spelling, _figure(row.median, result), spread, *ratios])
    return f"{workload.name}: {workload.operation}\n{_aligned(body)}"


def verdicts(targets: Iterable[Target], results: Mapping[str, Result], key_count: int) -> str:
    """Return one line a target: the ratio reached, the ratio asked for, and whether it was met."""
    lines = ["targets"]
    for target in targets:
        verdict = target.judge(results)
        if verdict is None:
            lines.append(
                f"  {target.workload}: {target.subject} against {target.rival}: "
                f"target >= {target.ratio_min:g}x: not judged, this run did not time both"
            )
            continue
        line = (
            f"  {target.workload}: {target.subject} {verdict.spelling} against "
            f"{target.rival} {verdict.rival_spelling}: {verdict.ratio:.2f}x "
            f"(by round {verdict.ratio_lowest:.2f}x..{verdict.ratio_highest:.2f}x), "
            f"target >= {target.ratio_min:g}x: {'met' if verdict.met else 'MISSED'}"
        )
        if key_count != target.key_count:
            line += f" (but it is stated for {target.key_count:,} keys, these are {key_count:,})"
        lines.append(line)
    return "\n".join(lines)


def as_json(
    environment: Mapping[str, str],
    contestants: Sequence[type[Rival]],
    missing: Mapping[str, str],
    parameters: Mapping[str, int | str],
    results: Mapping[str, Result],
    targets: Iterable[Target],
) -> dict[str, object]:
    """Return everything that was measured, every sample included, in the smallest units."""
    return {
        "version": JSON_VERSION,
        "environment": dict(environment),
        "contestants": {
            rival.name: {"version": rival.version(), "settings": rival.settings} for rival in contestants
        },
        "missing": dict(missing),
        "parameters": {**parameters, "key_size": KEY_SIZE, "value_size": VALUE_SIZE},
        "results": {name: _result_as_json(result) for name, result in results.items()},
        "targets": [_target_as_json(target, target.judge(results)) for target in targets],
    }


def _result_as_json(result: Result) -> dict[str, object]:
    return {
        "operation": result.workload.operation,
        "unit": "ns" if result.workload.times else result.workload.unit,
        "rows": [_row_as_json(row) for row in result.rows],
    }


def _row_as_json(row: Row) -> dict[str, object]:
    return {
        "rival": row.rival,
        "form": row.form.value if row.form is not None else None,
        "spelling": row.spelling,
        "median": row.median,
        "samples": row.samples,
    }


def _target_as_json(target: Target, verdict: Verdict | None) -> dict[str, object]:
    return {
        "workload": target.workload,
        "subject": target.subject,
        "rival": target.rival,
        "ratio_min": target.ratio_min,
        "key_count": target.key_count,
        "ratio": verdict.ratio if verdict is not None else None,
        "met": verdict.met if verdict is not None else None,
    }


def _figure(value: float, result: Result) -> str:
    scaled = value / result.workload.unit_size
    return f"{scaled:,.0f}" if scaled >= 100 else f"{scaled:.3g}"


def _aligned(body: Sequence[Sequence[str]]) -> str:
    """Pad the columns: names to the left, figures to the right."""
    widths = [max(len(line[column]) for line in body) for column in range(len(body[0]))]
    lines = []
    for line in body:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines)
