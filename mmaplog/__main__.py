"""``python -m mmaplog``, the same as the ``mmaplog`` command."""

import sys

from mmaplog.cli import main

if __name__ == "__main__":
    sys.exit(main())
