"""A run that is killed again and again, each time at another place, and what is lost by it.

    python -m tests.kills --kills 56 --terms 20 recipe=smoke

Prints counts; each is zero where nothing is lost. What is compared with is a run that nobody disturbs. Each start is a
process of its own, forked from one that has imported what takes seconds; with ``--whole`` it imports all itself.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkProcess as Process
from pathlib import Path
from typing import Any

import psutil

MARK = "HARNESS_KILLS"
"""A variable of the environment by which a run's processes are found when their parent is no more."""
TIMES = frozenset({"timing.json", "adapter_config.json"})
"""Files that differ from process to process: how long it took, and a set of names in the order of their hashes."""
TABLES = ("table.csv", "results.csv", "items.csv.gz")
SPENT = (".seconds", ".tokens_per_second", ".gpu_hours", ".gpu_gib", ".process_gib", ".device")
"""Ends of columns of a table that say what a training took, here and now."""
GOES_ON = "the same command goes on where it stopped"
IMPORTS = ("harness.run.runner", "reports", "peft", "lm_eval.evaluator", "datasets", "evalplus", "nltk")


@dataclass
class Lost:
    """What kills have cost.

    Attributes:
        starts: of the run, the last one too.
        failed: starts that ended by themselves with an error.
        again: stages computed again though their result was whole.
        gone: whole results that were no longer there.
        survivors: processes that lived on for more than 5 s after the run was dead.
        silent: stops by SIGTERM in a run's midst without word, record or status 143.
        stopped_s: how long each stop by SIGTERM took.
        before: signals that came before there was a run: while Python imports.
        litter: what is left in the store and in the folder for temporary files.
        different: tables and stages that differ from those of a run that nobody disturbed.
    """

    starts: int = 0
    failed: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    survivors: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    stopped_s: list[float] = field(default_factory=list)
    before: int = 0
    litter: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    def faults(self) -> dict[str, list[str]]:
        """All that should be empty."""
        return {name: value for name, value in vars(self).items() if isinstance(value, list) and name != "stopped_s"}


