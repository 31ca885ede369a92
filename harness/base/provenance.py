"""Which code made a result: the commit of the project, from a checkout or a wheel, and plug-ins with their versions.

This file imports nothing of the project: hatch_build.py reads it where nothing is installed.
"""

from __future__ import annotations

import subprocess
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

PLUG_INS = ("ctkd_harness.methods", "ctkd_harness.tasks")
"""Groups of entry points."""

BUILT_FROM = Path(__file__).parents[1] / "commit.txt"
"""What a wheel was built from; a checkout has no such file, and is asked itself."""


@cache
def commit() -> str:
    """The project's commit, with "+changes" where files differed from it; "" where nobody knows."""
    if BUILT_FROM.is_file():
        return BUILT_FROM.read_text(encoding="utf-8").strip()
    return commit_of(Path(__file__).parents[2])


def commit_of(checkout: Path) -> str:
    """The commit of a checkout, with "+changes" where tracked files differ; "" where the folder is none.

    A folder within somebody else's repository, such as an environment in a project, is none.
    """
    try:
        if Path(_git("rev-parse", "--show-toplevel", cwd=checkout)).resolve() != checkout.resolve():
            return ""
        changed = _git("status", "--porcelain", "--untracked-files=no", cwd=checkout)
        return _git("rev-parse", "HEAD", cwd=checkout) + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def plug_ins() -> str:
    """Distributions that bring methods or tasks, with their versions: "my-losses 1.2, our-tasks 0.3"; "" without."""
    found = {
        f"{entry.dist.name} {entry.dist.version}"
        for group in PLUG_INS
        for entry in entry_points(group=group)
        if entry.dist is not None
    }
    return ", ".join(sorted(found))


def _git(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
