"""Every test runs without network and writes nothing into the user's home."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import settings

# The same examples in every run, so that a change is judged by what it changes; nightly runs look for new ones with
# --hypothesis-profile=default.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

# At import, before huggingface_hub and torch read them once for all; processes that tests start inherit them.
_SCRATCH = Path(tempfile.mkdtemp(prefix="harness-tests-"))
_MODELS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ctkd-harness"
os.environ.update(
    HF_HUB_OFFLINE="1",
    PIP_NO_INDEX="1",
    PIP_FIND_LINKS="",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HOME=str(_SCRATCH / "hub"),
    XDG_CACHE_HOME=str(_SCRATCH / "xdg"),
)
# Tests marked "models" read what is downloaded already; what others write goes to folders of their own.
os.environ.setdefault("HARNESS_CACHE", str(_MODELS if _MODELS.is_dir() else _SCRATCH / "harness"))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for one another make tiny models ten times slower
os.environ["COLUMNS"] = "200"  # of a terminal: messages are not wrapped
os.environ.pop("HARNESS_RUNS", None)


# The longest files, so that no worker begins with one when the others have ended. The first makes the run that others
# go on from, and they wait for it.
_FIRST = (
    "harness/run/test_runner.py",
    "methods/test_contract.py",
    "harness/run/test_trainings.py",
    "harness/run/test_evaluations.py",
    "harness/run/test_workbench.py",
    "harness/test_api.py",
    "harness/test_installed.py",
    "regression/test_regression.py",
    "docs/test_docs.py",
    "harness/run/test_by_hand.py",
    "harness/run/test_demand.py",
    "harness/run/test_stop_after.py",
    "harness/training/test_room.py",
    "harness/training/test_trainer.py",
    "harness/generation/test_slots.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {Path(__file__).parent / name: number for number, name in enumerate(_FIRST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_SCRATCH, ignore_errors=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data sets; skips where HARNESS_TEST_DATA does not name one."""
    root = os.environ.get("HARNESS_TEST_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("HARNESS_TEST_DATA does not name a folder of real data sets")
    return Path(root)


@pytest.fixture(scope="session", autouse=True)
def _expected_answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """EvalPlus's expected answers are kept for this session only."""
    folder = tmp_path_factory.mktemp("expected-answers")
    with mock.patch("harness.tasks.codem.expected_answers_folder", return_value=folder):
        yield


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``student``, ``same`` and ``cross``: a pair with one tokenizer, and a teacher with another."""
    from tests import tiny

    folder = tmp_path_factory.mktemp("models")
    kinds = {"student": ("llama", "byte_level"), "same": ("llama", "byte_level"), "cross": ("gemma2", "byte_fallback")}
    for seed, (role, (architecture, family)) in enumerate(kinds.items()):
        tokenizer = tiny.tokenizer(family)
        tiny.model(architecture, len(tokenizer), seed=seed).save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)
    return folder


@pytest.fixture(scope="session")
def tiny_recipe(tiny_models: Path) -> dict[str, Any]:
    """The tiny models, a few steps and items; fields may be changed in a copy.

    Its methods are one or two of each way through the engine: no teacher, a teacher of the same tokenizer, one whose
    answers are trained on, and of those with another tokenizer some that warp, map, sort or read whole responses.
    """
    return {
        "student": {"model": f"path:{tiny_models / 'student'}", "name": "tiny student"},
        "teachers": {
            "same": {"model": f"path:{tiny_models / 'same'}", "name": "same teacher"},
            "cross": {"model": f"path:{tiny_models / 'cross'}", "name": "cross teacher", "attention": "eager"},
        },
        "tasks": ["dolly", "gsm8k"],
        "methods": ["sft", "control", "seq_kd", "fkd", "mined", "uld", "cdm", "gold", "one_to_one", "alm"],
        "seeds": [0],
        "method_options": {"all": {"ce_weight": 0.5, "kd_weight": 0.5}},
        "limits": {"length": 400, "overlong": "drop"},
        "teacher": {"steps": 2, "batch_size": 2, "learning_rate": 1e-3, "lora": {"rank": 2, "alpha": 4}},
        "warm_start": {"steps": 2, "batch_size": 2, "learning_rate": 1e-3},
        "train": {"steps": 2, "batch_size": 2, "learning_rate": 1e-3, "checkpoint_every": 1},
        "dolly": {"train_items": 8, "test_items": 3, "new_tokens": 8},
        "gsm8k": {"train_items": 8, "test_items": 3, "new_tokens": 8, "few_shot": 0},
        "codem": {"train_items": 8, "test_items": 3, "new_tokens": 8},
    }


@pytest.fixture(scope="module", autouse=True)
def _nothing_old_is_looked_through() -> None:
    """Stages end with a garbage collection, which would look through all that libraries made before."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def hangups() -> Iterator[None]:
    """SIGHUP ends a process, whatever the tests were started under: nohup has it ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Done]
_NO_FIGURE = '<svg xmlns="http://www.w3.org/2000/svg" role="img" />'


@pytest.fixture(scope="session")
def harness() -> Command:
    """The command line in this process, through its entry point: ``harness("run", "recipe=quickstart")``.

    Reports get all their figures, but empty ones unless ``drawn``: drawing them takes longer than a run of tiny models.
    """
    from harness import cli
    from harness.run import runner as run  # noqa: F401 - what they import is there before the next line

    gc.freeze()

    def call(*arguments: str | Path, drawn: bool = False) -> Done:
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(sys, "argv", ["harness", *map(str, arguments)]),
            contextlib.nullcontext() if drawn else mock.patch("reports.figures._svg", return_value=_NO_FIGURE),
        ):
            try:
                cli.main()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return Done(code, out.getvalue(), err.getvalue())

    return call
