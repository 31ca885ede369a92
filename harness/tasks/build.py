"""The folder of data that a recipe names."""

from __future__ import annotations

from pathlib import Path

from harness.base.errors import HarnessError
from harness.base.files import expanded, is_folder


def data_folder(root: str, recipe: str = "NAME") -> Path:
    """The folder that ``data.root`` names.

    Args:
        recipe: what the user calls the recipe.

    Raises:
        HarnessError: it is no folder.
    """
    folder = expanded(root)
    if not is_folder(folder):
        raise HarnessError(
            "data.root",
            f"no folder {folder}" + ("" if folder.is_absolute() else f" in {Path.cwd()}"),
            "a folder with the files of the data sets",
            f"`harness data recipe={recipe}` lists them. Set data.root=FOLDER to where they are, or data.root=null for "
            "the built-in samples.",
        )
    return folder
