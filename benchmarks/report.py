"""The figures as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from .harness import LOOP, Result, Row
from .targets import Limit, Target

JSON_VERSION = 1

STATED_FOR = ("key_count", "touch_mib", "log_mib", "rival_spelling")


class Contestant(Protocol):
    """What a report says of who takes part."""

    @property
    def name(self) -> str: ...
    @property
    def settings(self) -> str: ...
    def version(self) -> str: ...


def header(
    environment: Mapping[str, str], contestants: Sequence[Contestant], figures: str, **more: str
) -> str:
    """Return what is measured with what, one line each; `figures` says what a figure is."""
    lines = [f"{name:<14} {value}" for name, value in environment.items()]
    lines += [f"{each.name:<14} {each.version()}; {each.settings}" for each in contestants]
    lines += [f"{name:<14} {value}" for name, value in {**more, "figures": figures}.items()]
    return "\n".join(lines)


def table(result: Result, rivals: Sequence[str], bytes_stored: int = 0) -> str:
    """Return a workload's rows, each with its ratio to the main form of those `rivals` that took part.

    Where what was measured is a share of `bytes_stored`, the whole is shown as well.
    """
    workload = result.workload
    opponents = [row for rival in rivals if (row := result.main_row(rival)) is not None]
    titles = ["", "", workload.unit, "lowest..highest", *(f"vs {row.rival}" for row in opponents)]
    body = [titles]
    for row in result.rows:
        spread = f"{_figure(min(row.samples), result)}..{_figure(max(row.samples), result)}"
        if bytes_stored and not workload.times:
            spread = f"{row.median * bytes_stored / 1e6:,.1f} MB in all"
        ratios = [_times_as_good(rival, row) for rival in opponents]
        if row.rival == LOOP:
            ratios = [""] * len(opponents)
        body.append([row.rival, row.spelling, _figure(row.median, result), spread, *ratios])
    notes = [f"  {row.rival} {row.spelling}: {row.note}" for row in result.rows if row.note]
    notes += [f"  {rival}: not there: {reason}" for rival, reason in result.not_there.items()]
    return "\n".join([f"{workload.name}: {workload.operation}", _aligned(body), *notes])


def verdicts(
    targets: Iterable[Target | Limit], results: Mapping[str, Result], parameters: Mapping[str, object]
) -> str:
    """Return one line a target: the figure reached, the one asked for, and whether it was met."""
    lines = ["targets"]
    for target in targets:
        line = _limit_line(target, results) if isinstance(target, Limit) else _ratio_line(target, results)
        lines.append(line + _caveat(target, parameters) if ": not judged" not in line else line)
    return "\n".join(lines)


def _ratio_line(target: Target, results: Mapping[str, Result]) -> str:
    asked = f"target >= {target.ratio_min:.3g}x"
    verdict = target.judge(results)
    if verdict is None:
        return (
            f"  {target.workload}: {target.subject} against {target.rival}: {asked}: "
            "not judged, this run did not time both"
        )
    return (
        f"  {target.workload}: {target.subject} {verdict.spelling} against "
        f"{target.rival} {verdict.rival_spelling}: {verdict.ratio:.2f}x "
        f"(by round {verdict.ratio_lowest:.2f}x..{verdict.ratio_highest:.2f}x), "
        f"{asked}: {'met' if verdict.met else 'MISSED'}"
    )


def _limit_line(target: Limit, results: Mapping[str, Result]) -> str:
    size = target.unit_size
    asked = f"target <= {target.ns_max / size:g} {target.unit}"
    verdict = target.judge(results)
    if verdict is None:
        return f"  {target.workload}: {target.subject}: {asked}: not judged, this run did not time it"
    places = 1 if target.ns_max >= 2 * size else 2
    median, lowest, highest = (
        f"{value / size:,.{places}f}" for value in (verdict.ns, verdict.ns_lowest, verdict.ns_highest)
    )
    return (
        f"  {target.workload}: {target.subject} {verdict.spelling}: {median} {target.unit} "
        f"(by round {lowest}..{highest}), "
        f"{asked}: {'met' if verdict.met else 'MISSED'}"
    )


def _caveat(target: Target | Limit, parameters: Mapping[str, object]) -> str:
    keys = target.key_count
    if keys is not None and keys != parameters["keys"]:
        return f" (but it is stated for {keys:,} keys, these are {parameters['keys']:,})"
    mib = target.touch_mib
    if mib is not None and mib != parameters["touch_mib"]:
        return f" (but it is stated for a file of {mib:,} MiB, this one had {parameters['touch_mib']:,})"
    mib = target.log_mib if isinstance(target, Limit) else None
    if mib is not None and mib != parameters["log_mib"]:
        return f" (but it is stated for a log of {mib:,} MiB, this one had {parameters['log_mib']:,})"
    return ""


def as_json(
    environment: Mapping[str, str],
    contestants: Sequence[Contestant],
    missing: Mapping[str, str],
    parameters: Mapping[str, object],
    results: Mapping[str, Result],
    targets: Iterable[Target | Limit],
) -> dict[str, object]:
    """Return everything that was measured, every sample included, in the smallest units."""
    return {
        "version": JSON_VERSION,
        "environment": dict(environment),
        "contestants": {
            each.name: {"version": each.version(), "settings": each.settings} for each in contestants
        },
        "missing": dict(missing),
        "parameters": dict(parameters),
        "results": {name: _result_as_json(result) for name, result in results.items()},
        "targets": [_target_as_json(target, results) for target in targets],
    }


def _result_as_json(result: Result) -> dict[str, object]:
    return {
        "operation": result.workload.operation,
        "unit": "ns" if result.workload.times else result.workload.unit,
        "rows": [_row_as_json(row) for row in result.rows],
        **({"not_there": result.not_there} if result.not_there else {}),
    }


def _row_as_json(row: Row) -> dict[str, object]:
    return {
        "rival": row.rival,
        "form": row.form.value if row.form is not None else None,
        "spelling": row.spelling,
        "median": row.median,
        "samples": row.samples,
        **({"note": row.note} if row.note else {}),
    }


def _target_as_json(target: Target | Limit, results: Mapping[str, Result]) -> dict[str, object]:
    about: dict[str, object] = {"workload": target.workload, "subject": target.subject}
    if isinstance(target, Limit):
        limit = target.judge(results)
        counted = "ns" if target.times else "bytes"
        about |= {f"{counted}_max": target.ns_max, "touch_mib": target.touch_mib, "log_mib": target.log_mib}
        about["key_count"] = target.key_count
        about |= {counted: limit.ns if limit else None, "met": limit.met if limit else None}
    else:
        verdict = target.judge(results)
        about |= {"rival": target.rival, "ratio_min": target.ratio_min}
        about |= {"key_count": target.key_count, "touch_mib": target.touch_mib}
        about |= {"rival_spelling": target.rival_spelling}
        about |= {"ratio": verdict.ratio if verdict else None, "met": verdict.met if verdict else None}
    return {name: value for name, value in about.items() if value is not None or name not in STATED_FOR}


def _times_as_good(rival: Row, row: Row) -> str:
    return f"{rival.median / row.median:.2f}x" if row.median else ""


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
