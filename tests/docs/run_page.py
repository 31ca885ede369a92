"""Runs the code of a page in the working folder, block after block: ``python -m tests.docs.run_page PAGE``.

Python blocks share their names, as in a notebook. ``tiny.yaml`` in the working folder stands in for quickstart, whose
models are hundreds of MB. Where a page makes a package, or brings all that they need, its commands run too.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

from tests.docs.pages import PLUG_IN, WHOLE, blocks, commands_of, write_files


def install() -> None:
    """What an installer makes of the page's package: who it is, and its entry points."""
    said = tomllib.loads(Path(PLUG_IN).read_text(encoding="utf-8"))["project"]
    folder = Path(f"{said['name'].replace('-', '_')}-{said['version']}.dist-info")
    folder.mkdir()
    lines = [f"Metadata-Version: 2.1\nName: {said['name']}\nVersion: {said['version']}\n"]
    (folder / "METADATA").write_text("".join(lines))
    entries = []
    for group, names in said["entry-points"].items():
        entries += [f"[{group}]", *(f"{name} = {value}" for name, value in names.items())]
    (folder / "entry_points.txt").write_text("\n".join(entries) + "\n")


def names_of(page: str) -> dict[str, Any]:
    """What a page takes as given."""
    if page != "python_losses.md":
        return {}
    from tests import tiny

    tokenizers = [tiny.tokenizer(family) for family in ("byte_level", "byte_fallback")]
    return {
        "student": tiny.model("qwen2", len(tokenizers[0])),
        "teacher": tiny.model("gemma2", len(tokenizers[1]) + 7, seed=1).eval(),  # padded, as published models are
        "student_tokenizer": tokenizers[0],
        "teacher_tokenizer": tokenizers[1],
        "rows_of_data": tiny.SAMPLES,
    }


def command(arguments: list[str]) -> None:
    from harness import cli

    sys.argv = ["harness", *arguments]
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            raise


def main(page: Path) -> None:
    write_files(page, Path())
    plug_in = Path(PLUG_IN).is_file()
    if plug_in:
        install()
    names: dict[str, Any] = {"__name__": "notebook", **names_of(page.name)}
    for block in blocks(page):
        if block.title:
            continue
        if block.language == "python":
            text = "\n" * block.line + block.text.replace('"quickstart"', '"tiny.yaml"')
            exec(compile(text, str(page), "exec"), names)
        for arguments in commands_of(block) if plug_in or page.name in WHOLE else ():
            print("$ harness", *arguments, flush=True)
            command(arguments)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
