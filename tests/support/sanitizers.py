"""What cannot be tested below AddressSanitizer, and says so."""

from __future__ import annotations

import os

import pytest

#: Whether `tests.sanitize` runs this: an instrumented module needs the library to be loaded first of all.
SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")


def not_below_sanitizers(why: str) -> pytest.MarkDecorator:
    """Marks a test whose subject a sanitizer replaces, or whose means it does not bear."""
    return pytest.mark.skipif(SANITIZED, reason=f"NOT TESTED below a sanitizer: {why}")
