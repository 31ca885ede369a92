"""Which code made a result: never the commit of a repository that happens to lie around the package."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.base import provenance
from harness.base.provenance import commit, commit_of, plug_ins


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    (folder / "site" / "harness").mkdir(parents=True)
    (folder / "file").write_text("one\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    return folder


def test_a_checkout_has_its_commit_and_says_what_differs(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert commit_of(checkout) == head
    (checkout / "new").write_text("not tracked\n")
    assert commit_of(checkout) == head
    (checkout / "file").write_text("two\n")
    assert commit_of(checkout) == f"{head}+changes"


def test_the_repository_around_an_environment_is_not_ours(checkout: Path, tmp_path: Path) -> None:
    assert commit_of(checkout / "site") == ""
    assert commit_of(tmp_path) == ""


def test_a_wheel_says_what_it_was_built_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "commit.txt").write_text("0123abc+changes\n")
    monkeypatch.setattr(provenance, "BUILT_FROM", tmp_path / "commit.txt")
    commit.cache_clear()
    try:
        assert commit() == "0123abc+changes"
    finally:
        commit.cache_clear()


def test_plug_ins_are_named_once_with_their_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = plug_ins()
    for name, version, groups in (("our-tasks", "0.3", ["tasks"]), ("my-losses", "1.2", ["methods", "tasks"])):
        information = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        points = [f"[ctkd_harness.{group}]\none = a:A\ntwo = a:B\n" for group in groups]
        (information / "entry_points.txt").write_text("\n".join(points))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert plug_ins() == ", ".join(sorted([*filter(None, before.split(", ")), "my-losses 1.2", "our-tasks 0.3"]))
