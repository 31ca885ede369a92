"""What a whole optimiser step costs: ours with and without stored teacher rows, our SFT's, and those of TRL's trainers.

    python benchmarks/step.py                    # CPU: small models of the same architectures, minutes
    python benchmarks/step.py --preset h100      # Phi-3-mini teaches Qwen2-0.5B, full size, random weights

All train the same student (Qwen2) from the same teacher (Phi-3) on the same text, in the same precision, with batches
of the same size and AdamW. Ours go through harness.training.trainer.train, data loading, clipping and logging
included; TRL's through its own train(). The first steps don't count. --preset h100 --device cpu tries the GPU's
path on tiny models. Each row is printed and written, as a line of a .jsonl beside the JSON file, when it is done;
--resume leaves out what is there.

Those rows are of one length. "Rows of all lengths" are Dolly's as they are: padded, bucketed by length, and packed.
"Small student" is one of SmolLM2-135M's shape that has no teacher, with rows of many lengths, against TRL's SFTTrainer.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import (
    Lines,
    Place,
    add_real_inputs,
    demand,
    left,
    machine,
    markdown,
    parsed,
    peak_resident,
    peer,
    preset_parser,
    read_tokenizer,
    reset_peak,
    resident,
    result_path,
    rows_of,
    rows_of_text,
    trained_tokenizer,
    write,
)
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from harness.data.rows import Example
from harness.data.teacher_rows import StoredRows, store_rows
from harness.data.templates import TextSide
from harness.data.terms import Term, align
from harness.data.tokens import STUDENT, tokenize
from harness.models.heads import Head
from harness.recipe.training import Training
from harness.training.distil import TeacherSources, distil, pad_ids
from harness.training.late_log import reading_at_once
from harness.training.objective import Objective
from methods.base import TeacherKind, registered
from methods.library.vocabulary import TokenizerPair

WARM_UP = 2
RAGGED = 5
PUBLISHED_CDM = 1.01
"""Seconds of a step at batch 1 that the CDM paper's tables give."""


@dataclass(frozen=True)
class Setting:
    """Models, data and batch of all ways.

    Attributes:
        length: response tokens of a row, about.
        batch: rows of a step.
        steps: that are timed; of rows of all lengths, whose steps differ, `RAGGED` times as many.
        small: a smaller student, with its own batch and the least and the most tokens of its rows.
        folder: with student/, teacher/ and small/, tokenizers.
    """

    device: str
    student: dict[str, Any]
    teacher: dict[str, Any]
    length: int
    batch: int
    steps: int
    small: dict[str, Any]
    small_batch: int
    small_tokens: tuple[int, int]
    folder: Path
    data: Path | None = None
    limit: int = 2048

    @property
    def precision(self) -> str:
        return "bfloat16" if self.device == "cuda" else "float32"


@dataclass(frozen=True)
class Way:
    """One kind of step: of which method, whose teacher's rows are stored or not, and of how many rows.

    Attributes:
        trl: the trainer of TRL's that takes it; empty for ours.
        ragged: rows are of all lengths, batched by these settings of a training.
        small: the small student takes it.
        graphs: its layers are CUDA graphs.
    """

    method: str
    options: dict[str, Any]
    stored: bool = True
    alone: bool = False
    trl: str = ""
    compiled: bool = False
    ragged: dict[str, Any] | None = None
    small: bool = False
    graphs: bool = False

    @property
    def base(self) -> str:
        """The way that it is compared with."""
        if self.small:
            return SMALL_SFT
        if self.graphs:
            return GRAPHS
        return "SFT, batch 1" if self.alone else "SFT" if self.ragged is None else PADDED

    @property
    def peer(self) -> str | None:
        """The way of TRL's that does the same; None for TRL's own and where it has none."""
        if self.trl:
            return None
        return "TRL SFTTrainer, small student" if self.small else "TRL GOLDTrainer" if self.method == "gold" else None