class Victim:
    """A run in a folder, started as often as one likes.

    Args:
        call: what ``harness run`` is told.
        imports: of the process that starts are forked from.
    """

    def __init__(self, folder: Path, call: Sequence[str], imports: Sequence[str] = IMPORTS) -> None:
        self.runs, self._temporary, self._said = folder / "runs", folder / "tmp", folder / "said.txt"
        self._temporary.mkdir(parents=True, exist_ok=True)
        self._call = [sys.executable, "-m", "harness", "run", *call, "--runs", str(self.runs)]
        self._env = {MARK: str(folder), "TMPDIR": str(self._temporary), "OMP_NUM_THREADS": "1"}
        self._imports = imports
        for module in imports:
            importlib.import_module(module)

    def start(self) -> Process:
        process = multiprocessing.get_context("fork").Process(target=self._run)
        process.start()
        return process

    def _run(self) -> None:
        """In the new process."""
        os.environ.update(self._env)
        tempfile.tempdir = None  # looked up anew
        said = os.open(self._said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(said, stream)
        if not self._imports:
            os.execv(sys.executable, self._call)
        from harness.cli import main

        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        sys.argv = ["harness", *self._call[3:]]
        main()

    def said(self) -> str:
        return self._said.read_text(errors="replace")

    def finished(self) -> int:
        """How many stages are stored."""
        return sum(not name.startswith(".") for kind in self._kinds() for name in os.listdir(kind))

    def stages(self) -> dict[str, dict[str, Any]]:
        """Manifests by the place of their stage, but for a mark of weights that were let go."""
        found = {}
        for path in self.runs.glob("store/*/[!.]*/manifest.json"):
            manifest = json.loads(path.read_text())
            manifest.pop("dropped", None)
            found[path.parent.relative_to(self.runs / "store").as_posix()] = manifest
        return found

    def tables(self) -> dict[str, list[dict[str, str]]]:
        """Rows of what a run writes, without what a training took."""
        found = {}
        for path in (path for name in TABLES for path in self.runs.glob(f"*/{name}")):
            content = path.read_bytes()
            text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
            rows = csv.DictReader(text.splitlines())
            found[path.name] = [{key: row[key] for key in row if not key.endswith(SPENT)} for row in rows]
        return found

    def litter(self) -> list[str]:
        """What no finished run should leave. What torch keeps for later runs is its own."""
        left = [*self.runs.glob("store/*/.*"), *self._temporary.iterdir()]
        return [str(path) for path in left if not path.name.startswith("torchinductor")]

    def survivors(self, below: Iterable[psutil.Process], seconds: float = 5.0) -> list[str]:
        """Processes of dead starts that live on; they are ended.

        Args:
            below: what a start had begun when it was killed.
        """
        others = {one for one in psutil.process_iter() if self._is_ours(one)}
        _, alive = psutil.wait_procs([*{*others, *below}], timeout=seconds)
        named = [" ".join(_command(one))[:200] for one in alive]
        for one in alive:
            one.kill()
        return named

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self._env[MARK]
        except psutil.Error:
            return False

    def _kinds(self) -> list[Path]:
        store = self.runs / "store"
        return [path for path in store.iterdir() if path.is_dir() and path.name != "scratch"] if store.is_dir() else []


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return ["?"]


def kill_again_and_again(
    victim: Victim, undisturbed: Victim, signals: Sequence[signal.Signals], draw: random.Random
) -> Lost:
    """Start a run once for each signal, which it gets at a place of its own, and then to its end.

    Args:
        signals: sent in this order; places lie anywhere from the first stage to the last, and before it.
    """
    lost = Lost()
    number = len(undisturbed.stages())
    whole: dict[str, dict[str, Any]] = {}
    for sent, place in zip(signals, sorted(draw.uniform(0, number) for _ in signals), strict=True):
        run = victim.start()
        lost.starts += 1
        if not _wait(run, victim, place, draw):
            _check_end(run, victim, lost)
            continue
        began = bool(list(victim.runs.glob("store/lock")) and victim.said())
        below = psutil.Process(run.pid).children(recursive=True)
        os.kill(run.pid, sent)
        since = time.monotonic()
        run.join()
        if sent == signal.SIGTERM:
            _check_stop(run, victim, lost, began, time.monotonic() - since)
        lost.survivors += victim.survivors(below)
        whole = _compare(whole, victim.stages(), lost)
        print(f"{sent.name} at {len(whole)} of {number} stages", flush=True)
    last = victim.start()
    lost.starts += 1
    last.join()
    _check_end(last, victim, lost)
    _compare(whole, victim.stages(), lost)
    lost.survivors += victim.survivors([])
    lost.litter = victim.litter()
    lost.different = _differences(victim, undisturbed)
    return lost


def _wait(run: Process, victim: Victim, place: float, draw: random.Random) -> bool:
    """Wait until so many stages are stored and a moment more; where they are already, somewhere in the beginning.

    Returns:
        Whether the run is still there.
    """
    moment = draw.uniform(0, 1.5) if victim.finished() < place else draw.uniform(0, 10)
    while run.is_alive() and victim.finished() < place:
        time.sleep(0.02)
    run.join(moment)
    return run.is_alive()


def _check_end(run: Process, victim: Victim, lost: Lost) -> None:
    if run.exitcode:
        lost.failed.append(f"status {run.exitcode}: {victim.said()[-1000:]}")


def _check_stop(run: Process, victim: Victim, lost: Lost, began: bool, seconds: float) -> None:
    """A stop has a status, a word and a record; before there is a run, it has none to write."""
    if run.exitcode == -signal.SIGTERM and not began:
        lost.before += 1
        return
    lost.stopped_s.append(seconds)
    record = list(victim.runs.glob("*/run.json"))
    if run.exitcode != 128 + signal.SIGTERM or GOES_ON not in victim.said() or not record:
        lost.silent.append(f"status {run.exitcode}, records {len(record)}: {victim.said()[-500:]}")


def _compare(
    before: Mapping[str, dict[str, Any]], after: dict[str, dict[str, Any]], lost: Lost
) -> dict[str, dict[str, Any]]:
    """A stage that was made again has another manifest: of another second, at least."""
    lost.gone += sorted(before.keys() - after.keys())
    lost.again += sorted(name for name, manifest in before.items() if after.get(name, manifest) != manifest)
    return after


def _differences(victim: Victim, undisturbed: Victim) -> list[str]:
    ours, theirs = _outputs(victim), _outputs(undisturbed)
    stages = [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
    mine, other = victim.tables(), undisturbed.tables()
    return sorted(stages) + [name for name in TABLES if mine.get(name) != other.get(name) or name not in mine]


def _outputs(run: Victim) -> dict[str, dict[str, str]]:
    """Digests of files by the place of their stage."""
    return {
        place: {name: digest for name, digest in manifest["outputs"].items() if Path(name).name not in TIMES}
        for place, manifest in run.stages().items()
    }


def measure(
    folder: Path, call: Sequence[str], kills: int, terms: int, seed: int = 0, imports: Sequence[str] = IMPORTS
) -> Lost:
    """A run that nobody disturbs, then one that is killed so often, in an order of chance."""
    draw = random.Random(seed)
    undisturbed = Victim(folder / "undisturbed", call, imports)
    begun = time.monotonic()
    (first := undisturbed.start()).join()
    if first.exitcode:
        raise RuntimeError(undisturbed.said())
    print(f"undisturbed: {time.monotonic() - begun:.0f} s, {len(undisturbed.stages())} stages", flush=True)
    signals = [signal.SIGKILL] * kills + [signal.SIGTERM] * terms
    draw.shuffle(signals)
    return kill_again_and_again(Victim(folder / "killed", call, imports), undisturbed, signals, draw)


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill a run again and again, and count what is lost.")
    parser.add_argument("--kills", type=int, default=56, help="SIGKILL so often")
    parser.add_argument("--terms", type=int, default=20, help="and SIGTERM so often")
    parser.add_argument("--folder", type=Path, help="an empty one for runs; kept (default: a temporary one)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--whole", action="store_true", help="have each start import all itself: 7 s of a core more")
    parser.add_argument("recipe", nargs="+", help="what `harness run` is told, such as recipe=smoke")
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    begun = time.monotonic()
    try:
        lost = measure(folder, asked.recipe, asked.kills, asked.terms, asked.seed, () if asked.whole else IMPORTS)
    finally:
        if asked.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{lost.starts} starts in {time.monotonic() - begun:.0f} s; SIGTERM before there was a run: {lost.before}")
    print("seconds until others had stopped:", *(f"{seconds:.1f}" for seconds in sorted(lost.stopped_s)))
    for name, found in lost.faults().items():
        print(f"{name}: {len(found)}", *found[:5], sep="\n  ")
    return int(any(lost.faults().values()))


if __name__ == "__main__":
    sys.exit(main())
