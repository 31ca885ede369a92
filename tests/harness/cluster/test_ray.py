"""Ray makes a run: on two nodes, of which one dies at its work."""

from __future__ import annotations

import copy
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch

from harness import api
from harness.base.errors import HarnessError
from harness.recipe.load import validate
from tests.harness.cluster.test_slurm import FIELDS
from tests.harness.cluster.two_nodes import TwoNodes, apart, on_one_network, why_not_apart
from tests.harness.run.test_workers import Told, stored

LAUNCH: dict[str, Any] = {"executor": "ray", "job": {"cpus": 1, "memory": 1}}


def test_without_ray_a_run_says_how_to_get_it(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(HarnessError, match=r"launch\.executor: found ray, .*pip install -e '\.\[ray\]'"):
        api.run(validate("tiny", tiny_recipe | FIELDS | {"launch": LAUNCH}), runs=tmp_path)


@pytest.fixture(params=[apart, on_one_network])
def cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[TwoNodes]:
    """Two nodes of one core each; the first is also that of this program. Apart where that can be."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    reason = why_not_apart()
    if reason and request.param is apart:
        pytest.skip(reason)
    if not reason and request.param is on_one_network:
        pytest.skip("nodes apart show more")
    with request.param(ray) as nodes:
        yield nodes


def busy_at_a_checkpoint(store: Path, node: psutil.Process) -> int | None:
    """A process of a node that trains a student and has written a checkpoint."""
    for folder in store.glob("student/.work-*"):
        if list(folder.glob("checkpoint-*")):
            lock = (folder / "lock").stat().st_ino
            for process in node.children(recursive=True):
                try:
                    files = [os.stat(opened.path).st_ino for opened in process.open_files()]
                except (psutil.Error, OSError):
                    continue
                if lock in files:
                    return process.pid
    return None


@pytest.mark.slow
def test_two_nodes_of_which_one_dies_make_what_one_process_makes(
    tiny_recipe: dict[str, Any], cluster: TwoNodes, tmp_path: Path
) -> None:
    fields = copy.deepcopy(tiny_recipe) | FIELDS | {"train": tiny_recipe["train"] | {"steps": 40}}
    launch = LAUNCH | {"ray": {"address": cluster.address}}
    died: list[str] = []

    def kill() -> None:
        while not over.is_set() and not died:
            if (busy := busy_at_a_checkpoint(tmp_path / "runs" / "store", cluster.second)) is not None:
                died.append(cluster.place)
                cluster.kill(busy)
            time.sleep(0.01)

    over, told = threading.Event(), Told()
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        run = api.run(validate("tiny", fields | {"launch": launch}), told, runs=tmp_path / "runs")
    finally:
        over.set()
        killer.join()
    assert len(died) == 1, told.messages
    assert not run.failures
    done_by = [found[1] for text in told.messages if (found := re.search(r": done on (\S+ \(\w+\))", text))]
    assert len(done_by) == 6  # warm start, teacher, rows, three cells
    assert len(set(done_by)) == 2
    assert died[0] not in done_by[-1]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = api.run(validate("tiny", fields), runs=tmp_path / "alone")
    torch.set_num_threads(threads)
    pd.testing.assert_frame_equal(run.results(), alone.results())
    pd.testing.assert_frame_equal(run.items(), alone.items())
    assert stored(run) == stored(alone)


def test_a_job_that_no_node_has_room_for_is_refused(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    """Ray would wait for such a node for ever."""
    from harness.cluster.on_ray import _check_room
    from harness.plan.jobs import Job

    class Nodes:
        @staticmethod
        def nodes() -> list[dict[str, Any]]:
            here = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0, "memory": 16.0 * 2**30}}
            return [here, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0, "memory": 512.0 * 2**30}}]

    job = Job("dolly · sft · seed 0", "dolly", (), frozenset(), frozenset(), 0)
    _check_room(Nodes, job, {"CPU": 8.0, "GPU": 1.0, "memory": 2.0**34})
    with pytest.raises(HarnessError, match=r"launch\.job: found 8 cores, 2 GPUs, 16 GiB for dolly · sft · seed 0"):
        _check_room(Nodes, job, {"CPU": 8.0, "GPU": 2.0, "memory": 2.0**34})