GOLD = {"ce_weight": 0.5, "kd_weight": 0.5}
PADDED = "SFT, rows of all lengths, padded"
SMALL_SFT = "SFT, small student"
GRAPHS = "SFT, CUDA graphs"
WAYS = {
    "SFT": Way("control", {}),
    "GOLD, stored rows": Way("gold", GOLD),
    "GOLD top_k, stored rows": Way("gold", GOLD | {"sort": "top_k"}),
    "ULD, stored rows": Way("uld", GOLD),
    "SFT, compiled loss": Way("control", {}, compiled=True),
    "GOLD, stored rows, compiled loss": Way("gold", GOLD, compiled=True),
    "GOLD top_k, stored rows, compiled loss": Way("gold", GOLD | {"sort": "top_k"}, compiled=True),
    GRAPHS: Way("control", {}, graphs=True),
    "GOLD, stored rows, CUDA graphs": Way("gold", GOLD, graphs=True),
    "GOLD, live teacher": Way("gold", GOLD, stored=False),
    "GOLD top_k, live teacher": Way("gold", GOLD | {"sort": "top_k"}, stored=False),
    "TRL GOLDTrainer": Way("gold", {}, stored=False, trl="GOLDTrainer"),
    PADDED: Way("control", {}, ragged={}),
    "SFT, rows of all lengths, bucketed": Way("control", {}, ragged={"bucket": "length"}),
    "SFT, rows of all lengths, packed": Way("control", {}, ragged={"packing": True}),
    "SFT, rows of all lengths, bucketed and packed": Way("control", {}, ragged={"bucket": "length", "packing": True}),
    "SFT, batch 1": Way("control", {}, alone=True),
    "CDM, batch 1, stored rows": Way("cdm", {}, alone=True),
    SMALL_SFT: Way("control", {}, small=True),
    "SFT, small student, CUDA graphs": Way("control", {}, small=True, graphs=True),
    "TRL SFTTrainer, small student": Way("control", {}, trl="SFTTrainer", small=True),
}

# Qwen2-0.5B, Phi-3-mini and SmolLM2-135M.
_QWEN2: dict[str, Any] = {"model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 896}
_QWEN2 |= {"intermediate_size": 4864, "num_hidden_layers": 24}
_QWEN2 |= {"num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True}
_PHI3: dict[str, Any] = {"model_type": "phi3", "vocab_size": 32_064, "hidden_size": 3072}
_PHI3 |= {"intermediate_size": 8192, "num_hidden_layers": 32}
_PHI3 |= {"num_attention_heads": 32, "num_key_value_heads": 32, "pad_token_id": 0}
_SMOLLM2: dict[str, Any] = {"model_type": "llama", "vocab_size": 49_152, "hidden_size": 576}
_SMOLLM2 |= {"intermediate_size": 1536, "num_hidden_layers": 30}
_SMOLLM2 |= {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
_SMALL = {"num_attention_heads": 4, "num_key_value_heads": 2}
PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {
        "student": _QWEN2
        | _SMALL
        | {"vocab_size": 20_000, "hidden_size": 128, "intermediate_size": 384}
        | {"num_hidden_layers": 4},
        "teacher": _PHI3
        | _SMALL
        | {"vocab_size": 16_000, "hidden_size": 384, "intermediate_size": 1024}
        | {"num_hidden_layers": 8},
        "length": 100,
        "batch": 4,
        "steps": 3,
        "small": _SMOLLM2
        | _SMALL
        | {"vocab_size": 8000, "hidden_size": 128, "intermediate_size": 384}
        | {"num_hidden_layers": 4},
        "small_batch": 8,
        "small_tokens": (64, 128),
    },
    "h100": {
        "student": _QWEN2,
        "teacher": _PHI3,
        "length": 500,
        "batch": 8,
        "steps": 10,
        "small": _SMOLLM2,
        "small_batch": 32,
        "small_tokens": (128, 256),
    },
}
TRIED = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2} | _SMALL


class Data:
    """Rows in both tokenisations, of a way's student.

    Every row has about as many tokens, unless the way's rows are of all lengths, or its student is the small one.
    """

    def __init__(self, setting: Setting, way: Way) -> None:
        self.setting = setting
        self.sides = {
            role: TextSide(read_tokenizer(setting.folder / name / "tokenizer.json"), template="plain", name=name)
            for role, name in ((STUDENT, "small" if way.small else "student"), ("cross", "teacher"))
        }
        count = (WARM_UP + setting.steps) * setting.batch
        if way.ragged is not None:
            self.examples = tokenize(self._instructions(), self.sides, setting.limit, "drop")
            self.examples = [self.examples[i % len(self.examples)] for i in range(count)]
        else:
            made = self._texts(count)
            self.texts = [self._cut(text) for text in made] if way.small else made
            self.examples = tokenize(self.texts, self.sides, setting.limit)

    def tokens(self) -> tuple[float, float]:
        """Mean response tokens of a row, of the student's and the teacher's."""
        sizes = [[e.sides[role].response.size for e in self.examples] for role in (STUDENT, "cross")]
        return statistics.fmean(sizes[0]), statistics.fmean(sizes[1])

    def _instructions(self) -> list[Example]:
        rows = rows_of("dolly", self.setting.data)
        return [Example(str(i), f"{row['instruction']}\n", row["output"]) for i, row in enumerate(rows)]

    def _texts(self, count: int) -> list[Example]:
        rows = rows_of_text(self.setting.data)
        lengths = [ids.size for ids in self.sides[STUDENT].responses([answer for _, answer in rows])]
        made, at = [], 0
        for number in range(count):
            question, joined, size = rows[at % len(rows)][0], [], 0
            while size < self.setting.length:
                joined.append(rows[at % len(rows)][1])
                size += lengths[at % len(rows)]
                at += 1
            made.append(Example(str(number), f"Question: {question}\nAnswer:", " " + " ".join(joined)))
        return made

    def _cut(self, text: Example) -> Example:
        """The same with a response so short that the row has one of the small student's lengths."""
        side = self.sides[STUDENT]
        wanted = random.Random(text.id).randint(*self.setting.small_tokens)
        [prompt], [response] = side.prompts([text.prompt]), side.responses([text.response])
        kept = response[: max(wanted - len(prompt), 8)]
        return replace(text, response=side.tokenizer.decode(kept))


def model_of(setting: Setting, role: str) -> Any:
    """A model with random weights: the student in float32, as it trains; the teacher in what it computes in."""
    config = AutoConfig.for_model(**(setting.student if role == STUDENT else setting.teacher))
    config.attention_dropout = 0.0
    torch.manual_seed(role != STUDENT)
    dtype = torch.float32 if role == STUDENT else getattr(torch, setting.precision)
    with torch.device(setting.device):
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)


