"""Modules that no path leads to, such as those of a specification's own parts, for other processes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import ExecutionLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType

__all__ = ["Source", "Sources", "loaded_from_files"]

Source = tuple[str, str]  # the file, and its text


def loaded_from_files() -> dict[str, Source]:
    """Name -> source of the modules of this process that another one could not import by their names."""
    found = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if "." in name or name == "__main__" or not isinstance(file, str) or not file.endswith(".py"):
            continue
        if not any(finder.find_spec(name, None) for finder in sys.meta_path):
            with contextlib.suppress(OSError, ValueError):  # whoever needs it will say that it is not there
                found[name] = file, Path(file).read_text(encoding="utf-8")
    return found


class Sources(MetaPathFinder, ExecutionLoader):
    """Imports modules from their sources, wherever their files are.

    Args:
        sources: name -> file and text.
    """

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = sources

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return spec_from_loader(fullname, self) if fullname in self._sources else None

    def get_filename(self, fullname: str) -> str:
        return self._sources[fullname][0]

    def get_source(self, fullname: str) -> str:
        return self._sources[fullname][1]

    def is_package(self, fullname: str) -> bool:
        return False
