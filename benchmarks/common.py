"""What the benchmarks share: the machine, built-in text and tokenizers of any size, clocks, tables and their JSON."""

from __future__ import annotations

import argparse
import gc
import json
import math
import multiprocessing
import os
import platform
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from harness.base.device import release_memory
from harness.tasks.base import samples_folder

RESULTS = Path(__file__).parent / "results"
SPECIAL = ["<pad>", "<s>", "</s>"]
TRAINED = {"student": 1000, "teacher": 1500}
MATCHED = 0.77
"""Share of the teacher's tokens that the student has too: 24,764 of 32,064 for Phi-3-mini and Qwen2."""


def machine(device: str) -> str:
    """Processor or GPU, with cores and versions; no names of hosts."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, torch {torch.__version__}"
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    name = names[0] if names else platform.processor() or "unknown processor"
    return f"{os.cpu_count()} CPU cores, {platform.machine()}, {name}, torch {torch.__version__}"


def preset_parser(description: str, presets: Iterable[str]) -> argparse.ArgumentParser:
    """The options of all benchmarks that have presets: which one, and on what."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--preset", choices=[*presets], default="cpu")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], help="by default cpu for the preset of that name, else cuda"
    )
    return parser


def add_real_inputs(parser: argparse.ArgumentParser) -> None:
    """Options that put real tokenizers and text in place of built-in ones."""
    parser.add_argument("--student-tokenizer", type=Path, help="a tokenizer.json instead of a built-in one")
    parser.add_argument("--teacher-tokenizer", type=Path)
    parser.add_argument("--data", type=Path, help="folder with gsm8k/train.jsonl instead of the samples")


def parsed(parser: argparse.ArgumentParser, named: Sequence[str] = ("preset",)) -> argparse.Namespace:
    """The command line, with ``--out`` added to it.

    Args:
        named: options that are no change, since the file's name tells them.

    Returns:
        The options, and ``changed``: names of those that are not as a published file has them. The device that a preset
        is meant for is no change.
    """
    parser.add_argument("--out", type=Path, help="JSON file; by default in benchmarks/results")
    arguments = parser.parse_intermixed_args()
    changed = [name for name, value in vars(arguments).items() if value != parser.get_default(name)]
    if "preset" in arguments:
        meant = "cpu" if arguments.preset == "cpu" else "cuda"
        arguments.device = arguments.device or meant
        changed = [name for name in changed if name != "device" or arguments.device != meant]
    arguments.changed = [
        name for name in changed if name not in ("out", "resume", *named)
    ]  # a run that goes on is the same run
    return arguments


def demand(device: str) -> None:
    """End with a message where a GPU is asked for and there is none; hide one that is not asked for."""
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # or transformers' Trainer would take the GPU
    elif not torch.cuda.is_available():
        sys.exit(
            "error: --device cuda, but torch finds no GPU. Run --preset cpu, or try this preset with --device cpu."
        )


def peer() -> Any:
    """TRL's module of its GOLD trainer, or None where TRL is not installed."""
    try:
        from trl.experimental.gold import gold_trainer
    except ImportError:
        return None
    return gold_trainer


def peer_version() -> str | None:
    """TRL's version, or None where it is not installed."""
    try:
        return version("trl")
    except PackageNotFoundError:
        return None


# --- text and tokenizers -------------------------------------------------------------------------------------------


def rows_of_text(root: Path | None = None) -> list[tuple[str, str]]:
    """Questions and answers: GSM8K's where a folder of data sets is given, else the samples that the project ships."""
    return [(row["question"], row["answer"]) for row in rows_of("gsm8k", root)]


def rows_of(task: str, root: Path | None = None) -> list[dict[str, Any]]:
    """Training rows of a task, of a folder of data sets or of the samples that the project ships."""
    file = (root or samples_folder()) / task / "train.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def trained_tokenizer(role: str, size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, which is what TRL reads, with a vocabulary of any size.

    Each side's is trained on its half of the built-in samples, digits one by one. Entries that no merge makes fill the
    vocabulary up; the two sides share as many of them as real pairs do.
    """
    files = [samples_folder() / task / "train.jsonl" for task in ("gsm8k", "dolly", "codem")]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    text = [" ".join(str(value) for value in json.loads(line).values()) for line in lines]
    made = Tokenizer(models.BPE())
    text = text[::2] if role == "student" else text[1::2]
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained = min(size, TRAINED[role])
    made.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=trained, special_tokens=SPECIAL, initial_alphabet=sorted(alphabet), show_progress=False
        ),
    )
    description = json.loads(made.to_str())
    vocabulary: dict[str, int] = description["model"]["vocab"]
    shared = random.Random(0)
    own = random.Random(1 if role == "student" else 2)
    while len(vocabulary) < size:
        word = _word(shared if len(vocabulary) % 100 < MATCHED * 100 else own)
        vocabulary.setdefault(word, len(vocabulary))
    made = Tokenizer.from_str(json.dumps(description))
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def _word(generator: random.Random) -> str:
    """A made-up word of 2 to 4 syllables, with a space before it or not."""
    syllables = [
        generator.choice("bcdfghklmnprstvwz") + generator.choice("aeiou") + generator.choice(["", "", "n", "r", "s"])
        for _ in range(generator.randint(2, 4))
    ]
    return generator.choice(["Ġ", ""]) + "".join(syllables)


def read_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """A real tokenizer.json; special tokens that benchmarks need are named where the file does not say."""
    backend = Tokenizer.from_file(str(path))
    known = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
    ends = ("<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>")
    eos = next((name for name in ends if name in known), known[-1])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, pad_token=eos)


# --- clocks --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a call costs.

    Attributes:
        seconds: on a GPU the median of some calls. On the CPU the shortest, in processor time of this process, which
            is what the call takes with one thread on a machine that does nothing else.
        bytes: peak memory above what was there before.
        calls: how many were timed.
    """

    seconds: float
    bytes: int
    calls: int


