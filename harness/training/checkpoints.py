"""Checkpoints of a training: marked once they are written whole, and never resumed from otherwise."""

from __future__ import annotations

import shutil
from pathlib import Path

from accelerate.utils import wait_for_everyone
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from harness.base.files import read_json, sha256_file, write_json
from harness.store.artefacts import STEPS

COMPLETE = "complete.json"


class CheckpointMarker(TrainerCallback):  # type: ignore[misc]
    """Marks checkpoints that were written whole, with the digests of their files."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        wait_for_everyone()  # each rank writes the state of its random numbers
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            STEPS.write(folder, self.steps)
            files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != COMPLETE)
            write_json(folder / COMPLETE, {path.relative_to(folder).as_posix(): sha256_file(path) for path in files})


def latest_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint that was written whole; broken ones are removed, so that nothing resumes from them."""
    numbered = sorted(
        (path for path in work.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdigit()),
        key=lambda path: int(path.name.rpartition("-")[2]),
        reverse=True,
    )
    for folder in numbered:
        if _is_complete(folder):
            return folder
        shutil.rmtree(folder)
    return None


def _is_complete(folder: Path) -> bool:
    try:
        digests = read_json(folder / COMPLETE)
        return all(sha256_file(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError):
        return False
