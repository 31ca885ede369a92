"""What answers cost: tokens a second in slots and in a batch of rows that come and go, against plain generate.

    python benchmarks/generation.py                    # CPU: a small model of the same architecture, a minute
    python benchmarks/generation.py --preset h100      # Qwen2-0.5B, 128 prompts, full size, random weights

All ways answer the same prompts (GSM8K's questions, of many lengths) with the same model. One of every few hundred
tokens ends an answer, so that answers are of many lengths too. Only tokens up to an answer's end count. The peer gets
the prompts sorted by length, as many at a time as the other ways, pads them, and goes on until all of a batch have
ended. Each row tells how many answers equal the peer's in the same precision: greedy ones all do in float32. Rows are
printed and written, as a line of a .jsonl beside the JSON file, when they are done; --resume leaves out what is there.
--preset h100 --device cpu tries the GPU's path on a tiny model.
"""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from common import Lines, demand, left, machine, markdown, parsed, preset_parser, result_path, rows_of_text, write
from common import trained_tokenizer as tokenizer_of
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen2Config

from harness.base.device import rows_at_a_time
from harness.data.rows import Request
from harness.data.templates import TextSide
from harness.generation.answers import answer_of, generate
from harness.generation.slots import slot_bytes
from harness.store.artefacts import Answer

_QWEN2 = {"vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24}
_QWEN2 |= {"num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True}
_SMALL = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4}
_SMALL |= {"vocab_size": 8_000, "hidden_size": 128, "intermediate_size": 384}
PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {"model": _QWEN2 | _SMALL, "prompts": 48, "new_tokens": 64, "ends": 60},
    "h100": {"model": _QWEN2, "prompts": 128, "new_tokens": 128, "ends": 300},
}
_TRY: dict[str, Any] = {
    "model": _QWEN2 | _SMALL | {"num_hidden_layers": 2},
    "prompts": 12,
    "new_tokens": 20,
    "ends": 60,
}


@dataclass(frozen=True)
class Way:
    """One row.

    Attributes:
        decoding: None for the peer.
        size: answers at a time; 128 for all of the GPU's.
        sampled: at T=1 instead of greedily; the peer is the batch that grows and shrinks, whose draws are the same.
    """

    decoding: Literal["batch", "slots"] | None
    size: int | Literal["auto"] = 128
    precision: Literal["wide", "float32"] = "wide"
    sampled: bool = False


PEER = "generate"
WAYS = {
    PEER: Way(None),
    "slots": Way("slots"),
    "batch": Way("batch"),
    "slots, auto": Way("slots", "auto"),
    "generate, float32": Way(None, precision="float32"),
    "slots, float32": Way("slots", precision="float32"),
    "sampled, batch": Way("batch", sampled=True),
    "sampled, slots": Way("slots", sampled=True),
    "generate, 16 at a time": Way(None, 16),
    "slots, 16 at a time": Way("slots", 16),
    "batch, 16 at a time": Way("batch", 16),
}
PEERS = {"16": "generate, 16 at a time", "float32": "generate, float32", "sampled": "sampled, batch"}


def peer_of(name: str) -> str:
    """The row that another is compared with."""
    return next((peer for word, peer in PEERS.items() if word in name), PEER)


class Bench:
    """A model, prompts, and the ways to answer them."""

    def __init__(self, preset: dict[str, Any], device: str, data: Path | None) -> None:
        self.device, self.new_tokens = device, preset["new_tokens"]
        config = Qwen2Config(**preset["model"])
        tokenizer = tokenizer_of("student", config.vocab_size)
        self.side = TextSide(tokenizer, template="plain", name="student")
        self.side.eos_ids = tuple(range(300, config.vocab_size, preset["ends"]))
        texts = [f"Question: {question}\nAnswer:" for question, _ in rows_of_text(data)]
        self.requests = [Request(f"x/{i}", texts[i % len(texts)]) for i in range(preset["prompts"])]
        torch.manual_seed(0)
        with torch.device(device):
            self.model = AutoModelForCausalLM.from_config(
                config, attn_implementation="sdpa", dtype=torch.float32
            ).eval()
        self.weights = {name: weight.detach().clone() for name, weight in self.model.state_dict().items()}

    def run(self, way: Way) -> tuple[list[Answer], float, int]:
        """Answers, seconds, and how many at a time; once before the clock runs, of a few tokens."""
        wide = torch.bfloat16 if self.device == "cuda" and way.precision == "wide" else torch.float32
        self.model.to(wide)
        self.model.load_state_dict(self.weights)
        longest = max(map(len, self.side.plain_prompts([request.prompt for request in self.requests])))
        on = torch.device(self.device)
        size = rows_at_a_time(way.size, slot_bytes(self.model, longest + self.new_tokens), on)
        self._answers(way, size, 2)
        begun = self._now()
        answers = self._answers(way, size, self.new_tokens)
        return answers, self._now() - begun, size

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def _answers(self, way: Way, size: int, new_tokens: int) -> list[Answer]:
        if way.decoding is None:
            return self._peer(size, new_tokens)
        requests = self.requests
        if way.sampled:
            requests = [Request(request.id, request.prompt, seed=1) for request in requests]
        return generate(self.model, self.side, requests, new_tokens=new_tokens, batch_size=size, decoding=way.decoding)

    @torch.no_grad()
    def _peer(self, size: int, new_tokens: int) -> list[Answer]:
        """As transformers is used without anything of ours."""
        prompts = self.side.plain_prompts([request.prompt for request in self.requests])
        order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
        found: dict[int, Answer] = {}
        self.model.generation_config = GenerationConfig()
        for start in range(0, len(order), size):
            part = order[start : start + size]
            width = max(len(prompts[place]) for place in part)
            pads = [[0] * (width - len(prompts[place])) for place in part]
            ids = torch.tensor([pad + prompts[p] for pad, p in zip(pads, part, strict=True)], device=self.device)
            mask = torch.tensor([[0] * len(pad) + [1] * (width - len(pad)) for pad in pads], device=self.device)
            made = self.model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=new_tokens,
                do_sample=False,
                eos_token_id=list(self.side.eos_ids),
                pad_token_id=0,
            )
            for place, row in zip(part, made[:, width:].tolist(), strict=True):
                found[place] = answer_of(self.side, self.requests[place], row, prompt_cut=False)
        return [found[place] for place in range(len(order))]


