"""Libraries kept from writing into the terminal: bars and log lines of theirs would tear ours."""

from __future__ import annotations

import logging
import os


def quiet_libraries() -> None:
    """To be called before they are imported; what goes wrong in them is still raised."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    for name in ("transformers", "accelerate", "datasets", "lm_eval", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
