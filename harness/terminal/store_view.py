"""What a store holds, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from harness.base.files import gigabytes
from harness.store.contents import StoredFolder
from harness.terminal.columns import Listing


def store_view(root: Path, folders: Sequence[StoredFolder]) -> RenderableType:
    """Numbers and sizes by kind and by what they are there for."""
    listing = Listing("kind", "what", "folders", "size", title=f"{root}", numbers=("folders", "size"))
    for kind, state in dict.fromkeys((folder.kind, folder.state) for folder in folders):
        sizes = [folder.size for folder in folders if (folder.kind, folder.state) == (kind, state)]
        listing.add_row(kind, state, str(len(sizes)), gigabytes(sum(sizes)))
    listing.add_row("all", "", str(len(folders)), gigabytes(sum(folder.size for folder in folders)))
    return listing


def pruned_view(folders: Sequence[StoredFolder], dry: bool) -> RenderableType:
    """What went, or would go."""
    size = gigabytes(sum(folder.size for folder in folders))
    if not folders:
        return Text("Nothing to remove: a run names every stage.")
    lines = [Text(f"{folder.path}  {folder.state}, {gigabytes(folder.size)}") for folder in folders]
    told = f"{len(folders)} folders, {size}: --prune --yes removes them." if dry else f"Removed {len(folders)}, {size}."
    return Group(*lines, Text(told, "yellow" if dry else ""))


def damaged_view(lines: Sequence[str]) -> RenderableType:
    """What differs from its digest."""
    if not lines:
        return Text("Every file is as it was written.")
    return Group(*map(Text, lines), Text("Run the recipe again: damaged stages are made again.", "yellow"))
