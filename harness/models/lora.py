"""Low-rank adapters: added before a training, merged after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.models.spec import Lora


def add_lora(model: Any, lora: Lora) -> tuple[Any, Any]:
    """Put adapters into a model, in place.

    Returns:
        The peft wrapper, which saves and merges adapters, and the causal language model inside, which is trained.

    Raises:
        HarnessError: adapters of an embedding that is the head too: merged they would change the head, untrained.
    """
    from peft import LoraConfig, get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
    )
    wrapper = get_peft_model(model, config)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if tied and any(isinstance(end, BaseTunerLayer) for end in ends):
        raise HarnessError(
            "lora.targets",
            f"{lora.targets}, with the embedding that this model's head shares",
            "other layers, or all-linear, which leaves both out",
        )
    return wrapper, wrapper.get_base_model()


def merge_lora(model: Any, folder: Path) -> Any:
    """The model with the stored adapters merged into its weights."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
