"""What a plan costs before anything runs: processor time of `harness plan`, recipe by recipe.

    python benchmarks/plan.py                          # every recipe that the project ships
    python benchmarks/plan.py --recipes phi_qwen_all   # some of them

Each plan is a process of its own, as a user starts it. The first has an empty cache, and so finds the code of every
stage and the shape of every model; the second reads both. The limit is that of the second.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import machine, markdown, parsed, write

from harness.recipe.load import recipe_names

LIMIT = 5.0
COLUMNS = ("recipe", "cells", "first s", "second s", "first / second", f"under {LIMIT:g} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=recipe_names(), default=recipe_names(), metavar="RECIPE")
    arguments = parsed(parser)
    arguments.device = "cpu"
    print(f"{machine('cpu')}; processor seconds, one thread\n")
    torch = seconds("-c", "import torch", cache=Path(os.devnull))[0]
    print(f"`import torch` alone: {torch:.2f}\n\n{markdown(COLUMNS, [])}")
    rows = []
    for name in arguments.recipes:
        rows.append(row_of(name))
        print(markdown(COLUMNS, [list(rows[-1].values())]).splitlines()[-1], flush=True)
    print(f"\nnumbers: {write(arguments, 'plan', {'import torch': torch, 'rows': rows})}")


def row_of(recipe: str) -> dict[str, Any]:
    """Both plans of a recipe, which must say the same."""
    with tempfile.TemporaryDirectory(prefix="harness-plan-") as folder:
        cache = Path(folder) / "cache"
        command = ["-m", "harness", "plan", f"recipe={recipe}", "--runs", f"{folder}/runs"]
        first, said = seconds(*command, cache=cache)
        second, again = seconds(*command, cache=cache)
    if said != again:
        sys.exit(f"failed: the second plan of {recipe} says something else than the first")
    cells = sum(map(int, re.findall(r"^(\d+) cells", said, re.MULTILINE)))
    return dict(zip(COLUMNS, (recipe, cells, first, second, first / second, second < LIMIT), strict=True))


def seconds(*command: str, cache: Path) -> tuple[float, str]:
    """Processor time of a command of Python's, and what it prints."""
    environment = {**os.environ, "HARNESS_CACHE": str(cache), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"failed: {' '.join(command)}\n{done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


if __name__ == "__main__":
    main()
