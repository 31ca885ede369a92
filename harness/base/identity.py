"""What a result means, as digests: source code, libraries, seeds."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
from typing import Any

from harness import __version__
from harness.base.code_closure import own_sources
from harness.base.provenance import commit, plug_ins


def seed_of(*coordinates: str | int) -> int:
    """A 31-bit seed hashed from named coordinates: equal coordinates give equal draws, whatever else runs."""
    text = "\x1f".join(str(part) for part in coordinates)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


@functools.cache
def code_digest(*modules: str) -> str:
    """Digest of what modules of ours say, by themselves: comments, docstrings and layout do not count.

    Raises:
        LookupError: there is no module of that name.
    """
    return own_sources().digest(modules)


@functools.cache
def versions(*libraries: str) -> dict[str, str]:
    """Installed versions of libraries that can change a result."""
    return {library: importlib.metadata.version(library) for library in libraries}


@functools.cache
def environment() -> dict[str, Any]:
    """Where a result was made: recorded in manifests, no part of an identity."""
    import torch

    libraries = ("torch", "transformers", "tokenizers", "accelerate", "peft", "lm-eval", "evalplus", "rouge-score")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "harness": __version__,
        "git": commit(),
        "plug-ins": plug_ins(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "threads": torch.get_num_threads(),
        **versions(*libraries),
    }
