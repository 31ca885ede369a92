"""lm-eval as a user of it would call it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock


def simple_evaluate(
    folder: Path, train: Path, test: Path, said: Mapping[str, str], *, few_shot: int, seed: int, limit: int
) -> dict[str, Any]:
    """lm-eval's own entry point on its gsm8k task, named ``by_hand``, with a model that says what it is told to.

    Args:
        folder: for the task's file.
        train, test: GSM8K jsonl.
        said: answers by prompt, to the letter of lm-eval's prompts.
    """
    import lm_eval
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    class Parrot(LM):  # type: ignore[misc]
        def generate_until(self, requests: list[Any]) -> list[str]:
            assert all(request.args[1]["until"] == ["Question:", "</s>", "<|im_end|>"] for request in requests)
            # a model of lm-eval ends at the stop strings
            return [said[request.args[0]].split("Question:")[0] for request in requests]

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            raise NotImplementedError

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            raise NotImplementedError

    official = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
    (folder / "by_hand.yaml").write_text(
        f"include: {official}\ntask: by_hand\ndataset_path: json\ndataset_name: null\n"
        f"dataset_kwargs:\n  data_files: {{train: '{train.resolve()}', test: '{test.resolve()}'}}\n"
        f"  cache_dir: '{folder / 'cache'}'\n"
    )
    # a description of the machine, which takes five seconds and no part in scores
    with mock.patch("torch.utils.collect_env.get_pretty_env_info", return_value=""):
        results: dict[str, Any] = lm_eval.simple_evaluate(
            model=Parrot(),
            tasks=["by_hand"],
            num_fewshot=few_shot,
            fewshot_random_seed=seed,
            limit=limit,
            bootstrap_iters=0,
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        )
    return results