def cost(call: Callable[[], Any], device: str, budget: float = 10.0, most: int = 5) -> Cost:
    """Time and peak memory of a call. On the CPU memory is that of the process, which must be a fresh one.

    Args:
        budget: seconds after which no further call begins.
    """
    gc.collect()
    if device == "cuda":
        before = torch.cuda.memory_allocated()  # the first call leaves gradients, which count
        call()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        before = resident()
    clock = time.perf_counter if device == "cuda" else time.process_time
    begun, times, peak = clock(), [], 0
    while not times or (len(times) < most and clock() - begun < budget):
        started = clock()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - started)
        if len(times) == 1:
            peak = torch.cuda.max_memory_allocated() if device == "cuda" else peak_resident()
    seconds = statistics.median(times) if device == "cuda" else min(times)
    return Cost(seconds, max(peak - before, 0), len(times))


class Place:
    """Where a measurement runs: on a GPU in this process, on the CPU in a fresh one, whose peak memory is its own.

    Such processes find the loops that an earlier one compiled.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cpu":
            self.loops = tempfile.TemporaryDirectory()
            os.environ.setdefault("NUMBA_CACHE_DIR", self.loops.name)
            self.context = multiprocessing.get_context("forkserver")
            self.context.set_forkserver_preload(["harness.training.trainer", "trl.experimental.gold.gold_trainer"])

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self.device == "cuda":
            return function(*arguments)
        pool = self.context.Pool(1, torch.set_num_threads, (1,))
        try:
            return pool.apply(function, arguments)
        finally:
            pool.close()
            pool.join()


class Lines:
    """Rows as they are done, a line of JSON each, so that a run that is cut leaves what it had.

    Args:
        path: .jsonl.
        resume: whether rows that are there are taken instead of being measured; else the file begins anew.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self.path, self.rows = path, {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume and path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                self.rows[row.pop("key")] = row
        else:
            path.write_text("", encoding="utf-8")

    def find(self, key: str) -> dict[str, Any] | None:
        """The row that an earlier run wrote."""
        return self.rows.get(key)

    def add(self, key: str, row: dict[str, Any], said: str) -> None:
        """Write a row, and say it."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key} | row, default=_plain) + "\n")
        if said:
            print(f"# {said}", flush=True)


def left(begun: float, done: int, rows: int) -> str:
    """How long the other rows take, were they like those that are done.

    Args:
        begun: by ``time.monotonic``.
        done: rows that were measured since.
    """
    seconds = (time.monotonic() - begun) / max(done, 1) * (rows - done)
    return f"about {seconds:,.0f} s left" if done < rows else "the last one"


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_resident() -> int:
    """The most bytes of this process that ever were in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak(device: str) -> None:
    """Let go of what nothing holds any more, and count peak memory of a GPU anew."""
    release_memory()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def copy_rate(device: str, dtype: torch.dtype) -> float:
    """Bytes a second, read and written, of the best copy of a large tensor."""
    size = 2**30 if device == "cuda" else 2**26
    source = torch.ones(size // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    best = cost(lambda: target.copy_(source), device, budget=5, most=10).seconds
    return 2 * size / best


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product."""
    size = 8192 if device == "cuda" else 1024
    left, right = (torch.randn(size, size, dtype=torch.float32, device=device).to(dtype) for _ in range(2))
    best = cost(lambda: left @ right, device, budget=5, most=10).seconds
    return 2 * size**3 / best


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of a straight line through the logarithms: 1 where twice the size takes twice the time."""
    pairs = [(math.log(s), math.log(v)) for s, v in zip(sizes, values, strict=True) if v > 0]
    if len({x for x, _ in pairs}) < 2:
        return math.nan
    mean_x, mean_y = (statistics.fmean(side) for side in zip(*pairs, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in pairs) / sum((x - mean_x) ** 2 for x, _ in pairs)


# --- tables --------------------------------------------------------------------------------------------------------


def markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; None is an empty cell."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def result_path(arguments: argparse.Namespace, name: str) -> Path:
    """The file of a command's numbers.

    Only a command without changed options writes what is published; others name what they change, or give ``--out``.
    """
    changed = [f"with-{'-'.join(arguments.changed)}"] if arguments.changed else []
    path: Path = arguments.out or RESULTS / f"{'-'.join([name, *changed])}.json"
    return path


def write(arguments: argparse.Namespace, name: str, values: dict[str, Any]) -> Path:
    """Write the numbers behind the tables as JSON to :func:`result_path`, and name the file."""
    path = result_path(arguments, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {"machine": machine(arguments.device), "trl": peer_version()}
    path.write_text(json.dumps(known | values, indent=1, default=_plain) + "\n", encoding="utf-8")
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    return str(value)