class Clock:
    """Times of the ends of steps; processor time on the CPU, where other processes come between."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.ends = [self.now()]

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def tick(self, *_: Any) -> None:
        self.ends.append(self.now())

    def each(self) -> list[float]:
        """Of the steps that count."""
        return [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)][WARM_UP:]

    def seconds(self) -> float:
        """Of one step: the median on a GPU, the shortest on the CPU."""
        took = self.each()
        return statistics.median(took) if self.device == "cuda" else min(took)


def ours(setting: Setting, way: Way, data: Data, clock: Clock) -> dict[str, Any]:
    """Train as a run does."""
    terms: tuple[Term, ...] = ()
    method = registered()[way.method](**way.options)
    teachers, notes = TeacherSources(), {}
    if method.teacher is not TeacherKind.NONE:
        method.prepare(TokenizerPair(data.sides[STUDENT].vocabulary, data.sides["cross"].vocabulary))
        terms = (Term(method, "cross", method.options.kd_weight),)
        if way.stored:
            notes = store(setting, data, clock, teachers)
        else:
            teachers.live["cross"] = model_of(setting, "cross")
    training = Training(
        steps=WARM_UP + setting.steps,
        batch_size=setting.batch,
        learning_rate=1e-5,
        precision=setting.precision,
        compile="on" if way.compiled else "off",
        cuda_graphs="on" if way.graphs else "off",
        **(way.ragged or {}),
    )
    student = model_of(setting, STUDENT)
    reset_peak(setting.device)
    clock.ends = [clock.now()]
    with tempfile.TemporaryDirectory() as work, reading_at_once():  # the clock waits for each step
        done = distil(
            student,
            Objective(way.method, method.options.ce_weight, terms, method.label_smoothing),
            teachers,
            [align(example, terms) for example in data.examples],
            training,
            sides=data.sides,
            max_length=setting.limit,
            steps=training.steps or 0,
            seed=0,
            work=Path(work),
            on_step=clock.tick,
        )
    steps = done.steps
    notes |= {key: value for key, value in steps[-1].items() if "error" in key}
    notes |= {"tokens": [step["tokens"] for step in steps[WARM_UP:]]}
    return notes | {"loss": steps[-1]["loss"]}


def store(setting: Setting, data: Data, clock: Clock, teachers: TeacherSources) -> dict[str, Any]:
    """Store a teacher's rows and keep its head alone; what that costs."""
    model, folder = model_of(setting, "cross"), setting.folder / f"rows-{setting.batch}"
    folder.mkdir(exist_ok=True)
    begun = clock.now()
    written = store_rows(
        model, "cross", data.examples, folder, pad=pad_ids(data.sides)["cross"], batch_size=setting.batch
    )
    seconds = clock.now() - begun
    layer = model.get_input_embeddings()
    teachers.heads["cross"] = Head(Head.of(model).weight.detach().clone(), embeddings=lambda: layer)
    teachers.stored["cross"] = StoredRows(folder)
    return {"row_bytes": written, "store_seconds_per_row": seconds / len(data.examples)}