def measured(bench: Bench, way: Way) -> dict[str, Any]:
    """One row; where it fails, the reason."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            answers, seconds, size = bench.run(way)
        except RuntimeError as error:
            return {"error": f"{type(error).__name__}: {str(error).splitlines()[0]:.120}"}
    tokens = sum(answer.tokens for answer in answers)
    said = sorted({str(one.message)[:200] for one in heard if "CUDA graph" in str(one.message)})
    row = {"seconds": seconds, "tokens": tokens, "rate": tokens / seconds, "size": size, "said": said}
    return row | {"answers": [answer.output for answer in answers]}


def main() -> None:
    parser = preset_parser(__doc__.splitlines()[0], PRESETS)
    parser.add_argument("--ways", nargs="+", choices=[*WAYS], help="by default all")
    parser.add_argument("--data", type=Path, help="folder with gsm8k/train.jsonl instead of the samples")
    parser.add_argument(
        "--resume", action="store_true", help="leave out rows that an earlier run with these options wrote"
    )
    arguments = parsed(parser)
    demand(arguments.device)
    tried = arguments.preset != "cpu" and arguments.device == "cpu"
    preset = _TRY if tried else PRESETS[arguments.preset]
    torch.set_num_threads(1)
    print(f"{machine(arguments.device)}\n", flush=True)
    compare(Bench(preset, arguments.device, arguments.data), preset, arguments)


def compare(bench: Bench, preset: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Measure all ways and print how they compare."""
    names = arguments.ways or [*WAYS]
    lines = Lines(result_path(arguments, f"generation-{arguments.preset}").with_suffix(".jsonl"), arguments.resume)
    found: dict[str, dict[str, Any]] = {name: row for name in names if (row := lines.find(name)) is not None}
    missing = [name for name in names if name not in found]
    begun = time.monotonic()
    for done, name in enumerate(missing, 1):
        found[name] = row = measured(bench, WAYS[name])
        rest = left(begun, done, len(missing))
        said = f"{row['rate']:,.0f} tokens/s, {row['seconds']:.2f} s" if "rate" in row else row["error"]
        lines.add(name, row, f"{name}: {said}; {rest}")
    table = []
    for name, row in found.items():
        if "rate" not in row:
            continue
        peer = found.get(peer_of(name), {})
        row["equal"] = share_equal(row, peer)
        faster = row["rate"] / peer["rate"] if "rate" in peer else None
        table.append([name, row["size"], row["tokens"], row["seconds"], row["rate"], faster, row["equal"]])
    print(f"\n{preset['prompts']} prompts, at most {preset['new_tokens']} new tokens each\n")
    columns = ["answers", "at a time", "tokens", "s", "tokens/s", "× generate", "equal answers"]
    print(markdown(columns, table))
    for row in found.values():
        row.pop("answers", None)
    values = {"preset": arguments.preset, "setting": preset, "ways": found}
    print(f"\nnumbers: {write(arguments, f'generation-{arguments.preset}', values)}")


def share_equal(row: dict[str, Any], peer: dict[str, Any]) -> float | None:
    """The share of answers that are the peer's."""
    if "answers" not in peer:
        return None
    pairs = list(zip(row["answers"], peer["answers"], strict=True))
    return sum(ours == theirs for ours, theirs in pairs) / len(pairs)


if __name__ == "__main__":
    main()
