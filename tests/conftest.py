"""Set-up of every test run: the import path, Ctrl-C, and Hypothesis without a clock."""

import signal
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

# `tests` and `benchmarks` are not installed. The checkout goes last on the path, so that an installed
# mmapio, mmaplog or mmapkv is what the tests see, never its sources by accident.
sys.path.append(str(Path(__file__).resolve().parents[1]))

# A shell that starts a run in the background has it ignore Ctrl-C, and so would what the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Hypothesis fails an example that takes longer than 200 ms. On a busy machine that says nothing about us.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