def trls(setting: Setting, way: Way, data: Data, clock: Clock) -> dict[str, Any]:
    """Train as TRL does; what is not named here is as it is there by default."""
    import datasets

    datasets.disable_progress_bars()

    class Tick(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    rows = datasets.Dataset.from_list([{"prompt": text.prompt, "completion": text.response} for text in data.texts])
    with tempfile.TemporaryDirectory() as work:
        common = {
            "output_dir": work,
            "max_steps": WARM_UP + setting.steps,
            "per_device_train_batch_size": setting.batch,
            "learning_rate": 1e-5,
            "lr_scheduler_type": "cosine",
            "adam_beta2": 0.95,
            "weight_decay": 0.01,
            "bf16": setting.precision == "bfloat16",
            "use_cpu": setting.device == "cpu",
            "gradient_checkpointing": False,
            "max_length": setting.limit,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
        }
        given = {"model": model_of(setting, STUDENT), "train_dataset": rows, "callbacks": [Tick()]}
        given |= {"processing_class": data.sides[STUDENT].tokenizer}
        trainer = trl_gold(setting, common, given) if way.trl == "GOLDTrainer" else trl_sft(common, given)
        trainer.remove_callback(PrinterCallback)
        reset_peak(setting.device)
        clock.ends = [clock.now()]
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"loss": losses[-1] if losses else None}


def trl_gold(setting: Setting, common: dict[str, Any], given: dict[str, Any]) -> Any:
    """TRL's GOLDTrainer with our weights of CE and KD; responses are given, none is sampled."""
    config = peer().GOLDConfig(
        **common,
        lmbda=0.0,
        use_uld_loss=True,
        uld_use_hybrid_loss=True,
        uld_token_merge_strategy="bayesian",
        uld_crossentropy_weight=0.5,
        uld_distillation_weight=0.5,
        uld_skip_student_eos=False,
        uld_skip_teacher_eos=False,
        teacher_tokenizer_name_or_path=str(setting.folder / "teacher"),
        logging_steps=1,
    )
    teacher = model_of(setting, "cross").eval().requires_grad_(False)
    return peer().GOLDTrainer(teacher_model=teacher, args=config, **given)


def trl_sft(common: dict[str, Any], given: dict[str, Any]) -> Any:
    """TRL's SFTTrainer, on responses alone as it does for prompts with completions; it logs every tenth step."""
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(args=SFTConfig(**common), **given)


def measure(setting: Setting, way: Way) -> dict[str, Any]:
    """Time of a step, and peak memory of all that it needs: models, optimiser, activations."""
    quiet()
    before = resident()
    if way.alone:
        setting = replace(setting, batch=1)
    if way.small:
        setting = replace(setting, student=setting.small, batch=setting.small_batch)
    if way.ragged is not None:
        setting = replace(setting, steps=RAGGED * setting.steps)
    data, clock = Data(setting, way), Clock(setting.device)
    notes = trls(setting, way, data, clock) if way.trl else ours(setting, way, data, clock)
    peak = torch.cuda.max_memory_allocated() if setting.device == "cuda" else peak_resident() - before
    ours_tokens, theirs = data.tokens()
    seconds = clock.seconds()
    if way.ragged is not None:  # orders differ, and with them what a step holds
        seconds = sum(clock.each()) / sum(notes["tokens"]) * ours_tokens * setting.batch
    gc.collect()
    return {
        "seconds": seconds,
        "bytes": peak,
        "rows": setting.batch,
        "student_tokens": ours_tokens * setting.batch,
        "teacher_tokens": theirs * setting.batch,
        **notes,
    }


