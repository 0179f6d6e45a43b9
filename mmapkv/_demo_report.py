"""The demo's figures, and the table that shows them."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["AfterKill", "Figures", "Findings", "report"]

EXAMPLES_MAX = 5


@dataclass
class Findings:
    """How many of something there were, and a few of them in words."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, message: str) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(message)

    def lines(self, heading: str) -> list[str]:
        """Them in words, below `heading`; nothing when there were none."""
        if not self.count:
            return []
        more = self.count - len(self.examples)
        shown = [f"  {example}" for example in self.examples]
        return [f"{heading}:", *shown, *([f"  and {more:,} more"] if more else [])]


@dataclass
class AfterKill:
    """The second load, as it was found in the store whose writer was killed."""

    submitted: int = 0
    """Puts that the killed child was to make."""

    acknowledged: int = 0
    in_flight: str = "absent"
    lost: Findings = field(default_factory=Findings)
    invented: Findings = field(default_factory=Findings)


@dataclass
class Figures:
    """All that the demo measured and found."""

    source: str
    files: int = 0
    content_bytes: int = 0
    skipped: Findings = field(default_factory=Findings)
    put_seconds: float = 0.0
    close_seconds: float = 0.0
    open_seconds: float = 0.0
    get_seconds: float = 0.0
    different: Findings = field(default_factory=Findings)
    disk_bytes: int = 0
    children: int = 0
    after_kill: AfterKill = field(default_factory=AfterKill)
    reopen_seconds: float = 0.0
    damaged: Findings = field(default_factory=Findings)
    disk_bytes_after_kill: int = 0
    kept_at: str | None = None

    @property
    def mismatches(self) -> int:
        """Everything that is not as it should be; files that could not be read are not among it."""
        after = self.after_kill
        return self.different.count + self.damaged.count + after.lost.count + after.invented.count


def report(figures: Figures) -> str:
    """The table, what it counts in words, and one last line with the verdict."""
    after = figures.after_kill
    first = [
        ("files", _count(figures.files), ""),
        ("files left out", _count(figures.skipped.count), ""),
        ("bytes", _megabytes(figures.content_bytes), "MB"),
        ("puts", _rate(figures.files, figures.put_seconds), "/s"),
        ("  of content", _rate(figures.content_bytes / 1e6, figures.put_seconds), "MB/s"),
        ("close, with everything synced", _milliseconds(figures.close_seconds), "ms"),
        ("open, after that close", _milliseconds(figures.open_seconds), "ms"),
        ("gets", _rate(figures.files, figures.get_seconds), "/s"),
        ("  of content", _rate(figures.content_bytes / 1e6, figures.get_seconds), "MB/s"),
        ("different when read back", _count(figures.different.count), ""),
        ("size on disk", _megabytes(figures.disk_bytes), "MB"),
    ]
    second = [
        ("writes the child was to make", _count(after.submitted), ""),
        ("acknowledged at the kill", _count(after.acknowledged), ""),
        ("the one write in flight", after.in_flight, ""),
        ("reopen, after the kill", _milliseconds(figures.reopen_seconds), "ms"),
        ("lost", _count(after.lost.count), ""),
        ("invented", _count(after.invented.count), ""),
        ("first load, damaged", _count(figures.damaged.count), ""),
        ("size on disk", _megabytes(figures.disk_bytes_after_kill), "MB"),
    ]
    lines = [
        *_table(("Loaded and read back", first), ("Loaded again, killed by SIGKILL", second)),
        f"Loaded: {figures.source}",
        *figures.skipped.lines("Left out"),
        *figures.different.lines("Different when read back"),
        *after.lost.lines("Lost"),
        *after.invented.lines("Invented"),
        *figures.damaged.lines("First load, damaged"),
    ]
    if figures.children > 1:
        lines.append(f"Children done before they could be killed, and counted above: {figures.children - 1}")
    if figures.kept_at is not None:
        lines.append(f"The store is kept at {figures.kept_at}; keys of the second load begin with '/again/'.")
    return "\n".join([*lines, _verdict(figures)])


def _verdict(figures: Figures) -> str:
    if figures.mismatches:
        return f"FAILED: {figures.mismatches:,} mismatches."
    return "OK: every acknowledged write is there, byte for byte, and nothing else is."


def _table(*sections: tuple[str, list[tuple[str, str, str]]]) -> list[str]:
    rows = [row for _, rows in sections for row in rows]
    names, values, units = (max(map(len, column)) for column in zip(*rows, strict=True))
    rule = "-" * (names + values + units + 4)
    lines = []
    for title, section in sections:
        lines += [rule, title, rule]
        lines += [f"{name:<{names}}  {value:>{values}}  {unit}".rstrip() for name, value, unit in section]
    return [*lines, rule]


def _count(count: int) -> str:
    return f"{count:,}"


def _megabytes(count_bytes: int) -> str:
    return f"{count_bytes / 1e6:,.1f}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f}"


def _rate(amount: float, seconds: float) -> str:
    return f"{amount / seconds:,.0f}" if seconds > 0 else "-"
