"""What a plan costs: operations, hours and memory by device, disk. From shapes, or from what was measured here.

Every number is an estimate with its assumption beside it. Operations are counted from the models' shapes (2 a weight
and token forward, 3 times that with the backward pass) and from the bytes of the data. Seconds are the sum of

* operations at :data:`UTILISATION` of what the device multiplies,
* :data:`LAYER_SECONDS` of launching kernels a layer and forward pass, which rules for small models,
* the loss's traffic over logits at the device's bandwidth, and what a method computes on the CPU.

The four constants reproduce what was measured on one H100 (see tests/test_costs.py). Where the store holds a training
like the planned one, made on this machine with any number of steps, its seconds a step are taken instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from rich.console import Group
from rich.table import Table
from rich.text import Text

from harness import models
from harness.errors import HarnessError
from harness.files import digest_of
from harness.identity import environment
from harness.plan import ObjectiveSpec, Plan, Stage
from harness.progress import gigabytes
from harness.recipe import Lora, ModelSpec, Training
from harness.run import TIMING
from harness.store import Store
from harness.tokens import STUDENT
from methods.base import Method, Need

GIB = 2.0**30
UTILISATION = 0.4
LAYER_SECONDS = 1.3e-3
"""Of one forward pass through one layer, whatever its size; a backward pass takes twice that."""
DECODING_LAYER_SECONDS = 0.5e-3
"""Of one layer for one generated token: no gradient, nothing to cast."""
DRAW_SECONDS = 20e-9
"""Of the noise for one vocabulary entry of a sampled token; it is drawn on the CPU."""
JUDGE_SECONDS = 0.35
"""Of one program in EvalPlus, on 2 cores."""
CE_TRAFFIC = 48.0
"""Bytes read and written for one logit, cross-entropy and its gradient included."""
KD_TRAFFIC = 60.0
SORT_TRAFFIC = 270.0
"""The same for a logit of a distillation term that takes softmaxes, and of one that sorts."""
_SORTING = {"uld": 1.0, "gold": 1.0}
CPU_SECONDS = {"cdm": 4e-4, "mined": 2e-5}
"""Of alignment and mapping, a response token: CDM's at k = 100 (benchmarks/alignment.py); it grows with k squared."""
_PROMPT_BYTES_PER_TOKEN = 4.0

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Device:
    """A kind of GPU: memory that is free for a process, dense bf16 and fp32 operations a second, bytes a second."""

    name: str
    memory: float
    bf16: float
    fp32: float
    bandwidth: float


DEVICES = (
    Device("H100 80 GB", 78 * GIB, 989e12, 67e12, 3.0e12),
    Device("A100 40 GB", 39 * GIB, 312e12, 19.5e12, 1.4e12),
    Device("RTX 4090 24 GB", 23 * GIB, 165e12, 82e12, 0.95e12),
)
"""Vendors' dense numbers (no sparsity); bandwidth as programs reach it, nine tenths of theirs."""


