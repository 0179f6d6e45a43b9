"""`python -m tests.crash.log_images`: open what a power cut may leave of a log, and see what was durable."""

from __future__ import annotations

import sys

from tests.crash.images.command import main
from tests.crash.images.log_subject import LogSubject

if __name__ == "__main__":
    sys.exit(main(LogSubject(), __doc__))
