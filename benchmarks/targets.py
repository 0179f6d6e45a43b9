"""What a suite of benchmarks is, and the ratios its subject has to reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .harness import Result


@dataclass(frozen=True, slots=True)
class Target:
    """`subject` is at least `ratio_min` times as fast as `rival` in a workload, each in its main form."""

    workload: str
    subject: str
    rival: str
    ratio_min: float
    key_count: int
    """The number of keys it is stated for."""

    def judge(self, results: Mapping[str, Result]) -> Verdict | None:
        """Return how the run did, `None` if it did not time both."""
        result = results.get(self.workload)
        if result is None:
            return None
        subject, rival = result.main_row(self.subject), result.main_row(self.rival)
        if subject is None or rival is None:
            return None
        each_round = [theirs / ours for theirs, ours in zip(rival.samples, subject.samples, strict=True)]
        return Verdict(
            target=self,
            spelling=subject.spelling,
            rival_spelling=rival.spelling,
            ratio=rival.median / subject.median,
            ratio_lowest=min(each_round),
            ratio_highest=max(each_round),
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """The ratio of the medians, and the lowest and highest ratio that a single round gave."""

    target: Target
    spelling: str
    rival_spelling: str
    ratio: float
    ratio_lowest: float
    ratio_highest: float

    @property
    def met(self) -> bool:
        """Whether the ratio of the medians reached the target."""
        return self.ratio >= self.target.ratio_min


@dataclass(frozen=True, slots=True)
class Suite:
    """The benchmarks of one package: the subject, against whom, in what, and what is asked of it."""

    name: str
    subjects: tuple[str, ...]
    """The subject, and after it the same with other settings."""

    rivals: tuple[str, ...]
    workloads: tuple[str, ...]
    targets: tuple[Target, ...]
