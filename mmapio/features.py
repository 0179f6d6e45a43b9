"""What this platform, kernel and build can do."""

from __future__ import annotations

import sys

from mmapio import _vm, _wait
from mmapio.options import MmapAdvice

__all__ = ["features"]


def features() -> dict[str, object]:
    """What there is, by name; whatever is not there raises Unsupported when asked for. Costs a few reads of
    small files.

    ``advice``: the names of :class:`MmapAdvice` that the platform knows; ``fault_guard``: a cut file raises
    instead of ending the process; ``futex``: waiters sleep until woken, else they look again;
    ``robust_mutex``: :class:`SharedMutex`; ``punch_hole``, ``reflink``, ``copy_file_range``: as far as the
    file system plays along; ``huge_pages``: the kernel's switches.
    """
    linux = sys.platform == "linux"
    return {
        "platform": sys.platform,
        "page_size": _vm.PAGE_SIZE,
        "advice": [advice.name for advice in MmapAdvice if _vm.ADVICE_SUPPORTED[advice]],
        "fault_guard": True,
        "futex": _wait.HAS_FUTEX,
        "robust_mutex": _wait.HAS_ROBUST_MUTEX,
        "punch_hole": True,
        "reflink": linux,
        "copy_file_range": linux,
        "huge_pages": _vm.huge_page_policy(),
    }
