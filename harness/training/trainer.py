"""Training: transformers' Trainer around a :class:`~harness.training.loss.Distiller`.

Ours are the batches, the loss and its normalisation (by the whole accumulation window over all ranks); the loop,
clipping, schedules, mixed precision, checkpoints, resuming and trackers are the Trainer's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import AutocastKwargs, broadcast_object_list
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback

from harness.base.compilation import Recompilations
from harness.base.device import keep_freed_memory
from harness.base.errors import HarnessError
from harness.base.ranks import world_size
from harness.data.batches import Batch, Collator
from harness.data.read_ahead import AheadBatch, ReadAhead, Sample
from harness.data.terms import AlignedExample
from harness.data.tokens import STUDENT
from harness.models.heads import check_packing
from harness.recipe.training import Training
from harness.store.artefacts import STEPS
from harness.training.arguments import arguments_of
from harness.training.checkpoints import CheckpointMarker, latest_checkpoint
from harness.training.kd_scale import name_of, scales_after
from harness.training.late_log import LateLog, may_read_late
from harness.training.loss import Distiller
from harness.training.objective import LossParts, Objective
from harness.training.order import LengthBuckets
from harness.training.rates import give_rates
from harness.training.rollout_share import share_at
from harness.training.rollouts import Rollouts
from harness.training.room import Room
from harness.training.selection import Looks
from harness.training.sharding import begin_pass, check_checkpoint, piece, take_plugin, unchanged_environment
from harness.training.window import Window

LOST = 10.0  # a cross-entropy so many times its start, or that of guessing, is a training that came apart
HUGE = 1e9  # no model has such a weight; a norm makes zeros of rows that overflow, and their loss is that of guessing


class DivergedError(Exception):
    """A training came apart: its loss, its gradients or its weights are no numbers any more, or no model's."""


