"""The project's files, as the architecture tests see them.

A `Tree` names a directory that is laid out like the project, so that a test can plant a violation in a
temporary one and see its own checker catch it.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

#: The import packages, lowest layer first: each may import those before it and no other.
PACKAGES = ("mmapio", "mmaplog", "mmapkv")

# What `.gitignore` keeps out, for a checkout that git cannot list (an unpacked archive).
_IGNORED_PARTS = (".git", "__pycache__", "build", "dist", ".venv*", ".*_cache", ".hypothesis", "*.egg-info")
_IGNORED_SUFFIXES = (".so", ".c", ".pyc")


@dataclass(frozen=True)
class Tree:
    """A directory with the three packages in it."""

    root: Path

    def sources(self, *suffixes: str, within: tuple[str, ...] = PACKAGES) -> list[Path]:
        """The files below the directories `within` whose names end in one of `suffixes`, sorted."""
        return sorted(
            path
            for directory in within
            for path in (self.root / directory).rglob("*")
            if path.suffix in suffixes and path.is_file()
        )

    def dotted(self, path: Path) -> str:
        """The module name of a source file; a package's own name for its ``__init__``."""
        parts = path.relative_to(self.root).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @cached_property
    def modules(self) -> dict[str, Path]:
        """Every module that can be imported, by its dotted name: .py and .pyx files."""
        return {self.dotted(path): path for path in self.sources(".py", ".pyx")}

    @cached_property
    def headers(self) -> dict[str, Path]:
        """Every module that can be cimported, by its dotted name: .pxd files."""
        return {self.dotted(path): path for path in self.sources(".pxd")}

    @cached_property
    def files(self) -> list[Path]:
        """Every file that is, or would be, under version control."""
        listed = self._listed_by_git()
        return sorted(path for path in (listed or self._walked()) if path.is_file())

    def shown(self, path: Path) -> str:
        """`path` as messages name it: below the root, with forward slashes."""
        return path.relative_to(self.root).as_posix()

    def _listed_by_git(self) -> list[Path]:
        if not (self.root / ".git").exists():
            return []
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        try:
            answer = subprocess.run(command, cwd=self.root, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return []
        return [self.root / os.fsdecode(name) for name in answer.stdout.split(b"\0") if name]

    def _walked(self) -> list[Path]:
        return [
            path
            for path in self.root.rglob("*")
            if path.suffix not in _IGNORED_SUFFIXES
            and not any(fnmatch(part, ignored) for part in self._parts(path) for ignored in _IGNORED_PARTS)
        ]

    def _parts(self, path: Path) -> tuple[str, ...]:
        return path.relative_to(self.root).parts


#: The checkout that the tests run from.
PROJECT = Tree(Path(__file__).resolve().parents[2])
