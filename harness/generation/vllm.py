"""Generation through vLLM, where it is installed and ``evaluation.engine: vllm`` asks for it.

The prompts' tokens, the limits, the ends of answers and the seeds of examples are those of ``generate``, and the same
code makes answers of tokens. Numerics are vLLM's, and so are the draws of a seed: it gives other samples of the same
distribution, and can give other greedy answers where two tokens are nearly as likely. So the engine and its version are
part of an answer's identity.

Written to vLLM's interface (``LLM``, ``SamplingParams``, ``RequestOutput``); tests put a stand-in in its place, and
nothing here has been run on vLLM itself.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import torch

from harness.base.errors import HarnessError
from harness.base.files import scratch_folder
from harness.base.identity import seed_of
from harness.data.rows import Request
from harness.data.templates import TextSide
from harness.generation.answers import answer_of, cut_prompt, prompt_tokens
from harness.models.load import save_model
from harness.store.artefacts import Answer

MEMORY_SHARE = 0.8  # of the GPU's; the rest is for what this process keeps there


HOW = "Install it: pip install -e '.[vllm]'. It needs a GPU."


def installed() -> str | None:
    """The version of vLLM; None where it is not installed."""
    try:
        return metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return None


def check_installed() -> None:
    """Before anything runs.

    Raises:
        HarnessError: vLLM is not installed.
    """
    if installed() is None:
        raise HarnessError("evaluation.engine", "vllm, which is not installed", "hf, or an installed vLLM", HOW)


def generate(
    model: Any,
    side: TextSide,
    requests: Sequence[Request],
    *,
    new_tokens: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """Answers in the order of the requests; as :func:`harness.generation.answers.generate`, but for batches.

    Args:
        model: vLLM reads its weights from a temporary folder; meanwhile it waits on the CPU.

    Raises:
        HarnessError: vLLM is not installed.
    """
    check_installed()
    from vllm import LLM, SamplingParams

    whole = prompt_tokens(side, requests)
    prompts = [cut_prompt(prompt, request) for prompt, request in zip(whole, requests, strict=True)]
    device = next(model.parameters()).device
    with scratch_folder("vllm") as folder:
        save_model(model, side.tokenizer, folder)
        model.to("cpu")
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what torch keeps for later would count against vLLM's share
        try:
            engine = LLM(
                model=str(folder),
                dtype=str(model.dtype).removeprefix("torch."),
                generation_config="vllm",  # not what the model's publisher set for chats
                max_model_len=max(map(len, prompts)) + new_tokens,
                gpu_memory_utilization=MEMORY_SHARE,
                seed=0,
            )
            outputs = engine.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts],
                [SamplingParams(**_sampling(request, side, new_tokens)) for request in requests],
                use_tqdm=False,
            )
            del engine  # its processes end, and give back the memory
            gc.collect()
        finally:
            model.to(device)
    on_batch(len(requests))
    return [
        answer_of(side, request, _ids(output.outputs[0]), len(prompt) < len(all_of_it))
        for request, output, prompt, all_of_it in zip(requests, outputs, prompts, whole, strict=True)
    ]


def _sampling(request: Request, side: TextSide, new_tokens: int) -> dict[str, Any]:
    """Arguments of ``SamplingParams``: greedy, or T=1 from the whole distribution with a seed of the example's own."""
    sampled = request.seed is not None
    return {
        "temperature": 1.0 if sampled else 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "seed": seed_of("sampling", request.id, request.seed) if request.seed is not None else None,
        "max_tokens": new_tokens,
        "stop": [stop for stop in request.stop if stop],
        # ours alone, whatever vLLM takes the model's own end to be
        "stop_token_ids": list(side.eos_ids),
        "ignore_eos": True,
        "skip_special_tokens": True,
    }


def _ids(completion: Any) -> list[int]:
    """Tokens of an answer, the one that ended it included."""
    ids, end = list(completion.token_ids), completion.stop_reason
    return [*ids, end] if isinstance(end, int) and ids[-1:] != [end] else ids
