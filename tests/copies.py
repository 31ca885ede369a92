"""Copies of the project's own files that a test may change."""

from __future__ import annotations

import shutil
from pathlib import Path


def copy_to_change(source: Path, copy: Path, *left_out: str) -> Path:
    """A copy of a folder that can be written to, also where the checkout can't be.

    Args:
        left_out: patterns of names.
    """
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns(*left_out), copy_function=shutil.copyfile)
    for folder in (copy, *(path for path in copy.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    return copy
