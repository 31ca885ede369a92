"""Libraries kept from writing into the terminal: bars and log lines of theirs would tear ours."""

from __future__ import annotations

import logging
import os

from rich import control


def show_no_escapes() -> None:
    """Have rich drop control characters from all text: one from a stranger's file could rewrite the screen.

    It drops five of them by itself (``rich.control.STRIP_CONTROL_CODES``), and not the one that begins a sequence.
    """
    codes = (*range(0x20), *range(0x7F, 0xA0))
    control._CONTROL_STRIP_TRANSLATE.update({code: None for code in codes if chr(code) not in "\t\n"})


def quiet_libraries() -> None:
    """To be called before they are imported; what goes wrong in them is still raised."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    for name in ("transformers", "accelerate", "datasets", "lm_eval", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
