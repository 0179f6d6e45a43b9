"""The modules of the three packages."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import mmapio
import mmapkv
import mmaplog

PACKAGES = (mmapio, mmaplog, mmapkv)


def modules() -> list[ModuleType]:
    """Every module of the packages but those that run when imported."""
    found = []
    for package in PACKAGES:
        found.append(package)
        for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            if not info.name.endswith("__main__"):
                found.append(importlib.import_module(info.name))
    return found
