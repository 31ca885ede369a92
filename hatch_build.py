"""Writes into a wheel which commit it was built from, so that a run's record can name it without a checkout."""

from __future__ import annotations

import runpy
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CommitHook(BuildHookInterface):  # type: ignore[misc]
    """Adds ``harness/commit.txt``; an editable installation is asked for its checkout's commit at each run instead."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        root = Path(self.root)
        known = root / "harness" / "commit.txt"
        if known.is_file():  # in a source distribution, which has no repository
            build_data["force_include"][str(known)] = "harness/commit.txt"
            return
        commit_of = runpy.run_path(str(root / "harness" / "base" / "provenance.py"))["commit_of"]
        self.folder = tempfile.TemporaryDirectory()
        written = Path(self.folder.name) / "commit.txt"
        written.write_text(commit_of(root) + "\n", encoding="utf-8")
        build_data["force_include"][str(written)] = "harness/commit.txt"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()
