"""What a storm counted, as a table."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, field

from tests.crash.wreck import COMPACTING, COUNTED, Inside


@dataclass
class Summary:
    """Counts over all rounds. Reopening times in milliseconds are kept apart by what had to be rebuilt."""

    places: Counter[Inside] = field(default_factory=Counter)
    acknowledged: list[int] = field(default_factory=list)
    pending: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    """By its phase, how often a thread was at a step of a compaction."""
    reopen_ms: dict[str, list[float]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    violations: int = 0

    @property
    def kills(self) -> int:
        """How many writers were killed."""
        return len(self.acknowledged)

    @property
    def inside(self) -> int:
        """How many of them inside a write, roll or split."""
        return sum(self.places[place] for place in COUNTED)

    @property
    def compacting(self) -> int:
        """How many inside a compaction."""
        return sum(self.places[place] for place in COMPACTING)

    def table(self) -> str:
        """For people."""
        rows = [
            ("kills", f"{self.kills:,}"),
            ("rounds with a violation", f"{self.violations:,}"),
            ("acknowledged writes, in all", f"{sum(self.acknowledged):,}"),
            ("acknowledged writes per kill, median", f"{statistics.median(self.acknowledged or [0]):,.0f}"),
            ("killed inside a write, roll or split", self._share(self.inside)),
        ]
        rows += [(f"  {place}", self._share(self.places[place])) for place in COUNTED]
        rows.append(("killed inside a compaction", self._share(self.compacting)))
        rows += [(f"  {place}", self._share(self.places[place])) for place in COMPACTING]
        rows.append(("killed inside a step of one in the background", self._share(self.steps.total())))
        rows += [(f"  {phase}", self._share(count)) for phase, count in sorted(self.steps.items())]
        others = [place for place in Inside if place not in COUNTED + COMPACTING]
        rows += [(f"killed {place}", self._share(self.places[place])) for place in others]
        rows += [(f"write in flight: {what}", f"{count:,}") for what, count in sorted(self.pending.items())]
        for kind, times in self.reopen_ms.items():
            rows.append((f"reopen {kind}, ms: median / p99 / max of {len(times):,}", _spread(times)))
        rows += [(what, f"{count:,}") for what, count in sorted(self.counts.items())]
        width = max(len(name) for name, _ in rows) + 2
        return "\n".join(f"{name:<{width}}{value}" for name, value in rows)

    def _share(self, count: int) -> str:
        return f"{count:,} ({count / max(self.kills, 1):.1%})"


def _spread(times: list[float]) -> str:
    ordered = sorted(times)
    p99 = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    return f"{statistics.median(ordered):.1f} / {p99:.1f} / {ordered[-1]:.1f}"
