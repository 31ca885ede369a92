"""What the data must hold: files, fields and numbers of rows, as `harness data` and `harness plan` say them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import HarnessError
from harness.tasks import tasks
from harness.tasks.base import samples_folder
from harness.tasks.files import shortfalls
from harness.tasks.sets import TRAINING
from tests.conftest import Command
from tests.copies import copy_to_change


def made(name: str, root: Path | None = None, **settings: Any) -> Any:
    return tasks()[name](tasks()[name].Settings(**settings), root)


def forms(fields: str) -> list[list[str]]:
    """The fields that a row must have, one list for each form of a row."""
    plain = re.sub(r"\([^)]*\)|optionally \w+", "", fields)
    return [[name for name in re.split(r"[,\s]+", form) if name and name != "or"] for form in plain.split(";")]


CASES = [(name, one) for name, kind in tasks().items() for one in kind.data_needs()]


@pytest.mark.parametrize(("name", "one"), CASES, ids=[f"{name} {one.what}" for name, one in CASES])
def test_rows_with_these_fields_are_read_and_others_are_not(name: str, one: Any, tmp_path: Path) -> None:
    dolly = {"Dolly": {}, "Dolly (hub split)": {"split": "hub"}}
    sets = {"SelfInst": "selfinst", "Vicuna": "vicuna", "S-NI": "sinst", "UnNI": "unni"}
    training, _, label = one.what.partition(", ")
    training = training == TRAINING
    settings: dict[str, Any] = dolly.get(label) or ({"sets": sets[label]} if label in sets else {})
    if name == "codem" and not training:
        settings = {"benchmarks": (label,)}
    split = "train" if training else "test"
    sample = json.loads((samples_folder() / f"{name}/{split}.jsonl").read_text().splitlines()[0])
    for form in forms(one.fields):
        row = {field: sample.get(field, f"a {field}") for field in form}
        for file in one.files:
            path = tmp_path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            for left_out in (None, *form):
                path.write_text(json.dumps({key: value for key, value in row.items() if key != left_out}) + "\n")
                if file.endswith(".gz"):
                    continue
                task = made(name, tmp_path, **settings)
                read = task.training_examples if training else task.reference_examples
                if left_out is None:
                    assert len(read()) == len(one.read(path)) == 1
                else:
                    with pytest.raises(HarnessError) as error:
                        read()
                    with pytest.raises(HarnessError, match=re.escape(str(error.value))):  # `harness data` says the same
                        one.read(path)
            path.unlink()


def test_what_is_asked_for_and_not_there_is_named(tmp_path: Path) -> None:
    root = copy_to_change(samples_folder(), tmp_path / "data")
    asked = {
        "dolly": made("dolly", root, sets=["dolly", "unni"], train_items=200, test_items=37),
        "gsm8k": made("gsm8k", root, train_items=201),
        "codem": made("codem", root, benchmarks=("mbpp",)),
        "countdown": made("countdown", root, train_items=2, test_items=2),
    }
    assert list(shortfalls(asked)) == [
        f"dolly.test_items=37: {root}/dolly/test.jsonl has 36 rows, and all of them are taken",
        "dolly: no rows of test, UnNI, as the data folder has no unni/valid_11_.jsonl",
        f"gsm8k.train_items=201: {root}/gsm8k/train.jsonl has 200 rows, and all of them are taken",
        "codem: no rows of test, mbpp, as the data folder has no codem/mbpp_test.jsonl or evalplus/MbppPlus.jsonl.gz",
    ]
    assert list(shortfalls({"gsm8k": made("gsm8k", root)})) == []


def test_what_is_missing_and_on_the_hub_is_named_with_its_download(harness: Command, tmp_path: Path) -> None:
    root = copy_to_change(samples_folder(), tmp_path / "data")
    (root / "gsm8k/test.jsonl").unlink()
    (root / "dolly_hub").mkdir()
    shutil.copy(root / "dolly/train.jsonl", root / "dolly_hub/train.jsonl")
    hub = made("dolly", root, split="hub", sets=["dolly", "unni"])
    assert list(shortfalls({"dolly": hub, "gsm8k": made("gsm8k", root)})) == [
        "dolly: no rows of test, Dolly (hub split), as the data folder has no dolly_hub/test.jsonl. "
        "`harness data --root FOLDER --download dolly_hub` puts it there.",
        "dolly: no rows of test, UnNI, as the data folder has no unni/valid_11_.jsonl",
        "gsm8k: no rows of test, as the data folder has no gsm8k/test.jsonl. "
        "`harness data --root FOLDER --download gsm8k` puts it there.",
    ]
    assert next(one.files for one in hub.data_needs(hub.settings)) == ("dolly_hub/train.jsonl",)
    fields = ["recipe=quickstart", f"data.root={root}", "tasks=[dolly]", "methods=[sft]", "dolly.split=hub"]
    listed = " ".join(harness("data", *fields).out.split())
    assert "no dolly_hub/test.jsonl. `harness data --root FOLDER --download dolly_hub`" in listed
    assert "dolly/train.jsonl" not in listed.replace("dolly_hub/", "")
    run = harness("run", *fields, "--runs", tmp_path / "runs")
    assert run.code == 2
    assert "none of dolly_hub/test.jsonl under" in run.err
    assert "`harness data --root FOLDER --download dolly_hub` puts it there." in run.err
    (root / "vicuna").mkdir()
    (root / "vicuna/valid.jsonl").write_text(json.dumps({"instruction": "a", "output": "b"}) + "\n")
    planned = harness("plan", *fields, "dolly.sets=[dolly,vicuna]")
    assert planned.code == 0, planned.err
    assert "no dolly_hub/test.jsonl. `harness data --root FOLDER --download dolly_hub`" in " ".join(planned.out.split())


def test_the_verbs_say_it_and_take_a_recipe(harness: Command, tmp_path: Path) -> None:
    root = copy_to_change(samples_folder(), tmp_path / "data")
    fields = ["recipe=quickstart", f"data.root={root}", "tasks=[dolly]", "dolly.sets=[dolly,unni]", "methods=[sft]"]
    for verb in ("plan", "data"):
        done = harness(verb, *fields, "dolly.train_items=1000")
        text = " ".join(done.out.split())
        assert done.code == 0, done.err
        assert "dolly.train_items=1000: " in text
        assert "has 200 rows, and all of them are taken" in text
        assert "no rows of test, UnNI, as the data folder has no unni/valid_11_.jsonl" in text
    listed = harness("data", *fields).out
    assert "gsm8k" not in listed
    assert "instruction, output" in listed
    assert "all of them are taken" not in listed
    for arguments in ([f"data.root={root}"], ["--root", root]):
        everything = harness("data", *arguments).out
        assert "gsm8k" in everything
        assert str(root) in everything.replace("\n", "")
        assert "Set data.root=" not in everything
    assert "Set data.root=FOLDER" in harness("data", "data.root=null").out
    wrong = harness("data", "train.steps=3")
    assert wrong.code == 2
    assert "recipe=NAME" in wrong.err


def test_a_folder_that_does_not_exist_is_named(
    harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that a recipe names, too; there `harness data` shows what belongs into it, and null undoes it."""
    monkeypatch.chdir(tmp_path)
    for given in (["--root", "/nope"], ["data.root=/nope"], ["recipe=quickstart", "data.root=/nope"]):
        done = harness("data", *given)
        assert (done.code, "data.root: found no folder /nope" in done.err) == (2, True)
    fields = ["recipe=phi_qwen_all", "tasks=[gsm8k]", "methods=[sft]"]
    done = harness("run", *fields)
    assert done.code == 2
    assert f"data.root: found no folder data in {tmp_path}; expected " in done.err
    assert "`harness data recipe=phi_qwen_all` lists them" in done.err
    assert "data.root=null" in done.err
    listed = harness("data", *fields)
    assert listed.code == 0
    assert "In data, a folder that does not exist." in listed.out
    assert "gsm8k/train.jsonl" in listed.out
    assert harness("plan", *fields, "data.root=null").code == 0
