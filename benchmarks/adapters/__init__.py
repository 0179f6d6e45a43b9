"""The rivals, one file each.

A new one is a file with a subclass of `Rival`, and a line in `RIVALS`. Its docstring cites where the rival's
own documentation says what its settings do; `spellings` says which workloads it takes part in. Against the
mapping layer it is a subclass of `Peer` and a line in `PEERS`, against the log one of `LogPeer` and a line in
`LOG_PEERS`, and `statements` says the same.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .peer import Peer, Stage
from .rival import Form, NotThere, Rival, Session

__all__ = [
    "LOG_PEERS",
    "PEERS",
    "RIVALS",
    "Form",
    "NotThere",
    "Peer",
    "Rival",
    "RivalMissing",
    "Session",
    "Stage",
    "load_log_peer",
    "load_peer",
    "load_rival",
]

RIVALS = {
    "mmapkv": "mmapkv_store:MmapkvStore",
    "mmapkv-manual": "mmapkv_store:MmapkvManualStore",
    "mmapkv-ordered": "mmapkv_store:MmapkvOrderedStore",
    "mmapkv-half": "mmapkv_store:MmapkvHalfStore",
    "mmapkv-uncompacted": "mmapkv_store:MmapkvUncompactedStore",
    "dict": "python_dict:PythonDict",
    "lmdb": "lmdb_store:LmdbStore",
    "tkrzw": "tkrzw_store:TkrzwStore",
    "rocksdict": "rocksdict_store:RocksdictStore",
    "plyvel": "plyvel_store:PlyvelStore",
    "sqlite": "sqlite_store:SqliteStore",
    "dbm-gnu": "gdbm_store:GdbmStore",
    "dbm-sqlite": "dbm_sqlite_store:DbmSqliteStore",
    "diskcache": "diskcache_store:DiskcacheStore",
    "pwrite": "raw_file:RawFile",
}
"""Name on the command line -> module and class in this package; the order is the order of every round."""


PEERS = {
    "mmapio": "mmapio_file:MmapioFile",
    "mmapio-ro": "mmapio_file:MmapioReadOnlyFile",
    "stdlib-mmap": "stdlib_mmap:StdlibMmap",
    "pwrite": "stdlib_mmap:Pwrite",
    "numpy-memmap": "numpy_memmap:NumpyMemmap",
    "multiprocessing": "mp_value:Multiprocessing",
    "atomics": "pypi_atomics:PypiAtomics",
}
"""The same for the mapping layer."""


LOG_PEERS = {
    "mmaplog": "mmaplog_log:MmaplogLog",
    "buffered-file": "file_log:BufferedFile",
    "pwrite": "file_log:Pwrite",
    "sqlite": "sqlite_log:SqliteLog",
    "lmdb": "lmdb_log:LmdbLog",
    "persist-queue": "persist_queue_log:PersistQueueLog",
    "queuelib": "queuelib_log:QueuelibLog",
    "rocksdict": "rocksdict_log:RocksdictLog",
    "plyvel": "plyvel_log:PlyvelLog",
    "mp-pipe": "mp_wake:PipeWake",
    "mp-queue": "mp_wake:QueueWake",
}
"""The same for the log."""


class RivalMissing(Exception):
    """A rival's package is not installed here, or does not import."""


def load_rival(name: str) -> type[Rival]:
    """Import the adapter of a rival of the store, and with it the rival. Raises `RivalMissing`."""
    rival: type[Rival] = _load(name, RIVALS[name])
    return rival


def load_peer(name: str) -> type[Peer]:
    """Import the adapter of a peer of the mapping layer, and with it the peer. Raises `RivalMissing`."""
    peer: type[Peer] = _load(name, PEERS[name])
    return peer


def load_log_peer(name: str) -> type[Peer]:
    """Import the adapter of a peer of the log, and with it the peer. Raises `RivalMissing`."""
    peer: type[Peer] = _load(name, LOG_PEERS[name])
    return peer


def _load(name: str, place: str) -> Any:
    """Import a class.

    That a missing package is told apart from a mistake in the adapter is why nothing here is imported before
    it is asked for.
    """
    module_name, class_name = place.split(":")
    try:
        module = import_module(f"{__name__}.{module_name}")
    except ImportError as error:
        if (error.name or "").startswith(__name__):
            raise
        raise RivalMissing(f"{name}: {error}") from error
    return getattr(module, class_name)
