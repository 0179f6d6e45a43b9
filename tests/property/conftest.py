"""How long the property suite searches: ``HYPOTHESIS_PROFILE=long`` for a release, a quick look otherwise."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

_COMMON = {
    "deadline": None,
    # Stores on disk are made inside the examples, and building them is what takes the time.
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
    "print_blob": True,
}
settings.register_profile(
    "quick", max_examples=25, stateful_step_count=25, derandomize=True, database=None, **_COMMON
)
settings.register_profile("long", max_examples=1000, stateful_step_count=80, **_COMMON)
settings.register_profile(
    "control", max_examples=100, stateful_step_count=30, derandomize=True, database=None,
    phases=[Phase.generate], report_multiple_bugs=False, **_COMMON,
)  # fmt: skip
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
