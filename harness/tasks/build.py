"""A recipe's tasks, with their settings and their data folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.tasks import tasks
from harness.tasks.base import Task


def data_folder(root: str, recipe: str = "NAME") -> Path:
    """The folder that ``data.root`` names.

    Args:
        recipe: what the user calls the recipe.

    Raises:
        HarnessError: it is no folder.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise HarnessError(
            "data.root",
            f"no folder {folder}" + ("" if folder.is_absolute() else f" in {Path.cwd()}"),
            "a folder with the files of the data sets",
            f"`harness data recipe={recipe}` lists them. Set data.root=FOLDER to where they are, or data.root=null for "
            "the built-in samples.",
        )
    return folder


def task_of(recipe: Any, name: str) -> Task:
    """The task with its settings and data folder."""
    root = recipe.data.root
    return tasks()[name](getattr(recipe, name), Path(root).expanduser() if root else None)
