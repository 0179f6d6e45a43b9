"""The rivals, one file each.

A new one is a file with a subclass of `Rival`, and a line in `RIVALS`. Its docstring cites where the rival's
own documentation says what its settings do; `spellings` says which workloads it takes part in.
"""

from __future__ import annotations

from importlib import import_module

from .rival import Form, Rival, Session

__all__ = ["RIVALS", "Form", "Rival", "RivalMissing", "Session", "load_rival"]

RIVALS = {
    "mmapkv": "mmapkv_store:MmapkvStore",
    "mmapkv-manual": "mmapkv_store:MmapkvManualStore",
    "dict": "python_dict:PythonDict",
    "lmdb": "lmdb_store:LmdbStore",
}
"""Name on the command line -> module and class in this package; the order is the order of every round."""


class RivalMissing(Exception):
    """A rival's package is not installed here, or does not import."""


def load_rival(name: str) -> type[Rival]:
    """Import a rival's adapter, and with it the rival.

    Raises `RivalMissing` when its package does not import; that it is told apart from a mistake in
    the adapter is why nothing here is imported before it is asked for.
    """
    module_name, class_name = RIVALS[name].split(":")
    try:
        module = import_module(f"{__name__}.{module_name}")
    except ImportError as error:
        if (error.name or "").startswith(__name__):
            raise
        raise RivalMissing(f"{name}: {error}") from error
    rival: type[Rival] = getattr(module, class_name)
    return rival
