"""Runs the code of a page in the working folder, block after block: ``python -m tests.docs.run_page PAGE``.

Python blocks share their names, as in a notebook. ``tiny.yaml`` in the working folder stands in for quickstart, whose
models are hundreds of MB. Where a page makes a package, which is installed, or brings all that they need, its commands
run too.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.docs.pages import PLUG_IN, WHOLE, blocks, commands_of, write_files


def install() -> None:
    """The page's package, by pip into a folder: what is not installed with it is not found."""
    target = Path("site").absolute()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", str(target), "."], check=True)
    sys.path[0] = str(target)  # in the place of the working folder, which has its sources


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
