"""The folders that stand beside this package, wherever it is installed: methods, reports and recipes.

All three have names that others use too. So none of them is looked up on the path, where a working folder or another
distribution may have one of the same name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from harness.base.errors import HarnessError

PACKAGES = ("methods", "reports")
HOME = Path(__file__).parents[2]  # site-packages, or a checkout


def folder_beside(name: str) -> Path:
    """A folder that stands beside the package.

    Raises:
        HarnessError: there is none.
    """
    folder = HOME / name
    if not folder.is_dir():
        raise HarnessError(str(folder), "no such folder", "what stands beside harness", "Install ctkd-harness again.")
    return folder


def claim_packages() -> None:
    """From here on ``import methods`` and ``import reports`` give those beside harness, in whatever order the path is.

    Raises:
        HarnessError: one of them is missing, or another of its name has been imported already.
    """
    for name in PACKAGES:
        own, loaded = folder_beside(name), sys.modules.get(name)
        if loaded is not None and not _is_from(loaded, own):
            raise HarnessError(
                f"package {name}",
                f"{_place(loaded)}, which is imported already",
                f"{own}, which stands beside harness",
                f"Import harness first, or call the other {name} something else.",
            )
    if not any(isinstance(finder, _Beside) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Beside())


class _Beside:
    """Finds the packages beside this one before anybody looks along the path; their modules follow from them."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(HOME)]) if name in PACKAGES else None


def _is_from(module: ModuleType, folder: Path) -> bool:
    return any(Path(place).resolve() == folder.resolve() for place in getattr(module, "__path__", ()))


def _place(module: ModuleType) -> str:
    """Where a module comes from, to name it."""
    places = [str(place) for place in getattr(module, "__path__", ())]
    return ", ".join(places) or getattr(module, "__file__", None) or "a module without a file"


def runs_folder(runs: Path | str | None) -> Path:
    """The folder of results: the one given, that of HARNESS_RUNS, or ``runs`` in the working folder."""
    return Path(runs if runs is not None else os.environ.get("HARNESS_RUNS") or "runs")
