"""A step that does not fit into memory: smaller chunks of its loss, then smaller passes, and all of the step once more.

CUDA graphs, which only make it faster, go first. What is halved stays so for the rest of the training. It bounds memory
alone: the loss of a step is a sum over its responses, whose divisors are those of the whole step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from harness.base.device import release_memory
from harness.data.batches import Batch, Collator
from harness.data.chunks import row_starts
from harness.data.read_ahead import AheadBatch, Sample
from harness.data.terms import AlignedExample
from harness.data.tokens import STUDENT

_LEAST_ROWS = 8  # fewer take no memory to speak of, and the head's weights are read for each chunk


class DoesNotFitError(Exception):
    """A step does not fit into memory, however small its chunks and passes."""


class Room:
    """How much of a step is in memory at once.

    Args:
        collator: whose chunks are halved.
        say: told once of what was halved in a step.
        trial: whether the first step is tried at its longest responses, before hours have passed.
        spare: told why, lets go of CUDA graphs, and returns whether there were any.

    Attributes:
        halved: rows of a chunk and responses of a pass, each as it was at first and as it is now; what was never
            halved is not there.
    """

    def __init__(
        self,
        collator: Collator,
        say: Callable[[str], None] = lambda text: None,
        *,
        trial: bool = False,
        spare: Callable[[str], bool] | None = None,
    ) -> None:
        self.collator, self.say, self.trial, self.spare = collator, say, trial, spare
        self.halved: dict[str, tuple[int, int]] = {}
        self._draws: list[tuple[Callable[[Tensor], None], Tensor]] = []

    def begin(self, device: torch.device) -> None:
        """A step begins: note the state of the random numbers (dropout) that its passes draw."""
        self._draws = [(torch.set_rng_state, torch.get_rng_state())]
        if device.type == "cuda":
            self._draws.append(
                (lambda state: torch.cuda.set_rng_state(state, device), torch.cuda.get_rng_state(device))
            )

    def rewind(self) -> None:
        """Draw again what the step has drawn."""
        for restore, state in self._draws:
            restore(state)

    def within(self, samples: Sequence[Sample], attempt: Callable[[Sequence[Sample]], Tensor], step: int) -> Tensor:
        """What an attempt gives on the newest of a step's micro-batches, or on all of them where that does not fit.

        Args:
            samples: those of the step that have been passed over, and the newest.
            attempt: passes over some; over all of them, it begins the step anew.
            step: its number, as people count.

        Raises:
            DoesNotFitError: nothing is left to halve.
        """
        before, todo = dict(self.halved), samples[-1:]
        while True:
            try:
                found = attempt(todo)
                break
            except Exception as error:
                if not _out_of_memory(error):
                    raise
                spared = self.spare is not None and self.spare(f"out of memory in step {step}")
                if spared:
                    self.say(f"out of memory in step {step}, which was done again without CUDA graphs")
                elif not self._halve(samples):
                    raise DoesNotFitError(self._at_its_least(samples, step, error)) from error
            release_memory()  # here, where the error no longer holds what it could not finish
            self.rewind()
            todo = samples
        if self.halved != before:
            self.say(f"out of memory in step {step}, which was done again with {self._in_words()}")
        return found

    def passes(self, sample: Sample, device: torch.device) -> Iterator[Sample]:
        """A micro-batch as it fits: itself while nothing was halved."""
        if not self.halved:
            yield sample
            return
        examples, batch = sample["examples"], _ready(sample["batch"])
        most = self.responses(len(examples))
        if most == len(examples) and _largest(batch) <= self.collator.chunk_rows:
            yield {**sample, "batch": batch}
            return
        for start in range(0, len(examples), most):
            part = examples[start : start + most]
            made = self.collator.collate(part, sample.get("sampled"))
            yield {**sample, "batch": made.to(device), "examples": part}

    def responses(self, wanted: int) -> int:
        """How many responses go through the model at once, of so many."""
        return min(self.halved.get("responses_a_pass", (0, wanted))[1], wanted)

    def longest(self, examples: Sequence[AlignedExample], responses: int, device: torch.device) -> Sample:
        """The micro-batch of the longest examples, on all sides together, on the device that trains."""
        by_length = sorted(examples, key=lambda each: sum(side.length for side in each.example.sides.values()))
        part = tuple(by_length[-responses:])
        return {"batch": self.collator.collate(part).to(device), "examples": part}

    def _halve(self, samples: Sequence[Sample]) -> bool:
        """Halve the chunks, or where they are small or can't be smaller, the passes. Returns whether there was any."""
        rows = min(self.collator.chunk_rows, max(self._rows(sample) for sample in samples))
        if rows > _LEAST_ROWS and not self.collator.whole_responses:
            self.collator.chunk_rows = max(rows // 2, _LEAST_ROWS)
            self._note("chunk_rows", rows, self.collator.chunk_rows)
            return True
        most = max(len(sample["examples"]) for sample in samples)
        now = self.responses(most)
        if now > 1:
            self._note("responses_a_pass", most, now // 2)
        return now > 1

    def _note(self, name: str, before: int, after: int) -> None:
        self.halved[name] = (self.halved.get(name, (before, after))[0], after)

    def _rows(self, sample: Sample) -> int:
        """The student's rows of a micro-batch."""
        sides = [aligned.example.sides[STUDENT] for aligned in sample["examples"]]
        return int(row_starts(sides, self.collator.windows[STUDENT])[-1])

    def _in_words(self) -> str:
        words = {"chunk_rows": "{1} rows of logits at a time (before: {0})", "responses_a_pass": "{1} responses a pass"}
        return " and ".join(words[name].format(*sizes) for name, sizes in self.halved.items())

    def _at_its_least(self, samples: Sequence[Sample], step: int, error: Exception) -> str:
        rows = min(self.collator.chunk_rows, max(self._rows(sample) for sample in samples))
        chunk = "whole responses" if self.collator.whole_responses else f"chunks of {rows} rows"
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return f"step {step} does not fit into memory, one response at a time, in {chunk}: {first}"


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def _ready(batch: Batch | AheadBatch) -> Batch:
    return batch.ready() if isinstance(batch, AheadBatch) else batch


def _largest(batch: Batch) -> int:
    """Rows of its largest chunk."""
    if batch.unaligned is not None:
        return batch.unaligned.layout.chunk_rows
    return max(stop - start for start, stop in batch.chunks)
