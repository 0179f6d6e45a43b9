"""Killing writers at random moments: `python -m tests.crash.kill_storm --help`, in the repository's root."""

import sys
from pathlib import Path

# `python -m` puts the checkout first on the path, and there sources without their native modules would
# hide an installed package. Last is where the tests have it, see conftest.
_ROOT = str(Path(__file__).resolve().parents[2])
if sys.path and sys.path[0] in ("", _ROOT):
    sys.path.append(sys.path.pop(0))
