"""What transformers' Trainer is told of a training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import TrainingArguments

from harness.base.device import compute_dtype
from harness.base.ranks import world_size
from harness.recipe.training import Training
from harness.training.sharding import keep_precision, settings_of, shards

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def arguments_of(
    training: Training, student: PreTrainedModel, micro: int, steps: int, seed: int, work: Path
) -> TrainingArguments:
    """A recipe's settings of a training, as transformers' Trainer takes them.

    Args:
        student: that is trained.
        micro: responses of a forward pass and process.
        steps, seed, work: see :func:`harness.training.trainer.train`.
    """
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=training.batch_size // (micro * world_size()),
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule,
        warmup_steps=training.warmup,
        weight_decay=training.weight_decay,
        adam_beta1=training.adam_betas[0],
        adam_beta2=training.adam_betas[1],
        max_grad_norm=training.max_grad_norm,
        bf16=compute_dtype(training.precision) == "bfloat16",
        gradient_checkpointing=training.gradient_checkpointing,
        seed=seed,
        data_seed=seed,
        save_strategy="steps" if training.checkpoint_every else "no",
        save_steps=training.checkpoint_every or 500,
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=1,
        report_to=list(training.report_to) or "none",
        disable_tqdm=True,
        ddp_find_unused_parameters=False,  # every step uses all that is trained
        remove_unused_columns=False,
        dataloader_pin_memory=False,  # the thread that reads ahead does that
        use_cpu=not torch.cuda.is_available(),
        log_level="error",
        logging_nan_inf_filter=False,  # waits for the device after every micro-batch, for a number that nobody keeps
        **(settings_of(student) if shards(training) else {}),
    )
    if arguments.fsdp:
        keep_precision(arguments)
    # Else that of `accelerate launch`, or of its file of settings, where the recipe asks for float32.
    arguments.mixed_precision = "bf16" if arguments.bf16 else "no"
    if arguments.n_gpu > 1:  # one process drives one GPU: DataParallel can't scatter our batches
        arguments._n_gpu = 1
    return arguments
