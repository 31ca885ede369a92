"""Records, manifests and bundles with random damage: read, refused in one sentence, or no stage; nothing else."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import api
from harness.base.errors import HarnessError
from harness.store.store import MANIFEST, Store
from tests.harness.results.test_bundle import export, make_run, record

ODD: tuple[Any, ...] = (
    None, True, 0, -1, 10**30, 1e308, float("nan"), "", "x", "\0", "\ud800", "../..", "a" * 300, [], {}, [[]], {"": {}},
    [1, "a", None], {"a": 1}, "=1+1", "\x1b[2J", {"identity": "1" * 64, "kind": "scores"},
)  # fmt: skip
NIGHTLY = (pytest.mark.slow, pytest.mark.nightly)
MANY = [300, pytest.param(100_000, marks=NIGHTLY)]


def damaged(value: Any, draw: random.Random) -> Any:
    """A copy of a JSON value with one to three places changed, removed or put elsewhere."""
    whole = json.loads(json.dumps(value))
    for _ in range(draw.randint(1, 3)):
        place = whole
        while isinstance(place, dict | list) and place:
            key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if draw.random() < 0.4 or not isinstance(place[key], dict | list) or not place[key]:
                if draw.random() < 0.3:
                    del place[key]
                else:
                    place[key] = copy.deepcopy(draw.choice(ODD))  # which may be changed in its turn
                break
            place = place[key]
    return whole


def damaged_text(text: str, draw: random.Random) -> str:
    start, end = sorted(draw.randrange(len(text)) for _ in range(2))
    return (
        text[:start]
        + draw.choice(("", "{", "]", "\0", '"', "9" * 5000))
        + text[end if draw.random() < 0.3 else start :]
    )


def held(act: Callable[[], object]) -> None:
    """What is wrong is a HarnessError."""
    with contextlib.suppress(HarnessError):
        act()


@pytest.mark.parametrize("count", MANY)
def test_damaged_records(tmp_path: Path, count: int) -> None:
    draw, whole = random.Random(0), record(0, 1)
    for number in range(count):
        text = json.dumps(damaged(whole, draw))
        text = damaged_text(text, draw) if number % 4 == 0 else text
        (tmp_path / "run.json").write_text(text, encoding="utf-8", errors="surrogatepass")
        held(lambda: api.open_run(tmp_path))


@pytest.mark.parametrize("count", MANY)
def test_damaged_manifests(tmp_path: Path, count: int) -> None:
    draw, store, identity = random.Random(1), Store(tmp_path), "1" * 64
    inputs = {"rows": {"kind": "rows", "identity": "2" * 64}}
    with store.create("student", identity, {"inputs": inputs, "values": {"steps": 1}}) as folder:
        (folder / "steps.json").write_text("[]")
    path = store.folder_of("student", identity) / MANIFEST
    whole = json.loads(path.read_text())
    for number in range(count):
        text = json.dumps(damaged(whole, draw))
        text = damaged_text(text, draw) if number % 4 == 0 else text
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        found = store.find("student", identity)
        assert found is None or isinstance(found.is_whole(), bool)
        store.complaints(path.parent), store.read_dropped("student", identity, "steps.json"), store.left_alone()
        api.store_contents(store)


@pytest.mark.parametrize("count", [100, pytest.param(20_000, marks=NIGHTLY)])
def test_damaged_bundles(tmp_path: Path, count: int) -> None:
    draw = random.Random(2)
    whole = export(make_run(tmp_path / "made", 0), tmp_path / "whole.zip").read_bytes()
    file, runs = tmp_path / "study.zip", tmp_path / "runs"
    with zipfile.ZipFile(io.BytesIO(whole)) as bundle:
        index = json.loads(bundle.read("bundle.json"))
        files = {name: bundle.read(name) for name in bundle.namelist()}
    for number in range(count):
        if number % 2:
            content = bytearray(whole)
            for _ in range(draw.randint(1, 4)):
                content[draw.randrange(len(content))] = draw.randrange(256)
            file.write_bytes(bytes(content[: draw.randint(1, len(content))] if draw.random() < 0.2 else content))
        else:
            with zipfile.ZipFile(file, "w") as bundle:
                for name, text in (files | {"bundle.json": json.dumps(damaged(index, draw)).encode()}).items():
                    bundle.writestr(name, text)
        held(lambda: api.import_bundle(file, runs))
    outside = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert outside <= {"made", "whole.zip", "study.zip", "runs"}
