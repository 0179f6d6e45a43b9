"""What a suite of benchmarks is, and the ratios and limits that its subject has to keep."""

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
    key_count: int | None = None
    """The number of keys it is stated for; `None`: for any."""

    touch_mib: int | None = None
    """The size of the new file it is stated for, in MiB; `None`: for any."""

    rival_spelling: str | None = None
    """The rival's row, where that is not its main form; the rival may then be the subject itself."""

    def judge(self, results: Mapping[str, Result]) -> Verdict | None:
        """Return how the run did, `None` if it did not time both."""
        result = results.get(self.workload)
        if result is None:
            return None
        subject = result.main_row(self.subject)
        rival = result.row(self.rival, self.rival_spelling)
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
class Limit:
    """`subject` takes at most `ns_max` for an operation, in its main form, the loop around it included.

    Where a workload does not measure times but bytes, it is so many bytes.
    """

    workload: str
    subject: str
    ns_max: float
    touch_mib: int | None = None
    """As of a `Target`."""

    log_mib: int | None = None
    """The size of the log it is stated for, in MiB; `None`: for any."""

    key_count: int | None = None
    """As of a `Target`."""

    unit: str = "ns"
    unit_size: float = 1
    """What it is shown in, and how many ns or bytes make one."""

    times: bool = True
    """Whether it is a time, as of the workload."""

    def judge(self, results: Mapping[str, Result]) -> LimitVerdict | None:
        """Return how the run did, `None` if it did not time this."""
        result = results.get(self.workload)
        row = result.main_row(self.subject) if result is not None else None
        if row is None:
            return None
        return LimitVerdict(self, row.spelling, row.median, min(row.samples), max(row.samples))


@dataclass(frozen=True, slots=True)
class LimitVerdict:
    """The median, and the lowest and highest sample, in ns, or in bytes."""

    target: Limit
    spelling: str
    ns: float
    ns_lowest: float
    ns_highest: float

    @property
    def met(self) -> bool:
        """Whether the median kept to the limit."""
        return self.ns <= self.target.ns_max


@dataclass(frozen=True, slots=True)
class Suite:
    """The benchmarks of one package: the subject, against whom, in what, and what is asked of it."""

    name: str
    subjects: tuple[str, ...]
    """The subject, and after it the same with other settings."""

    rivals: tuple[str, ...]
    workloads: tuple[str, ...]
    targets: tuple[Target | Limit, ...]
