"""Makes stages that are needed, inputs first: reads what is stored, makes damaged ones again, notes failures."""

from __future__ import annotations

import resource
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from rich.markup import escape

from harness.base.compilation import compile_seconds
from harness.base.errors import HarnessError
from harness.base.files import write_text
from harness.base.identity import environment
from harness.base.progress import Progress
from harness.plan.stages import Stage, stage_line, with_inputs
from harness.store.artefacts import Failure
from harness.store.store import Artefact, CorruptArtefactError, Store

Make = Callable[[Stage, Path], dict[str, object]]
"""Fills a folder with a stage's files. Returns what else its manifest tells."""


class StageFailedError(Exception):
    """An input of a stage failed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class Demand:
    """The stages of a run: which are stored, and how the others come to be.

    Args:
        store: where results are.
        folder: the run's own folder, for tracebacks of failures.
        progress: told about every stage.
        free: frees memory that a stage does not use, before it is made or waited for.
        make: makes a stage whose inputs are stored.
        models: what the manifests say of the models of the pair.

    Attributes:
        failures: of this run, by the identity of the stage.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        progress: Progress,
        free: Callable[[Stage], None],
        make: Make,
        models: Callable[[], dict[str, dict[str, str]]],
    ) -> None:
        self.store, self.folder, self.progress = store, folder, progress
        self._free, self._make, self._read_models = free, make, models
        self.failures: dict[str, Failure] = {}

    def attempt(self, stage: Stage) -> None:
        """Make a stage and what it needs; note a failure instead of raising, but for bad input."""
        try:
            self.need(stage)
        except StageFailedError as error:
            self.failures.setdefault(stage.identity, error.failure)

    def find(self, stage: Stage) -> Artefact | None:
        """The stored result of a stage. Small files are checked here, weights and rows when they are read."""
        found = self.store.find(stage.kind, stage.identity)
        if found is not None and stage.kind in ("answers", "bits", "scores") and not found.is_whole():
            self._discard(found)
            return None
        return found

    def need(self, stage: Stage) -> Artefact:
        """The stored result of a stage, made first where it is missing.

        Raises:
            StageFailedError: it failed, or something that it reads did.
            HarnessError: bad input.
        """
        found = self.find(stage)
        if found is not None:
            return found
        if stage.identity in self.failures:
            raise StageFailedError(self.failures[stage.identity])
        for needed in stage.inputs.values():
            self.need(needed)
        try:
            return self._made(stage)
        except CorruptArtefactError as error:
            return self._remade(stage, error)
        except (HarnessError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise StageFailedError(self.fail(stage, error)) from error

    def fail(self, stage: Stage, error: Exception) -> Failure:
        """Note a failure with its traceback in the run's folder."""
        path = self.folder / "failures" / f"{stage.kind}-{stage.identity[:12]}.txt"
        write_text(path, f"{stage.title} ({stage.task}, seed {stage.seed})\n\n{traceback.format_exc()}")
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0] if lines else ''} ({path.relative_to(self.folder)})"
        failure = Failure(stage.title, reason)
        self.failures[stage.identity] = failure
        self.progress.message(f"[red]failed[/] {stage.task} · {escape(f'{stage.title}: {reason}')}")
        self.progress.finish()
        return failure

    @contextmanager
    def storing(self, stage: Stage, started: float) -> Iterator[tuple[Path, dict[str, object]]]:
        """A folder for a stage's files, and the manifest that is written beside them; stored when the block ends.

        Args:
            started: of the work, by ``time.monotonic``.
        """
        manifest = {
            "title": stage.title,
            "task": stage.task,
            "seed": stage.seed,
            "values": dict(stage.values),
            "code": dict(stage.code),
            "inputs": {name: {"kind": s.kind, "identity": s.identity} for name, s in stage.inputs.items()},
            "models": self._models,
        }
        with self.store.create(stage.kind, stage.identity, manifest) as folder:
            yield folder, manifest
            manifest |= circumstances(started)

    @cached_property
    def _models(self) -> dict[str, dict[str, str]]:
        return self._read_models()

    def _made(self, stage: Stage) -> Artefact:
        def waits() -> None:
            title = escape(stage_line(stage))
            self.progress.message(f"another process is at work on {title}: waiting for it")

        self._free(stage)
        with self.store.work(stage.kind, stage.identity, waits):
            if (found := self.find(stage)) is not None:  # another process has just made it
                return found
            compiled = compile_seconds()
            with self.storing(stage, time.monotonic()) as (folder, manifest):
                manifest |= self._make(stage, folder)
                manifest |= {"compile_seconds": round(compile_seconds() - compiled, 2)}
        self.progress.finish()
        artefact = self.store.find(stage.kind, stage.identity)
        assert artefact is not None
        return artefact

    def _remade(self, stage: Stage, error: CorruptArtefactError) -> Artefact:
        """Something that the stage reads differs from its digest: throw away what is damaged and make it again."""
        stored = {one.identity: self.store.find(one.kind, one.identity) for one in with_inputs(stage)}
        damaged = [artefact for artefact in stored.values() if artefact is not None and not artefact.is_whole()]
        if not damaged:
            raise StageFailedError(self.fail(stage, error)) from error
        for artefact in damaged:
            self._discard(artefact)
        return self.need(stage)

    def _discard(self, artefact: Artefact) -> None:
        self.progress.message(f"[yellow]damaged[/] {escape(str(artefact.folder))}: made again")
        self.store.discard(artefact)


def circumstances(started: float) -> dict[str, object]:
    """What a manifest says of how a stage came about.

    Args:
        started: of the work, by ``time.monotonic``.
    """
    return {
        "environment": environment(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 2),
        "process_peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