def quiet() -> None:
    import logging

    warnings.filterwarnings("ignore")
    for name in ("transformers", "accelerate", "datasets", "trl"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> None:
    parser = preset_parser(__doc__.splitlines()[0], PRESETS)
    add_real_inputs(parser)
    parser.add_argument("--ways", nargs="+", choices=[*WAYS], help="by default all; compiled ones on a GPU only")
    parser.add_argument("--steps", type=int, help="that are timed, in place of the preset's")
    parser.add_argument(
        "--resume", action="store_true", help="leave out rows that an earlier run with these options wrote"
    )
    arguments = parsed(parser)
    device = arguments.device
    demand(device)
    preset = dict(PRESETS[arguments.preset])
    if arguments.preset != "cpu" and device == "cpu":  # the same path with models that a CPU can train
        preset |= {role: preset[role] | TRIED | {"vocab_size": 2000} for role in ("student", "teacher", "small")}
        preset |= {"length": 40, "batch": 2, "steps": 2, "small_batch": 4, "small_tokens": (100, 160)}
    if arguments.steps:
        preset["steps"] = arguments.steps
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(device, folder=Path(folder), data=arguments.data, **preset)
        given = {"student": arguments.student_tokenizer, "teacher": arguments.teacher_tokenizer, "small": None}
        for role, path in given.items():
            size, like = getattr(setting, role)["vocab_size"], "teacher" if role == "teacher" else "student"
            made = read_tokenizer(path) if path else trained_tokenizer(like, size)
            made.save_pretrained(setting.folder / role)
        compare(setting, arguments)


def told(name: str, row: dict[str, Any], left_: str) -> str:
    """A row in words, when it is done."""
    took = f"{row['seconds'] * 1e3:,.1f} ms, {row['bytes'] / 2**20:,.0f} MiB" if "seconds" in row else row["error"]
    return f"{name}: {took}; {left_}"


def size_of(config: dict[str, Any]) -> str:
    """A model's size in words."""
    return f"{config['vocab_size']:,} tokens, width {config['hidden_size']}, {config['num_hidden_layers']} layers"


def table(rows: dict[str, dict[str, Any]], peer_name: str) -> str:
    """Rows by the names of their ways, each beside what it is compared with."""
    lines = []
    for name, row in rows.items():
        base, trl = (rows.get(other or "", {}).get("seconds") for other in (WAYS[name].base, WAYS[name].peer))
        seconds = row["seconds"]
        counts = [name, row["rows"], row["student_tokens"], seconds * 1e3, row["bytes"] / 2**20]
        lines.append([*counts, seconds / base if base else None, trl / seconds if trl else None])
    columns = ["step", "rows", "response tokens", "ms", "peak MiB", "× SFT", f"times faster than {peer_name}"]
    return markdown(columns, lines)


def compare(setting: Setting, arguments: argparse.Namespace) -> None:
    """Measure all ways and print how they compare."""
    print(f"{machine(setting.device)}\n")
    place = Place(setting.device)
    found: dict[str, dict[str, Any]] = {}
    plain = [name for name, way in WAYS.items() if setting.device == "cuda" or not way.compiled]
    names = arguments.ways or plain
    lines = Lines(result_path(arguments, f"step-{arguments.preset}").with_suffix(".jsonl"), arguments.resume)
    begun, measured, known = time.monotonic(), 0, [name for name in names if lines.find(name)]
    for name in names:
        way = WAYS[name]
        if (row := lines.find(name)) is not None:
            found[name] = row
            continue
        if not set(way.options) <= set(registered()[way.method].Options.model_fields) or (way.trl and peer() is None):
            print(f"not here: {name}\n")
            continue
        try:
            found[name] = place.run(measure, setting, way)
        except RuntimeError as error:
            found[name] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0]:.120}"}
            print(f"{name}: {found[name]['error']}", file=sys.stderr)
        measured += 1
        lines.add(name, found[name], told(name, found[name], left(begun, measured, len(names) - len(known))))
        reset_peak(setting.device)
    done = {name: row for name, row in found.items() if "seconds" in row}
    of_small = {name for name in done if WAYS[name].small}
    print(f"{setting.precision}{'' if setting.device == 'cuda' else ', one thread'}\n")
    if done.keys() - of_small:
        print(f"student and teacher: {size_of(setting.student)} and {size_of(setting.teacher)}\n")
        print(table({name: row for name, row in done.items() if name not in of_small}, "TRL"))
    if of_small:
        print(f"\nsmall student: {size_of(setting.small)}\n")
        print(table({name: row for name, row in done.items() if name in of_small}, "TRL SFTTrainer"))
    cdm = done.get("CDM, batch 1, stored rows")
    if cdm and setting.device == "cuda":
        print(f"\nCDM: {PUBLISHED_CDM / cdm['seconds']:.1f} times faster than the published {PUBLISHED_CDM} s")
    values = {"preset": arguments.preset, "setting": asdict(setting) | {"folder": None}, "ways": found}
    print(f"\nnumbers: {write(arguments, f'step-{arguments.preset}', values)}")


if __name__ == "__main__":
    main()
