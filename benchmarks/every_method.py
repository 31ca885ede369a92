"""What a whole optimiser step of every method costs beside cross-entropy's, with its stored teacher rows.

    python benchmarks/every_method.py                    # CPU: the models of step.py, minutes
    python benchmarks/every_method.py --preset h100      # full size, random weights

Forms as described, default options. Methods that compare one vocabulary have a teacher of the same size with the
student's tokenizer; those without a teacher's rows are left out. The table of docs/methods.md has the ratios.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import demand, markdown, parsed, preset_parser, trained_tokenizer, write
from step import PRESETS, TRIED, Clock, Data, Setting, Way, ours, quiet

from harness.data.tokens import STUDENT
from methods.base import TeacherKind, registered

BASE = "control"
TAUGHT = [name for name, kind in registered().items() if kind.teacher is not TeacherKind.NONE]


def main() -> None:
    parser = preset_parser(__doc__.splitlines()[0], PRESETS)
    parser.add_argument("--methods", nargs="+", choices=TAUGHT, help="by default all")
    parser.add_argument("--steps", type=int, help="that are timed, in place of the preset's")
    arguments = parsed(parser)
    demand(arguments.device)
    quiet()
    preset = dict(PRESETS[arguments.preset])
    if arguments.preset != "cpu" and arguments.device == "cpu":  # the same path with models that a CPU can train
        preset |= {role: preset[role] | TRIED | {"vocab_size": 2000} for role in (STUDENT, "teacher")}
        preset |= {"length": 40, "batch": 2}
    preset["steps"] = arguments.steps or preset["steps"]
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    names = [BASE, *(arguments.methods or TAUGHT)]
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_in(Path(folder), arguments.device, preset)
        rows = measure(settings, names)
    base = rows[0]["seconds"]
    print(markdown(["method", "ms", f"× {BASE}"], [(r["name"], r["seconds"] * 1e3, r["seconds"] / base) for r in rows]))
    print(f"# {write(arguments, f'every-method-{arguments.preset}', {'setting': preset, 'methods': rows})}")


def settings_in(folder: Path, device: str, preset: dict[str, Any]) -> dict[TeacherKind, Setting]:
    """By kind of teacher, its models and both tokenizers, which are made here."""
    other = Setting(device, folder=folder / "other", **preset)
    size = {"vocab_size": other.student["vocab_size"]}
    same = replace(other, folder=folder / "same", teacher=other.teacher | size)
    for setting, kind in ((other, "teacher"), (same, STUDENT)):
        trained_tokenizer(STUDENT, size["vocab_size"]).save_pretrained(setting.folder / STUDENT)
        trained_tokenizer(kind, setting.teacher["vocab_size"]).save_pretrained(setting.folder / "teacher")
    return {TeacherKind.CROSS_TOKENIZER: other, TeacherKind.NONE: other, TeacherKind.SAME_TOKENIZER: same}


def measure(settings: dict[TeacherKind, Setting], names: list[str]) -> list[dict[str, Any]]:
    """A row for each method: seconds of a step, and the loss of the last."""
    data = {setting.folder: Data(setting, Way(BASE, {})) for setting in settings.values()}
    rows = []
    for name in names:
        setting = settings[registered()[name].teacher]
        clock = Clock(setting.device)
        notes = ours(setting, Way(name, {"ce_weight": 0.5, "kd_weight": 0.5}), data[setting.folder], clock)
        rows.append({"name": name, "seconds": clock.seconds(), "loss": notes["loss"]})
        print(f"# {name}: {rows[-1]['seconds'] * 1e3:,.1f} ms", flush=True)
    return rows


if __name__ == "__main__":
    main()
