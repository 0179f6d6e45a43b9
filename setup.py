"""Native modules are compiled once; which there are is declared in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group


class BuildOnce(build_ext):
    """Keeps a module that `pip install -e .` has built before, and that is newer than all it is made from.

    By itself setuptools builds each editable install in a new temporary directory, hence all of it.
    """

    def build_extension(self, ext: Extension) -> None:
        """Build one module, or take the one in the tree."""
        in_tree = Path(self.get_ext_filename(self.get_ext_fullname(ext.name)))
        made_from = [*ext.sources, *ext.depends, "pyproject.toml", "setup.py"]
        if not self.editable_mode or self.force or newer_group(made_from, in_tree):
            super().build_extension(ext)
            return
        built = Path(self.get_ext_fullpath(ext.name))
        self.mkpath(str(built.parent))
        self.copy_file(str(in_tree), str(built))


setup(cmdclass={"build_ext": BuildOnce})
