"""What a plan costs: operations, hours and memory by device, disk. From shapes, or from what was measured here.

Every number is an estimate with its assumption beside it. Operations are counted from the models' shapes (2 a weight
and token forward, 3 times that with the backward pass) and from the bytes of the data. Seconds are the sum of

* operations at :data:`UTILISATION` of what the device multiplies,
* :data:`LAYER_SECONDS` of launching kernels a layer and forward pass, which rules for small models,
* the loss's traffic over logits at the device's bandwidth, and what a method computes on the CPU,
* generated tokens (:mod:`harness.plan.costs.decoding`).

The constants are what one H100 and one H200 took (:mod:`harness.plan.costs.devices`). Where the store holds a
training like the planned one, made on this machine with any number of steps, its seconds a step are taken instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from harness.base.device import chunk_room, rows_in
from harness.base.ranks import world_size
from harness.data.chunk_memory import row_bytes
from harness.data.tokens import STUDENT
from harness.models.spec import Lora
from harness.plan.costs.decoding import ANSWERS_AT_A_TIME, decoding, reading, recording
from harness.plan.costs.devices import (
    CE_TRAFFIC,
    COUNTED_TRAFFIC,
    DEVICES,
    KD_TRAFFIC,
    KERNEL_TRAFFIC,
    NODE,
    RECOUNTED_TRAFFIC,
    SORT_TRAFFIC,
    Cost,
    Device,
)
from harness.plan.costs.shapes import PROMPT_BYTES_PER_TOKEN, FloatArray, Shape, TextSizes, longest_of, shape_of
from harness.plan.objectives import ObjectiveSpec
from harness.plan.stages import Plan, Stage
from harness.recipe.schema import Recipe
from harness.recipe.training import AUTO_PARAMETERS, AUTO_TOKENS, Training
from harness.tasks.base import Split
from methods.base import Method, Need, OnPolicyOptions
from methods.library.rollout_share import mean_share

KEPT = 3.0
"""Tokens that a round of speculative KD is taken to keep, of the five that it proposes."""

_LESS: Mapping[str, object] = {"micro_batch_size": 1, "gradient_checkpointing": True, "chunk_rows": 64}
"""Settings that take less memory and change no result, the cheapest in time first."""


class Coster:
    """Costs of a plan's stages.

    Args:
        plan: of a recipe.

    Raises:
        HarnessError: a model's config is not known.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.recipe = plan, plan.recipe
        self.gpus = world_size() if world_size() > 1 else NODE
        self.shapes = {role: shape_of(spec) for role, spec in plan.recipe.models_by_role().items()}
        # Read once: stages of a plan are many, its data is not.
        self._read: dict[tuple[str, Split], FloatArray] = {}
        self._sizes: dict[tuple[str, str, Split], TextSizes] = {}
        self._prompts: dict[str, FloatArray] = {}

    def cost(self, stage: Stage, recipe: Recipe | None = None, gpus: int | None = None) -> Cost:
        """Of one stage; with another recipe's settings of speed and memory.

        Args:
            gpus: that share the weights of a training that is sharded; None: those of the launcher, or of one node.
        """
        training = partial(self._training, gpus=gpus or self.gpus)
        makers: dict[str, Callable[[Stage, Recipe], Cost]] = {
            "teacher": training,
            "warm_start": training,
            "student": training,
            "rows": self._rows,
            "said": self._said,
            "answers": self._answers,
            "bits": self._bits,
            "scores": self._scores,
        }
        return makers[stage.kind](stage, recipe or self.recipe)

    def remedy(self, stage: Stage, device: Device) -> str:
        """The first setting, or several together, with which a stage fits a device; empty where none is known."""
        if stage.kind == "answers":
            return self._first_that_fits(stage, device, [{"evaluation.batch_size": size} for size in (32, 8, 1)])
        if stage.training is None:
            return ""
        steps: list[dict[str, object]] = []
        tried: dict[str, object] = {}
        graphed = not stage.training.shard and _graphs_fit(self.shapes[stage.role or STUDENT], stage.training)
        less = {"cuda_graphs": "off", **_LESS} if graphed else _LESS  # they only make it faster
        for name, value in {**less, "lora": Lora(rank=64, alpha=128)}.items():
            if getattr(stage.training, name) != value:
                tried[f"{stage.section}.{name}"] = value
                steps.append(dict(tried))
        return self._first_that_fits(stage, device, steps)

    def shared(self, stage: Stage, device: Device) -> tuple[str, int] | None:
        """How a training fits as it is, none of its weights frozen, in pieces on several devices of a node.

        Returns:
            Settings, and the fewest devices; None where it does not, or where the student samples responses.
        """
        training, objective = stage.training, stage.objective
        if training is None or training.lora or (objective and any(method.sampling for method in objective.methods)):
            return None
        changes: dict[str, object] = {}
        for name, value in {"shard": True, **_LESS}.items():
            if getattr(training, name) != value:
                changes[f"{stage.section}.{name}"] = value
            for gpus in (2, 4, NODE):
                if self.cost(stage, _changed(self.recipe, changes), gpus).memory <= device.memory:
                    return _as_overrides(changes), gpus
        return None

    def _first_that_fits(self, stage: Stage, device: Device, steps: Sequence[Mapping[str, object]]) -> str:
        for changes in steps:
            if self.cost(stage, _changed(self.recipe, changes)).memory <= device.memory:
                return _as_overrides(changes)
        return ""

    # Training

    def _training(self, stage: Stage, recipe: Recipe, gpus: int) -> Cost:
        training: Training = getattr(recipe, stage.section)
        role, objective = stage.role or STUDENT, stage.objective
        shape, texts = self.shapes[role], self._texts(stage.task, role)
        micro = training.micro_batch()
        passes = stage.steps * training.batch_size / micro
        tokens, longest = texts.batches(micro)
        rows = texts.rows / max(len(texts.responses), 1) * micro
        length = tokens / micro
        # Forward, and twice that backward; without gradients of frozen weights once; recomputed activations once more.
        frozen, again = training.lora is not None, training.gradient_checkpointing
        flops = shape.forward(tokens, length) * ((2 if frozen else 3) + again)
        flops += shape.logits(rows) * (2 if frozen else 3)
        launches = float(shape.layers * (3 + again))
        traffic = CE_TRAFFIC * rows * shape.vocabulary + 24.0 * _trained(shape, training) * micro / training.batch_size
        width = _width(training)
        memory = float(width * shape.parameters)  # without a step, only what reads its weights needs room for them
        if passes:
            memory = self._training_memory(shape, training, longest, texts, objective, gpus if training.shard else 1)
        cpu = 0.0
        for part in objective.taught if objective else ():
            method, teacher = part.method, part.role
            other, read = self.shapes[teacher], self._texts(stage.task, teacher)
            theirs = read.rows / max(len(read.responses), 1) * micro
            flops += other.logits(theirs)
            if stage.inputs[teacher].kind != "rows":
                live, _ = read.batches(micro)
                flops += other.forward(live, live / micro)
                launches += other.layers
            before = len({Need.ENTROPY, Need.SURVEY, Need.ROW_SCALARS} & method.needs)  # passes over both sides' rows
            flops += before * (shape.logits(rows) + other.logits(theirs))
            traffic += before * CE_TRAFFIC / 3 * (rows * shape.vocabulary + theirs * other.vocabulary)
            if Need.HIDDEN in method.needs:  # both sides' rows through the other's head too, forward and backward
                flops += 3 * (shape.logits(rows) + other.logits(theirs))
                traffic += CE_TRAFFIC * (rows * shape.vocabulary + theirs * other.vocabulary)
            traffic += kd_traffic(method) * (rows * shape.vocabulary + theirs * other.vocabulary)
            cpu += rows * method.align_seconds
        a_pass = Cost(flops, launches, traffic, cpu, fp32=width == 4)
        own = self._own_text(stage, shape, width, micro, tokens, rows, training.batch_size / micro)
        disk = 4.0 * _trained(shape, training) if training.lora else 4.0 * shape.parameters
        if stage.kind == "student" and not self.recipe.keep_students:
            disk = 0.0
        return replace((a_pass + own).times(passes), memory=memory, disk=disk)

    def _own_text(
        self, stage: Stage, shape: Shape, width: int, micro: int, tokens: float, rows: float, window: float
    ) -> Cost:
        """What a micro-batch's share of sampled responses takes.

        Args:
            width: bytes of what is multiplied: the student samples as it trains, in autocast's precision.
            tokens, rows: of a micro-batch.
            window: micro-batches of a step, whose samples are drawn at once, where there are any.
        """
        found = Cost()
        for part in stage.objective.parts if stage.objective else ():
            method, sampling = part.method, part.method.sampling
            if sampling is None:
                continue
            share = mean_share(sampling.rollout_share)
            calls = (1 - (1 - share) ** window) / window
            if calls:
                found += self._drawn(stage, shape, share * micro / calls, width, sampling).times(calls)
            if Need.REWARDS in method.needs:
                found += Cost(traffic=CE_TRAFFIC * rows * shape.vocabulary)
                if Need.START in method.needs:  # of the start, a whole model's pass
                    found += Cost(shape.forward(tokens, tokens / micro) + shape.logits(rows))
            if sampling.rollouts == "skd":  # each round reads all of a text, the teacher twice
                rounds, other = sampling.rollout_tokens / KEPT, self.shapes[part.role]
                live, _ = self._texts(stage.task, part.role).batches(micro)
                once = shape.forward(tokens, tokens / micro) + 2 * other.forward(live, live / micro)
                found += Cost(share * rounds * once, calls * rounds * 2 * other.layers)
        return found

    def _drawn(self, stage: Stage, shape: Shape, rows: float, width: int, sampling: OnPolicyOptions) -> Cost:
        """Responses of the student's own to so many prompts at once; a graph is recorded anew, as weights moved on."""
        prompts = self._texts(stage.task, stage.role or STUDENT).prompts
        longest = longest_of(prompts, round(rows))
        made = decoding(shape, rows, longest + sampling.rollout_tokens, sampling.rollout_tokens, width, sampled=True)
        return recording(shape) + reading(shape, rows, float(prompts.mean())) + made

    def _training_memory(
        self,
        shape: Shape,
        training: Training,
        tokens: float,
        texts: TextSizes,
        objective: ObjectiveSpec | None,
        gpus: int,
    ) -> float:
        width = _width(training)
        memory = _held(shape, training, gpus)
        if width == 2:  # autocast's copies of weights live until the backward pass; recomputation casts again
            again = training.gradient_checkpointing and (training.lora or gpus > 1)
            memory += 2.0 * shape.body / (shape.layers if again else 1)
        if not training.lora:
            memory += 8.0 * shape.head  # of the head's gradient: the sum over chunks, and that of one
        kept = shape.layer_activations(width, float((texts.prompts + texts.responses).max()))
        recomputed = training.gradient_checkpointing
        memory += tokens * (kept + 4.0 * shape.hidden * shape.layers if recomputed else kept * shape.layers)
        memory += 2.0 * 4 * tokens * shape.hidden  # rows and their gradient
        parts, methods = (objective.taught, objective.methods) if objective else ((), ())
        memory += 4.0 * shape.parameters * any(Need.START in method.needs for method in methods)
        rows, row_size = self._chunk(shape, training, objective)
        whole = any(Need.WHOLE_RESPONSE in method.needs for method in methods)
        chunk = row_size * min(max(rows, float(texts.responses.max()) if whole else 0.0), tokens)
        memory += chunk
        if gpus == 1 and _graphs_fit(shape, training, tokens):
            # Activations and gradients of the graphs' own, and copies of the latter when a chunk is there no more.
            gradients = 4.0 * _trained(shape, training)
            memory += tokens * kept * shape.layers + gradients + max(gradients - chunk, 0.0)
        for part in parts:
            other = self.shapes[part.role]
            live = objective is not None and objective.needs_live(part.role)
            memory += 2.0 * (other.parameters if live else other.head)
            if Need.HIDDEN in part.method.needs:
                # projectors with their gradients and moments; an inverse of the teacher's head, or its embeddings
                memory += 16.0 * part.method.projectors * shape.hidden * other.hidden + 4.0 * other.head
            memory = max(memory, 4.0 * shape.parameters + 2.0 * other.parameters)  # while heads are taken
        return max(memory, 4.0 * shape.parameters)  # whole before and after, where it is in pieces

    def _chunk(self, shape: Shape, training: Training, objective: ObjectiveSpec | None) -> tuple[float, float]:
        """Rows of a chunk on a GPU that has room, and the bytes that each takes."""
        parts = objective.taught if objective else ()
        terms = [(part.method, float(self.shapes[part.role].vocabulary)) for part in parts]
        of_row = row_bytes(shape.vocabulary, terms, _width(training), "kernels")
        head = 0 if training.lora else 4 * shape.head
        asked = training.chunk_rows
        return float(rows_in(chunk_room(head), of_row) if asked == "auto" else asked), of_row

    # What a trained model is asked

    def _rows(self, stage: Stage, recipe: Recipe) -> Cost:
        shape, texts = self.shapes[stage.role], self._texts(stage.task, stage.role)
        width = _width(recipe.teacher)
        longest = float((texts.prompts + texts.responses).max()) * 8
        memory = width * shape.parameters + 8.0 * longest * (shape.hidden * 4 + shape.inner * 3)
        batches = -(-len(texts.responses) // 8)
        disk = self.recipe.teacher_rows.row_bytes(shape.hidden, width) * (texts.rows + len(texts.responses))
        tokens = texts.tokens
        flops = shape.forward(tokens, tokens / max(len(texts.responses), 1))
        return Cost(flops, float(batches * shape.layers), 0.0, 0.0, memory, disk, fp32=width == 4)

    def _answers(self, stage: Stage, recipe: Recipe) -> Cost:
        task = self.plan.tasks[stage.task]
        shape = self.shapes[stage.role or STUDENT]
        width = 2 if stage.role else 4  # students answer in float32, teachers in what they scored in
        prompts = np.ceil(self._requests(stage.task) / PROMPT_BYTES_PER_TOKEN) + 1
        prompts = np.minimum(prompts, task.prompt_tokens) if task.prompt_tokens else prompts
        new_tokens = task.settings.new_tokens
        longest, weights = float(prompts.max()) + new_tokens, float(width * shape.parameters)
        a_row = longest * shape.layers * 2 * shape.keys * width + 16.0 * shape.vocabulary
        a_row += 4.0 * float(prompts.max()) * (4 * shape.hidden + 3 * shape.inner)
        fits = max(min(int((DEVICES[-1].memory - weights) / 2 / a_row), ANSWERS_AT_A_TIME), 1)
        asked = recipe.evaluation.batch_size  # auto adapts to the device; what fits the smallest fits all
        batch = min(fits if isinstance(asked, str) else asked, len(prompts))
        batches = -(-len(prompts) // batch)
        at_once = len(prompts) / batches
        made = decoding(shape, at_once, longest, new_tokens, width, sampled=task.samples_answers).times(batches)
        found = recording(shape) + reading(shape, len(prompts), float(prompts.mean()), batches) + made
        disk = float(len(prompts) * new_tokens * 4)
        return replace(found, memory=weights + batch * a_row, disk=disk, fp32=width == 4)

    def _said(self, stage: Stage, recipe: Recipe) -> Cost:
        """As many answers as there are training prompts, which are as long as the test's."""
        asked, rows = len(self._requests(stage.task)), self.plan.tasks[stage.task].training_count()
        return self._answers(stage, recipe).times(rows / max(asked, 1))

    def _bits(self, stage: Stage, recipe: Recipe) -> Cost:
        role = stage.role or STUDENT
        shape, texts = self.shapes[role], self._texts(stage.task, role, "test")
        width = 2 if stage.role else 4
        flops = shape.forward(texts.tokens, texts.tokens / max(len(texts.responses), 1)) + shape.logits(texts.rows)
        batches = -(-len(texts.responses) // 8)
        memory = width * shape.parameters + 4.0 * 256 * shape.vocabulary * 3
        longest = float((texts.prompts + texts.responses).max()) * 8 if len(texts.responses) else 0.0
        memory += longest * 4 * (4 * shape.hidden + 3 * shape.inner)
        return Cost(flops, float(batches * shape.layers), 0.0, 0.0, memory, 0.0, fp32=width == 4)

    def _scores(self, stage: Stage, recipe: Recipe) -> Cost:
        return Cost(cpu=self.plan.tasks[stage.task].judge_seconds * len(self._requests(stage.task)))

    def _texts(self, task: str, role: str, split: Split = "train") -> TextSizes:
        if (task, role, split) not in self._sizes:
            ratio = self.shapes[role].bytes_per_token.get(self.plan.tasks[task].text, 3.0)
            limit = self.recipe.limits.length
            self._sizes[task, role, split] = TextSizes.of(self._bytes(task, split), ratio, limit)
        return self._sizes[task, role, split]

    def _bytes(self, task: str, split: Split) -> FloatArray:
        """[rows, 2]: of prompts and responses."""
        if (task, split) not in self._read:
            sizes = self.plan.tasks[task].text_sizes(split)
            self._read[task, split] = np.array(sizes, dtype=np.float64).reshape(-1, 2)
        return self._read[task, split]

    def _requests(self, task: str) -> FloatArray:
        """[requests]: bytes of prompts."""
        if task not in self._prompts:
            self._prompts[task] = np.array(self.plan.tasks[task].request_sizes(), dtype=np.float64)
        return self._prompts[task]


def kd_traffic(method: Method) -> float:
    """Bytes read and written on a GPU for one logit of a method's term, on either side."""
    has_kernels = method.held_into is not None and Need.HIDDEN not in method.needs  # those of hidden rows have none
    if not method.sorts:
        return KERNEL_TRAFFIC if has_kernels else KD_TRAFFIC
    sort = getattr(method.options, "sort", "top_k")
    if not has_kernels or sort == "top_k":
        return SORT_TRAFFIC
    return RECOUNTED_TRAFFIC if sort == "exact" else COUNTED_TRAFFIC


def _width(training: Training) -> int:
    """Bytes of what a GPU multiplies in."""
    return 4 if training.precision == "float32" else 2


def _held(shape: Shape, training: Training, gpus: int) -> float:
    """Bytes of weights, gradients and AdamW's two moments, all in float32, on each of the GPUs that share them."""
    trained, layer = _trained(shape, training), 4.0 * shape.body / shape.layers
    held = (4.0 * shape.parameters + 12.0 * trained) / gpus
    if gpus > 1:  # embeddings and head are whole in a step, and so are a layer, the one that is fetched, and gradients
        ends = 4.0 * (shape.parameters - shape.body)
        held += ends + 2 * layer
        if not training.lora:
            held += ends - 4.0 * shape.head + 2 * layer  # that of the head is counted with the loss
    return held


def _graphs_fit(shape: Shape, training: Training, tokens: float = 0.0) -> bool:
    """Whether the layers' passes over so many tokens are recorded as CUDA graphs."""
    if training.cuda_graphs == "off" or training.gradient_checkpointing or training.packing or shape.scores:
        return False
    small = shape.parameters < AUTO_PARAMETERS and tokens <= AUTO_TOKENS
    return training.cuda_graphs == "on" or small


def _trained(shape: Shape, training: Training) -> float:
    """Weights that are trained: all, or those of adapters at every matrix of the layers."""
    if training.lora is None:
        return float(shape.parameters)
    matrices = 2 * (shape.hidden + shape.queries) + 2 * (shape.hidden + shape.keys) + 3 * (shape.hidden + shape.inner)
    return float(training.lora.rank * shape.layers * matrices)


def _changed(recipe: Recipe, changes: Mapping[str, object]) -> Recipe:
    """The recipe with other values at dotted paths of two parts."""
    for path, value in changes.items():
        part, _, field = path.partition(".")
        recipe = recipe.model_copy(update={part: getattr(recipe, part).model_copy(update={field: value})})
    return recipe


def _as_overrides(changes: Mapping[str, object]) -> str:
    return " ".join(f"{name}={_said(value)}" for name, value in changes.items())


def _said(value: object) -> str:
    if isinstance(value, Lora):
        return f"'{{rank: {value.rank}, alpha: {value.alpha:g}}}'"
    return str(value).lower()
