"""What a result means, as digests: source code, libraries, seeds."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import platform
from pathlib import Path
from typing import Any

from harness import __version__
from harness.base.provenance import commit, plug_ins


def seed_of(*coordinates: str | int) -> int:
    """A 31-bit seed hashed from named coordinates: equal coordinates give equal draws, whatever else runs."""
    text = "\x1f".join(str(part) for part in coordinates)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


@functools.cache
def code_digest(*modules: str) -> str:
    """Digest of what the modules compute: comments, docstrings and layout do not count."""
    parts = []
    for name in modules:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(name)
        parts.append(f"{name}\n{_meaning(Path(spec.origin).read_text(encoding='utf-8'))}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def imported_modules(module: str) -> list[str]:
    """The module and all that it imports, directly or not, of its own top-level package."""
    found: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if name in found or (spec := importlib.util.find_spec(name)) is None or spec.origin is None:
            continue
        found.add(name)
        package = module.partition(".")[0]
        for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                named = [node.module]
            elif isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            else:
                continue
            pending += [other for other in named if other.partition(".")[0] == package]
    return sorted(found)


def _meaning(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [statement for statement in body if not _is_docstring(statement)]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_docstring(statement: Any) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


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
