"""``python -m mmapkv``, the same as the ``mmapkv`` command."""

import sys

from mmapkv.cli import main

if __name__ == "__main__":
    sys.exit(main())
