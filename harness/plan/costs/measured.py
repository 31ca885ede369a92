"""Seconds of stages like the planned ones, as this machine took them before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from harness.base.files import Json, digest_of, read_json
from harness.base.identity import environment
from harness.plan.costs.devices import DEVICES, Cost
from harness.plan.stages import Stage
from harness.store.artefacts import TIMING
from harness.store.store import MANIFEST, Store

# --- Measured times ---------------------------------------------------------------------------------------------------


class Measured:
    """Seconds of stages that ran on this machine's device, from the store's manifests."""

    def __init__(self, store: Store) -> None:
        self.store, self.device = store, str(environment()["device"])

    def seconds(self, stage: Stage) -> float | None:
        """Of this very stage; else of a training like it, by its steps; else None."""
        if (manifest := self.store.read_manifest(stage.kind, stage.identity)) is not None:
            return float(manifest["seconds"]) if manifest["environment"]["device"] == self.device else None
        pace = self._paces.get(_alike(stage.kind, stage.task, stage.values))
        return None if pace is None else pace * stage.steps

    @cached_property
    def _paces(self) -> dict[str, float]:
        """Seconds a step of stored trainings, by what they have in common with others."""
        paces: dict[str, float] = {}
        for manifest, folder in self._trainings():
            steps = int(manifest["values"]["steps"])
            if steps and (folder / TIMING.name).is_file() and manifest["environment"]["device"] == self.device:
                pace = TIMING.load(folder).seconds / steps
                paces[_alike(manifest["kind"], manifest["task"], manifest["values"])] = pace
        return paces

    def _trainings(self) -> Iterator[tuple[dict[str, Json], Path]]:
        for kind in ("teacher", "warm_start", "student"):
            for path in sorted((self.store.root / kind).glob(f"*/{MANIFEST}")):
                try:
                    manifest = read_json(path)
                    manifest["values"]["steps"], manifest["environment"]["device"], manifest["kind"], manifest["task"]
                except (OSError, ValueError, KeyError):
                    continue
                yield manifest, path.parent


def _alike(kind: str, task: str, values: Mapping[str, Json]) -> str:
    """Trainings of one key differ in nothing that a step's time depends on but, at most, settings of speed."""
    training = {k: v for k, v in values.get("training", {}).items() if k in ("batch_size", "lora")}
    objective = values.get("objective", {})
    methods = [{k: v for k, v in each.items() if k != "code"} for each in objective.get("methods", [])]
    kept = {k: values.get(k) for k in ("model", "teachers", "dtype")}
    data = {k: values.get("data", {}).get(k) for k in ("limits", "sides")}
    return digest_of({"kind": kind, "task": task, "training": training, "methods": methods, "data": data, **kept})


def costs_here(stages: Sequence[Stage], costs: Mapping[str, Cost], measured: Measured) -> dict[str, float]:
    """Seconds on this machine: measured, or estimated and scaled by how the measured ones compare with estimates.

    What a CPU does is not scaled: judging programs takes as long beside a slow device as beside a fast one.
    """
    known = {stage.identity: seconds for stage in stages if (seconds := measured.seconds(stage)) is not None}
    on_device = {s.identity: costs[s.identity].seconds(DEVICES[0]) - costs[s.identity].cpu for s in stages}
    expected = sum(on_device[identity] for identity in known)
    if not expected:
        return {}
    scale = max(sum(seconds - costs[identity].cpu for identity, seconds in known.items()), 0.0) / expected
    return {s.identity: known.get(s.identity, scale * on_device[s.identity] + costs[s.identity].cpu) for s in stages}