class DistillationTrainer(LateLog):
    """The Trainer with our loss: sums over the window are divided by the window's counts over all ranks."""

    def __init__(
        self,
        *args: Any,  # Any: the Trainer's own, which is untyped
        room: Room,
        sampler: Sampler[int] | None = None,
        rollouts: Rollouts | None = None,
        draws_share: int = 1,
        on_step: Callable[[dict[str, float]], None] | None = None,
        looks: Looks | None = None,
        **kwargs: Any,
    ) -> None:
        self._room, self._sampler, self._looks = room, sampler, looks
        self._draws_share = draws_share
        self._order: Any = None
        keep_freed_memory()
        super().__init__(*args, **kwargs)
        if (self.is_fsdp_enabled and not self.args.fsdp) or self.is_deepspeed_enabled:
            name = "FSDP" if self.is_fsdp_enabled else "DeepSpeed"
            raise HarnessError(
                "accelerate launch",
                f"{name}, which shards weights",
                "whole models on every GPU (DDP), or shards as the recipe asks for them",
                "Use torchrun, or accelerate launch --multi_gpu; fields shard of teacher, warm_start and train shard.",
            )
        self._rollouts = rollouts
        self.model_accepts_loss_kwargs = True  # the loss is normalised already: the Trainer must not divide it again
        terms = self.model.objective.terms
        self._window = Window(len(terms))
        alone, fixed = self.accelerator.num_processes == 1, all(t.method.options.kd_scale == "fixed" for t in terms)
        self.may_be_late = alone and fixed and rollouts is None and looks is None and may_read_late(self.args.device)
        self._on_step = on_step
        self._recompilations = Recompilations()
        self.steps: list[dict[str, float]] = []

    def create_accelerator_and_postprocess(self) -> None:
        """The Trainer's; shards on CPUs too."""
        with unchanged_environment():
            super().create_accelerator_and_postprocess()
            if self.args.fsdp:
                take_plugin(self.accelerator, self.args.fsdp_plugin_args)
                self.is_fsdp_enabled = True

    def _get_train_sampler(self, train_dataset: Dataset[AlignedExample] | None = None) -> Sampler[int] | None:
        """Our own order of the examples, or the Trainer's."""
        if self._sampler is not None:
            return self._sampler
        theirs: Sampler[int] | None = super()._get_train_sampler(train_dataset)
        return theirs

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's, with a group of its own for parameters that a method trains at another rate."""
        is_new = self.optimizer is None
        made: torch.optim.Optimizer = super().create_optimizer(model)
        if is_new and (rates := self.model.own_rates()):
            give_rates(made, rates)
        return made

    def get_train_dataloader(self) -> DataLoader[Sample]:
        """The Trainer's, whose order of examples is told the epoch here too.

        Accelerate does not reach it where several processes go on in a later epoch: it stands too deep.
        """
        loader: DataLoader[Sample] = super().get_train_dataloader()
        batches: Any = loader.batch_sampler  # accelerate's, round ours
        while hasattr(batches, "batch_sampler"):
            batches = batches.batch_sampler
        self._order = batches.sampler
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[Sample], num_batches: int, device: torch.device
    ) -> tuple[list[Sample], Tensor | None]:
        """The batches of one accumulation window, and their counts summed over the window and all ranks."""
        if hasattr(self._order, "set_epoch"):  # read when the epoch's first batch is asked for
            self._order.set_epoch(int(self.state.epoch or 0))
        samples = []
        for _ in range(num_batches):
            try:
                samples.append(next(epoch_iterator))
            except StopIteration:
                break
        if not samples:
            return samples, None
        of_samples: dict[str, float] = {}
        if self._rollouts is not None:
            # Ranks take micro-batches in turn: each is drawn by its place among all of the window.
            world, rank = self.accelerator.num_processes, self.accelerator.process_index
            # Those that a smaller memory or more processes cut out of one have its draw.
            places = [(place * world + rank) // self._draws_share for place in range(len(samples))]
            step, steps = self.state.global_step, self.state.max_steps
            share, of_samples = share_at(self._rollouts.settings.share, step, steps, self.steps)
            drawn = [self._rollouts.drawn(step, place, share) for place in places]
            replaced = iter(self._sampled([s for s, draw in zip(samples, drawn, strict=True) if draw], device))
            samples = [next(replaced) if draw else s for s, draw in zip(samples, drawn, strict=True)]
            sampled = torch.tensor(sum(drawn) / len(drawn), device=device)
            of_samples["sampled micro-batches"] = float(self.accelerator.reduce(sampled, reduction="mean"))
            tokens = [float(s["batch"].counts[0]) for s, draw in zip(samples, drawn, strict=True) if draw]
            written = torch.tensor(sum(tokens, 0.0), device=device)  # of a rank that draws none, a float too
            of_samples["sampled tokens"] = float(self.accelerator.reduce(written, reduction="sum"))
        # Added up on the CPU, and moved once. float64 does not exist on every device; counts stay far below 2**24.
        here = torch.stack([sample["batch"].counts for sample in samples]).sum(0).to(torch.float32)
        counts = self.accelerator.reduce(here.to(device, non_blocking=True), reduction="sum")
        # One process knows them all, and does not wait for its device to give back what it has just got.
        known = here if self.accelerator.num_processes == 1 else counts.cpu()
        objective: Objective = self.model.objective
        modes = [term.method.options.kd_scale for term in objective.terms]
        self._window.begin(objective.divisors(known), known, scales_after(modes, self.steps), device)
        self._window.facts |= {
            name_of(term): scale
            for term, (mode, scale) in enumerate(zip(modes, self._window.scales, strict=True))
            if mode != "fixed"
        }
        self._window.facts |= of_samples
        return samples, counts

    def _sampled(self, samples: Sequence[Sample], device: torch.device) -> list[Sample]:
        """Micro-batches of the same prompts with responses of the student's own, drawn together."""
        assert self._rollouts is not None
        for sample in samples:
            if isinstance(sample["batch"], AheadBatch):
                sample["batch"].cancel()
        parts = [sample["examples"] for sample in samples]
        with self.accelerator.autocast():  # the Trainer leaves precision to a forward pass of the whole distiller
            made = self._rollouts.samples(self.model.student, parts, self.state.global_step) if parts else []
        return [{**sample, "batch": sample["batch"].to(device)} for sample in made]

    def training_step(self, model: nn.Module, inputs: Sample, num_items_in_batch: Tensor | None = None) -> Tensor:
        """One micro-batch; where it does not fit into memory, all of the step so far again in smaller pieces."""
        begin_pass(model, last=self.accelerator.sync_gradients)
        if self.accelerator.num_processes > 1:  # the others would wait for the gradients of this one
            alone: Tensor = super().training_step(model, inputs, num_items_in_batch)
            return alone
        window, step = self._window, self.state.global_step + 1
        if not window.passed:
            self._room.begin(self.args.device)
        if self._room.trial:
            self._room.trial = False
            size = self.args.per_device_train_batch_size
            window.passed = [self._room.longest(self.train_dataset, size, self.args.device)]
            self._room.within(window.passed, partial(self._try, model, num_items_in_batch), step)
            model.zero_grad()
            window.restart()
            self._room.rewind()
            window.passed = []
        window.passed.append(inputs)
        return self._room.within(window.passed, partial(self._pass_over, model, num_items_in_batch), step)

    def _pass_over(self, model: nn.Module, counts: Tensor | None, samples: Sequence[Sample]) -> Tensor:
        """Forward and backward passes over micro-batches; all of a step's begin it anew. Gives the loss of the last."""
        if len(samples) == len(self._window.passed):
            model.zero_grad()
            self._window.restart()
        for sample in samples:
            parts = self._room.passes(sample, self.args.device)
            losses = [Trainer.training_step(self, model, part, counts) for part in parts]
        return torch.stack(losses).sum()

    def _try(self, model: nn.Module, counts: Tensor | None, samples: Sequence[Sample]) -> Tensor:
        """The same with as much memory taken as the optimiser's two moments will need, where they are not there yet."""
        trained = [] if self.optimizer.state else [each for each in model.parameters() if each.requires_grad]
        moments = [torch.empty_like(each) for each in trained for _ in range(2)]
        loss = self._pass_over(model, counts, samples)
        del moments
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Sample,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, LossParts]:
        """Loss of one micro-batch, a part of its window's loss."""
        assert self._window.divisors is not None
        batch = inputs["batch"]
        if isinstance(batch, AheadBatch):
            batch = batch.ready()
        with self._precision():
            parts: LossParts = model(batch, self._window.divisors, self._window.scales)
        self._window.add(parts)
        # DDP and FSDP average gradients over ranks, the window's loss is their sum.
        loss = parts.loss * self.accelerator.num_processes
        return (loss, parts) if return_outputs else loss

    def _precision(self) -> AbstractContextManager[None]:
        """That of a forward pass, where Accelerate does not wrap the model in it: it leaves it to FSDP's own."""
        if not self.is_fsdp_enabled:
            return nullcontext()
        # Casts that are kept would be all weights whole once more.
        found: AbstractContextManager[None] = self.accelerator.autocast(AutocastKwargs(cache_enabled=False))
        return found

    def load_weights(self, checkpoint: Path) -> None:
        """The weights of a checkpoint, and nothing to train: what is left to do where it is the last step's."""
        if self.is_fsdp_enabled:  # pieces are read into pieces
            self.accelerator.prepare(self.model, self.create_optimizer())
        self._load_from_checkpoint(str(checkpoint))

    def check_result(self, sample: Batch) -> None:
        """That a model came out: its weights are numbers, and it still predicts rows that it was trained on.

        One step can throw a model away, and the loss of that step is from before it.

        Args:
            sample: any batch of the training set, the same one on every rank.

        Raises:
            DivergedError: it is lost.
        """
        after = f"after the last step ({len(self.steps)})"
        trained = {name: piece(weight) for name, weight in self.model.named_parameters() if weight.requires_grad}
        most_here = [
            weight.abs().max().float() if weight.numel() else weight.new_zeros(()) for weight in trained.values()
        ]
        # of all processes, which find the same; one wait for all
        largest = self.accelerator.gather(torch.stack(most_here)[None]).amax(0).tolist()
        for name, most in zip(trained, largest, strict=True):
            if not math.isfinite(most):
                raise DivergedError(f"{name} holds numbers that are not finite {after}")
            if most > HUGE:
                raise DivergedError(f"{name} holds {most:.3g} {after}")
        with self.accelerator.autocast():
            found = self.model.cross_entropy(sample.to(self.args.device), min(self._room.collator.chunk_rows, 256))
        guessing = math.log(self.model.vocabulary)
        began = next((step["ce"] for step in self.steps if math.isfinite(step["ce"])), guessing)
        if not found <= LOST * max(began, guessing):
            raise DivergedError(
                f"the cross-entropy is {found:.3g} nats a token {after}, and was {began:.3g} at the first"
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the optimiser step did to the Trainer's log, so that trackers see it, and keep it."""
        if "learning_rate" in logs:
            logs |= self._window.means(self.accelerator)
            if self._looks is not None:
                logs |= self._looks.look(self.state.global_step, self.steps)
            self.steps.append({"step": self.state.global_step, **{k: float(v) for k, v in logs.items()}})
            for name in ("loss", "grad_norm"):
                if not math.isfinite(value := self.steps[-1].get(name, 0.0)):
                    raise DivergedError(f"the {name} of step {self.state.global_step} is {value}")
            self._recompilations.look(self.state.global_step)
            if self._on_step:
                self._on_step(self.steps[-1])
        super().log(logs, start_time)


def train(
    distiller: Distiller,
    examples: Sequence[AlignedExample],
    collator: Collator,
    training: Training,
    *,
    steps: int,
    seed: int,
    work: Path,
    rollouts: Rollouts | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
    dev_bits_per_byte: Callable[[], float] | None = None,
    room: Room | None = None,
) -> list[dict[str, float]]:
    """Train in place, going on from the newest whole checkpoint in ``work``.

    Args:
        examples: in the order of their data set; the seed decides the order of training.
        steps: optimiser steps of the whole run.
        seed: of the order of examples and of dropout; a hash of named coordinates.
        work: folder for checkpoints; the caller removes it when the result is stored.
        rollouts: makes the micro-batches that the student samples, where an objective asks for them.
        dev_bits_per_byte: of the model on held-out rows, where the best weights on them are kept.
        room: halves what is in memory at once where a step does not fit.

    Returns:
        One dict an optimiser step: loss, ce, kd_k, kd_ce_ratio_k, grad_norm, lr, tokens, at a look dev_bits_per_byte.

    Raises:
        DivergedError: a loss, a gradient norm or the weights that came out are no numbers.
        DoesNotFitError: a step does not fit into memory, however small its pieces.
    """
    marker, room = CheckpointMarker(), room or Room(collator)
    if collator.packing:
        check_packing(distiller.student)
    looks = dev_bits_per_byte and Looks(distiller, dev_bits_per_byte, steps, training.evaluations, work)
    read_ahead = ReadAhead(collator, pin=torch.cuda.is_available())
    micro = training.micro_batch(world_size(), sampled=rollouts is not None)
    trainer = DistillationTrainer(
        model=distiller,
        args=arguments_of(training, distiller.student, micro, steps, seed, work),
        train_dataset=list(examples),
        data_collator=read_ahead,
        callbacks=[marker],
        room=room,
        sampler=_order(examples, training, seed),
        rollouts=rollouts,
        draws_share=training.drawn_together // micro,
        on_step=on_step,
        looks=looks,
    )
    trainer.remove_callback(PrinterCallback)
    try:
        _go_on(trainer, _resumed(trainer, marker, work), steps)
        if looks is not None:
            looks.take_best(trainer.steps)
        trainer.check_result(collator.collate(examples[: room.responses(micro)]))
    finally:
        read_ahead.close()
    return trainer.steps


def _go_on(trainer: DistillationTrainer, checkpoint: Path | None, steps: int) -> None:
    """Take what is left of the steps."""
    if checkpoint is not None and len(trainer.steps) >= steps:
        trainer.load_weights(checkpoint)  # the Trainer would take one step more before it looks at their number
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _resumed(trainer: DistillationTrainer, marker: CheckpointMarker, work: Path) -> Path | None:
    """The newest whole checkpoint, the same on all ranks, whose steps the trainer and the marker then have."""
    found = [latest_checkpoint(work)] if trainer.accelerator.is_main_process else [None]
    checkpoint: Path | None = broadcast_object_list(found)[0]
    if checkpoint is not None:
        check_checkpoint(checkpoint, sharded=trainer.is_fsdp_enabled)
        trainer.steps = STEPS.load(checkpoint)
    marker.steps = trainer.steps
    return checkpoint


def _order(examples: Sequence[AlignedExample], training: Training, seed: int) -> LengthBuckets | None:
    """Buckets by the trained model's tokens, so that the order is the same for every method; None for the Trainer's."""
    if training.bucket != "length":
        return None
    return LengthBuckets([each.example.sides[STUDENT].length for each in examples], training.batch_size, seed)