# --- Shapes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A model's sizes.

    Attributes:
        parameters: all weights, tied ones once.
        body: weights of the layers, which every token passes: all but embeddings and head.
        head: weights of the output head, [vocabulary, hidden].
        layers, hidden, vocabulary: of the decoder.
        inner: width of the feed-forward part.
        queries, keys: width of all query heads, and of all key heads.
        normed: width of all that a layer normalises.
        gated: whether the feed-forward part multiplies two projections.
        scores: heads whose attention scores are kept, all of them with eager attention and none with sdpa.
        bytes_per_token: of a task's responses, by task.
    """

    parameters: int
    body: int
    head: int
    layers: int
    hidden: int
    vocabulary: int
    inner: int
    queries: int
    keys: int
    normed: int
    gated: bool
    scores: int
    bytes_per_token: Mapping[str, float]

    @classmethod
    def of(
        cls, config: Any, bytes_per_token: Mapping[str, float], layers: int | None = None, eager: bool = False
    ) -> Shape:
        """The sizes of a config's model, built on the meta device: no memory, no weights.

        Args:
            layers: of a pruned model.
            eager: whether attention keeps its scores.
        """
        import torch
        from transformers import AutoModelForCausalLM

        text = config.get_text_config()
        if layers is not None:
            text.num_hidden_layers = layers
            if getattr(text, "layer_types", None):
                text.layer_types = text.layer_types[:layers]
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        head = model.get_output_embeddings().weight
        looked_up = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
        outside = sum(weight.numel() for weight in {id(weight): weight for weight in [head, *looked_up]}.values())
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        key_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        queries, keys = text.num_attention_heads * width, key_heads * width
        first = [name for name, _ in model.named_parameters() if ".layers.0." in name]
        norms = [name for name in first if "norm" in name and name.endswith("weight")]
        of_heads = [name for name in norms if "q_norm" in name or "k_norm" in name]
        return cls(
            parameters=parameters,
            body=parameters - outside,
            head=head.numel(),
            layers=text.num_hidden_layers,
            hidden=head.shape[1],
            vocabulary=head.shape[0],
            inner=getattr(text, "intermediate_size", None) or text.ffn_dim,
            queries=queries,
            keys=keys,
            normed=(len(norms) - len(of_heads)) * head.shape[1] + (queries + keys if of_heads else 0),
            gated=any("gate" in name for name in first),
            scores=text.num_attention_heads if eager else 0,
            bytes_per_token=bytes_per_token,
        )

    def forward(self, tokens: float, length: float) -> float:
        """Operations of the layers for so many tokens in sequences of a length: weights, and causal attention."""
        return tokens * (2.0 * self.body + 2.0 * self.layers * self.queries * length)

    def logits(self, rows: float) -> float:
        """Operations of the head."""
        return 2.0 * self.head * rows

    def layer_activations(self, width: int, length: float) -> float:
        """Bytes that one layer keeps for the backward pass, a token, with matrix products in ``width`` bytes.

        Norms compute in float32, and beside bf16 products they keep more. Measured with tests/test_costs.py.

        Args:
            length: of the sequences, for scores of eager attention.
        """
        norms = (9.0 if width == 2 else 4.0) * self.normed
        attention = width * (self.hidden + 4.0 * self.queries + 2.0 * self.keys) + 10.0 * self.scores * length
        return norms + attention + width * (self.hidden + (4.0 if self.gated else 1.0) * self.inner)


def architectures() -> dict[str, Any]:
    """The file of shapes that come with the harness."""
    loaded: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("architectures.yaml").read_text(encoding="utf-8"))
    return loaded


def shape_of(spec: ModelSpec) -> Shape:
    """Sizes of a recipe's model: from its config where it is downloaded, else from the file of shapes.

    Raises:
        HarnessError: neither is there.
    """
    from transformers import AutoConfig

    uri = models.parse_uri(spec.model)
    known = architectures()
    repository = uri.repository or next((k.source for k in models.KNOWN_MODELS.values() if k.uri == spec.model), "")
    entry = known["models"].get(repository)
    tokenizer = entry["tokenizer"] if entry else "unknown"
    ratios = {name: ratio for name, ratio in known["bytes_per_token"][tokenizer].items() if name != "measured_with"}
    if models.is_downloaded(uri):
        config = AutoConfig.from_pretrained(models.resolve(uri, download=False).folder, local_files_only=True)
    elif entry:
        fields = dict(entry["config"])
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    else:
        raise HarnessError(
            spec.model, "no config on this machine", "a downloaded model, or one of architectures.yaml", "Download it."
        )
    return Shape.of(config, ratios, spec.layers, spec.attention == "eager")


# --- Texts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Texts:
    """Rows of a task in tokens of one model.

    Attributes:
        prompts, responses: [rows], cut at the limit, the end of sequence included.
    """

    prompts: FloatArray
    responses: FloatArray

    @classmethod
    def of(cls, sizes: FloatArray, ratio: float, limit: int) -> Texts:
        """From [rows, 2] bytes of prompts and responses."""
        prompts = np.ceil(sizes[:, 0] / _PROMPT_BYTES_PER_TOKEN) + 1
        kept = prompts < limit
        prompts = prompts[kept]
        return cls(prompts, np.minimum(np.ceil(sizes[kept, 1] / ratio) + 1, limit - prompts))

    @property
    def tokens(self) -> float:
        """Of all rows."""
        return float((self.prompts + self.responses).sum())

    @property
    def rows(self) -> float:
        """Response tokens of all rows."""
        return float(self.responses.sum())

    def batches(self, size: int) -> tuple[float, float]:
        """Of shuffled batches: mean and largest number of tokens with padding."""
        lengths = np.random.default_rng(0).permutation(self.prompts + self.responses)
        size = min(size, len(lengths))
        whole = lengths[: len(lengths) // size * size].reshape(-1, size)
        longest = float(np.sort(lengths)[-size:].max()) * size
        return float(whole.max(1).mean() * size), longest


def _sizes(texts: Sequence[tuple[str, str]]) -> FloatArray:
    return np.array([[len(a.encode()), len(b.encode())] for a, b in texts], dtype=np.float64).reshape(-1, 2)


# --- Stages -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Of one stage.

    Attributes:
        flops: in the stage's matrix products; ``fp32`` says whether these run in float32.
        launches: layers of forward passes, counted in :data:`LAYER_SECONDS`.
        traffic: bytes that the loss, or decoding, moves.
        cpu: seconds that a GPU waits for.
        memory: bytes on the device, at the most.
        disk: bytes that stay.
    """

    flops: float = 0.0
    launches: float = 0.0
    traffic: float = 0.0
    cpu: float = 0.0
    memory: float = 0.0
    disk: float = 0.0
    fp32: bool = False

    def seconds(self, device: Device) -> float:
        """Estimated on a device, whether or not it has the memory."""
        rate = device.fp32 if self.fp32 else device.bf16
        products = self.flops / (UTILISATION * rate)
        return products + self.launches * LAYER_SECONDS + self.traffic / device.bandwidth + self.cpu


