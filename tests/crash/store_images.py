"""`python -m tests.crash.store_images`: what a power cut may leave of a store, opened and compared."""

from __future__ import annotations

import sys

from tests.crash.images.command import main
from tests.crash.images.store_subject import StoreSubject

if __name__ == "__main__":
    sys.exit(main(StoreSubject(), __doc__))