class Coster:
    """Costs of a plan's stages.

    Args:
        plan: of a recipe.

    Raises:
        HarnessError: a model's config is not known.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.recipe = plan, plan.recipe
        self.shapes = {role: shape_of(spec) for role, spec in plan.recipe.models_by_role().items()}

    def cost(self, stage: Stage, recipe: Any = None) -> Cost:
        """Of one stage; with another recipe's settings of speed and memory."""
        makers: dict[str, Callable[[Stage, Any], Cost]] = {
            "teacher": self._teacher,
            "warm_start": self._warm_start,
            "student": self._student,
            "rows": self._rows,
            "answers": self._answers,
            "bits": self._bits,
            "scores": self._scores,
        }
        return makers[stage.kind](stage, recipe or self.recipe)

    def remedy(self, stage: Stage, device: Device) -> str:
        """The first setting, or several together, with which a stage fits a device; empty where none is known."""
        student = "train" if "start" in stage.inputs else "warm_start"  # sft trains as the warm start does
        part = {"teacher": "teacher", "warm_start": "warm_start", "student": student}.get(stage.kind)
        if stage.kind == "answers":
            steps = [{"evaluation.batch_size": size} for size in (32, 8, 1)]
            return self._first_that_fits(stage, device, steps)
        if part is None:
            return ""
        steps = []
        tried: dict[str, Any] = {}
        for name, value in (
            ("micro_batch_size", 1),
            ("gradient_checkpointing", True),
            ("chunk_rows", 64),
            ("lora", Lora(rank=64, alpha=128)),
        ):
            if getattr(getattr(self.recipe, part), name) != value:
                tried[f"{part}.{name}"] = value
                steps.append(dict(tried))
        return self._first_that_fits(stage, device, steps)

    def _first_that_fits(self, stage: Stage, device: Device, steps: Sequence[Mapping[str, Any]]) -> str:
        for changes in steps:
            if self.cost(stage, _changed(self.recipe, changes)).memory <= device.memory:
                return " ".join(f"{name}={_said(value)}" for name, value in changes.items())
        return ""

    # Training

    def _teacher(self, stage: Stage, recipe: Any) -> Cost:
        return self._training(stage, stage.role, recipe.teacher, None)

    def _warm_start(self, stage: Stage, recipe: Any) -> Cost:
        return self._training(stage, STUDENT, recipe.warm_start, None)

    def _student(self, stage: Stage, recipe: Any) -> Cost:
        training = recipe.train if "start" in stage.inputs else recipe.warm_start
        return self._training(stage, STUDENT, training, stage.objective)

    def _training(self, stage: Stage, role: str, training: Training, objective: ObjectiveSpec | None) -> Cost:
        shape, texts = self.shapes[role], self._texts(stage.task, role)
        micro = min(training.micro_batch_size or training.batch_size, training.batch_size)
        passes = int(stage.values["steps"]) * training.batch_size / micro
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
            memory = self._training_memory(shape, training, longest, texts, objective)
        cpu = 0.0
        for method, teacher in zip(objective.methods, objective.roles, strict=False) if objective else ():
            other, read = self.shapes[teacher], self._texts(stage.task, teacher)
            theirs = read.rows / max(len(read.responses), 1) * micro
            flops += other.logits(theirs)
            if stage.inputs[teacher].kind != "rows":
                live, _ = read.batches(micro)
                flops += other.forward(live, live / micro)
                launches += other.layers
            if Need.ENTROPY in method.needs:
                flops += shape.logits(rows) + other.logits(theirs)
                traffic += CE_TRAFFIC / 3 * (rows * shape.vocabulary + theirs * other.vocabulary)
            passed = SORT_TRAFFIC if method.name in _SORTING else KD_TRAFFIC
            traffic += passed * (rows * shape.vocabulary + theirs * other.vocabulary)
            cpu += rows * _cpu_seconds(method)
            if Need.ROLLOUTS in method.needs:
                drawn = self._decoding(shape, micro, method.options.rollout_tokens, 4, sampled=True)
                share = method.options.rollout_share
                traffic, cpu = traffic + share * drawn.traffic, cpu + share * drawn.cpu
                launches += share * drawn.launches
        disk = 4.0 * _trained(shape, training) if training.lora else 4.0 * shape.parameters
        if stage.kind == "student" and not self.recipe.keep_students:
            disk = 0.0
        return Cost(flops * passes, launches * passes, traffic * passes, cpu * passes, memory, disk, fp32=width == 4)

    def _training_memory(
        self, shape: Shape, training: Training, tokens: float, texts: Texts, objective: ObjectiveSpec | None
    ) -> float:
        trained, width = _trained(shape, training), _width(training)
        memory = 4.0 * shape.parameters + 12.0 * trained  # float32 weights; gradients and AdamW's two moments
        if width == 2:  # autocast's copies of weights live until the backward pass; recomputation casts again
            memory += 2.0 * shape.body / (shape.layers if training.lora and training.gradient_checkpointing else 1)
        if not training.lora:
            memory += 8.0 * shape.head  # of the head's gradient: the sum over chunks, and that of one
        kept = shape.layer_activations(width, float((texts.prompts + texts.responses).max()))
        memory += tokens * (
            kept + 4.0 * shape.hidden * shape.layers if training.gradient_checkpointing else kept * shape.layers
        )
        memory += 2.0 * 4 * tokens * shape.hidden  # rows and their gradient
        methods = objective.methods if objective else ()
        whole = any(Need.WHOLE_RESPONSE in method.needs for method in methods)
        most = 256 if training.chunk_rows == "auto" else training.chunk_rows  # auto takes less where memory is short
        chunk = max(most, float(texts.responses.max()) if whole else 0.0)
        memory += 4.0 * chunk * shape.vocabulary * 5
        for method, role in zip(methods, objective.roles if objective else (), strict=False):
            other = self.shapes[role]
            live = objective is not None and objective.needs_live(role)
            memory += 2.0 * (other.parameters if live else other.head)
            memory += 4.0 * chunk * (shape.vocabulary + other.vocabulary) * (4 if method.name in _SORTING else 3)
            memory = max(memory, 4.0 * shape.parameters + 2.0 * other.parameters)  # while heads are taken
        return memory

    # What a trained model is asked

    def _rows(self, stage: Stage, recipe: Any) -> Cost:
        shape, texts = self.shapes[stage.role], self._texts(stage.task, stage.role)
        width = _width(recipe.teacher)
        longest = float((texts.prompts + texts.responses).max()) * 8
        memory = width * shape.parameters + 8.0 * longest * (shape.hidden * 4 + shape.inner * 3)
        batches = -(-len(texts.responses) // 8)
        disk = self.recipe.teacher_rows.row_bytes(shape.hidden, width) * (texts.rows + len(texts.responses))
        tokens = texts.tokens
        flops = shape.forward(tokens, tokens / max(len(texts.responses), 1))
        return Cost(flops, float(batches * shape.layers), 0.0, 0.0, memory, disk, fp32=width == 4)

    def _answers(self, stage: Stage, recipe: Any) -> Cost:
        task, batch = self.plan.tasks[stage.task], recipe.evaluation.batch_size
        shape = self.shapes[stage.role or STUDENT]
        width = 2 if stage.role else 4  # students answer in float32, teachers in what they scored in
        prompts = np.ceil(self._requests(stage.task) / _PROMPT_BYTES_PER_TOKEN) + 1
        limit = getattr(task.settings, "prompt_tokens", None)
        prompts = np.minimum(prompts, limit) if limit else prompts
        new_tokens = task.settings.new_tokens
        batches = -(-len(prompts) // batch)
        sampled = getattr(task.settings, "decoding", "greedy") == "sampling"
        decoding = self._decoding(shape, min(batch, len(prompts)), new_tokens, width, sampled)
        longest = float(prompts.max()) + new_tokens
        cache_ = min(batch, len(prompts)) * longest * shape.layers * 2 * shape.keys * width
        memory = width * shape.parameters + cache_ + 16.0 * min(batch, len(prompts)) * shape.vocabulary
        memory += 4.0 * min(batch, len(prompts)) * float(prompts.max()) * (4 * shape.hidden + 3 * shape.inner)
        flops = shape.forward(float(prompts.sum()), float(prompts.mean()))
        flops += (2.0 * shape.body + 2.0 * shape.head) * len(prompts) * new_tokens
        return Cost(
            flops,
            batches * (decoding.launches + shape.layers),
            batches * decoding.traffic,
            batches * decoding.cpu,
            memory,
            float(len(prompts) * new_tokens * 4),
            fp32=width == 4,
        )

    def _bits(self, stage: Stage, recipe: Any) -> Cost:
        role = stage.role or STUDENT
        shape, texts = self.shapes[role], self._texts(stage.task, role, "test")
        width = 2 if stage.role else 4
        flops = shape.forward(texts.tokens, texts.tokens / max(len(texts.responses), 1)) + shape.logits(texts.rows)
        batches = -(-len(texts.responses) // 8)
        memory = width * shape.parameters + 4.0 * 256 * shape.vocabulary * 3
        longest = float((texts.prompts + texts.responses).max()) * 8 if len(texts.responses) else 0.0
        memory += longest * 4 * (4 * shape.hidden + 3 * shape.inner)
        return Cost(flops, float(batches * shape.layers), 0.0, 0.0, memory, 0.0, fp32=width == 4)

    def _scores(self, stage: Stage, recipe: Any) -> Cost:
        each = JUDGE_SECONDS if stage.task == "codem" else 1e-3
        return Cost(cpu=each * len(self._requests(stage.task)))

    def _decoding(self, shape: Shape, batch: int, new_tokens: int, width: int, sampled: bool) -> Cost:
        """Of one batch that is as long as it may get."""
        launches = new_tokens * shape.layers * DECODING_LAYER_SECONDS / LAYER_SECONDS
        traffic = float(new_tokens) * width * (shape.body + shape.head)
        cpu = new_tokens * batch * shape.vocabulary * DRAW_SECONDS if sampled else 0.0
        return Cost(launches=launches, traffic=traffic, cpu=cpu)

    def _texts(self, task: str, role: str, split: str = "train") -> Texts:
        ratio = self.shapes[role].bytes_per_token.get(task, 3.0)
        return Texts.of(self._bytes[task, split], ratio, self.recipe.limits.length)

    @cached_property
    def _bytes(self) -> dict[tuple[str, str], FloatArray]:
        found = {}
        for name, task in self.plan.tasks.items():
            for split, examples in (("train", task.training_examples()), ("test", task.reference_examples())):
                found[name, split] = _sizes([(example.prompt, example.response) for example in examples])
        return found

    def _requests(self, task: str) -> FloatArray:
        """[requests]: bytes of prompts."""
        if task not in self._prompts:
            self._prompts[task] = np.array(self.plan.tasks[task].request_sizes(), dtype=np.float64)
        return self._prompts[task]

    @cached_property
    def _prompts(self) -> dict[str, FloatArray]:
        return {}


def _width(training: Training) -> int:
    """Bytes of what a GPU multiplies in."""
    return 4 if training.precision == "float32" else 2


def _trained(shape: Shape, training: Training) -> float:
    """Weights that are trained: all, or those of adapters at every matrix of the layers."""
    if training.lora is None:
        return float(shape.parameters)
    matrices = 2 * (shape.hidden + shape.queries) + 2 * (shape.hidden + shape.keys) + 3 * (shape.hidden + shape.inner)
    return float(training.lora.rank * shape.layers * matrices)


def _cpu_seconds(method: Method) -> float:
    seconds = CPU_SECONDS.get(method.name, 0.0)
    return seconds * (getattr(method.options, "k", 100) / 100) ** 2 if method.name == "cdm" else seconds


def _changed(recipe: Any, changes: Mapping[str, Any]) -> Any:
    """The recipe with other values at dotted paths of two parts."""
    for path, value in changes.items():
        part, _, field = path.partition(".")
        recipe = recipe.model_copy(update={part: getattr(recipe, part).model_copy(update={field: value})})
    return recipe


def _said(value: Any) -> str:
    if isinstance(value, Lora):
        return f"'{{rank: {value.rank}, alpha: {value.alpha:g}}}'"
    return str(value).lower()


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
        return None if pace is None else pace * int(stage.values["steps"])

    @cached_property
    def _paces(self) -> dict[str, float]:
        """Seconds a step of stored trainings, by what they have in common with others."""
        paces: dict[str, float] = {}
        for manifest, folder in self._trainings():
            steps = int(manifest["values"]["steps"])
            timing = folder / TIMING
            if steps and timing.is_file() and manifest["environment"]["device"] == self.device:
                seconds = json.loads(timing.read_text(encoding="utf-8"))["seconds"]
                paces[_alike(manifest["kind"], manifest["task"], manifest["values"])] = float(seconds) / steps
        return paces

    def _trainings(self) -> Iterator[tuple[dict[str, Any], Path]]:
        for kind in ("teacher", "warm_start", "student"):
            for path in sorted((self.store.root / kind).glob("*/manifest.json")):
                try:
                    manifest = json.loads(path.read_text(encoding="utf-8"))
                    manifest["values"]["steps"], manifest["environment"]["device"], manifest["kind"], manifest["task"]
                except (OSError, ValueError, KeyError):
                    continue
                yield manifest, path.parent


def _alike(kind: str, task: str, values: Mapping[str, Any]) -> str:
    """Trainings of one key differ in nothing that a step's time depends on but, at most, settings of speed."""
    training = {k: v for k, v in values.get("training", {}).items() if k in ("batch_size", "lora")}
    objective = values.get("objective", {})
    methods = [{k: v for k, v in each.items() if k != "code"} for each in objective.get("methods", [])]
    kept = {k: values.get(k) for k in ("model", "teachers", "dtype")}
    data = {k: values.get("data", {}).get(k) for k in ("limits", "sides")}
    return digest_of({"kind": kind, "task": task, "training": training, "methods": methods, "data": data, **kept})


# --- As a table -------------------------------------------------------------------------------------------------------


def costs_table(plan: Plan, store: Store, demanded: set[str]) -> Group | Text:
    """What the stages that would run cost, by what they are; what does not fit, and what would make it fit.

    Args:
        demanded: identities of the stages that would run.
    """
    try:
        coster = Coster(plan)
    except HarnessError as error:
        return Text(f"No estimate of costs: {error}", "dim")
    stages = [stage for stage in plan.stages() if stage.identity in demanded]
    costs = {stage.identity: coster.cost(stage) for stage in stages}
    by_title: dict[str, list[Stage]] = {}
    for stage in stages:
        by_title.setdefault(_title(stage), []).append(stage)
    here = costs_here(stages, costs, Measured(store))
    table = Table(title="Estimated costs of what would run", title_justify="left")
    table.add_column("stages", no_wrap=True)
    columns = ["n", "operations", "GiB", "disk", *(f"h, {device.name}" for device in DEVICES)]
    for column in [*columns, *(["h, this machine"] if here else [])]:
        table.add_column(column, justify="right")
    for title, group in by_title.items():
        memory = max(costs[stage.identity].memory for stage in group)
        table.add_row(
            title,
            str(len(group)),
            _operations(_total(costs, group, "flops")),
            f"{memory / GIB:.1f}",
            gigabytes(_total(costs, group, "disk")),
            *(f"{_hours(costs, group, device):.2f}" if memory <= device.memory else "no room" for device in DEVICES),
            *([f"{sum(here[stage.identity] for stage in group) / 3600:.2f}"] if here else []),
        )
    return Group(table, *_summary(plan, coster, stages, costs))


def _summary(plan: Plan, coster: Coster, stages: Sequence[Stage], costs: Mapping[str, Cost]) -> list[Text]:
    lines = []
    for name in plan.tasks:
        group = [stage for stage in stages if stage.task == name]
        hours = ", ".join(f"{_time_or_misfit(costs, group, device)} on {device.name}" for device in DEVICES)
        rows = gigabytes(_total(costs, [stage for stage in group if stage.kind == "rows"], "disk"))
        lines.append(
            f"{name}: {_operations(_total(costs, group, 'flops'))}; {hours}, one GPU, one after the other; "
            f"{rows} of teacher rows."
        )
    disk = {kind: _total(costs, [s for s in stages if s.kind == kind], "disk") for kind in ("rows", "teacher")}
    lines.append(
        f"Disk: {gigabytes(disk['rows'])} of teacher rows, {gigabytes(disk['teacher'])} of teachers, "
        f"{gigabytes(_total(costs, stages, 'disk'))} in all; checkpoints of what trains come on top."
    )
    lines += _misfits(coster, stages, costs)
    lines.append(
        f"Assumed: {100 * UTILISATION:.0f} % of the dense peak in matrix products, {1e3 * LAYER_SECONDS:g} ms a layer "
        "and pass, answers as long as they may get, tokens from bytes. Expect a factor of two either way; hours of "
        "a CPU are not guessed. Run a few steps (train.steps=20) on your device, and the plan goes by what they took."
    )
    return [Text(line) for line in lines]


def _misfits(coster: Coster, stages: Sequence[Stage], costs: Mapping[str, Cost]) -> list[str]:
    lines = []
    for device in DEVICES:
        found: dict[str, list[str]] = {}
        largest: dict[str, Stage] = {}
        for stage in stages:
            if costs[stage.identity].memory > device.memory:
                title = _title(stage)
                if title not in largest or costs[stage.identity].memory > costs[largest[title].identity].memory:
                    largest[title] = stage
        for title, stage in largest.items():
            found.setdefault(coster.remedy(stage, device), []).append(title)
        for remedy, titles in found.items():
            end = f"fits with {remedy}" if remedy else "no setting makes it fit: a larger device, or another model"
            lines.append(f"No room on {device.name}: {', '.join(titles)}; {end}.")
    return lines


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


def _title(stage: Stage) -> str:
    named = {
        "teacher": f"teacher, {stage.role}",
        "warm_start": "warm start",
        "rows": f"rows of teacher, {stage.role}",
        "student": stage.objective.name if stage.objective else "",
    }
    return named.get(stage.kind) or f"{stage.kind} of {f'teacher, {stage.role}' if stage.role else 'students'}"


def _total(costs: Mapping[str, Cost], stages: Sequence[Stage], field: str) -> float:
    return sum(float(getattr(costs[stage.identity], field)) for stage in stages)


def _operations(flops: float) -> str:
    """In words, to three digits: PFLOP, below one TFLOP."""
    if flops >= 1e15:
        return f"{flops / 1e15:,.0f} PFLOP" if flops >= 1e17 else f"{flops / 1e15:.3g} PFLOP"
    return f"{flops / 1e12:.0f} TFLOP" if flops >= 1e14 else f"{flops / 1e12:.3g} TFLOP"


def _time_or_misfit(costs: Mapping[str, Cost], stages: Sequence[Stage], device: Device) -> str:
    """Hours of all stages together, minutes below one; a total that nobody can run there is none."""
    if any(costs[stage.identity].memory > device.memory for stage in stages):
        return "does not fit"
    hours = _hours(costs, stages, device)
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{60 * hours:.0f} min" if 60 * hours >= 1 else "< 1 min"


def _hours(costs: Mapping[str, Cost], stages: Sequence[Stage], device: Device) -> float:
    return sum(costs[stage.identity].seconds(device) for stage in stages) / 3600
