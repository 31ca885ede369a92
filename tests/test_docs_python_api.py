"""The page about the Python API holds what it says: its code blocks run, one after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

PAGE = Path(__file__).parents[1] / "docs" / "python_api.md"


def test_code_blocks_run(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As they stand, but for the recipe: tiny models in place of quickstart's, which are hundreds of MB."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_recipe))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HARNESS_RUNS", raising=False)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 10
    names: dict[str, Any] = {"__name__": "notebook"}
    for number, block in enumerate(blocks, start=1):
        code = compile(block.replace('"quickstart"', '"tiny.yaml"'), f"{PAGE.name}, block {number}", "exec")
        exec(code, names)
    printed = capsys.readouterr().out
    assert 'Did you mean "uld"?' in printed
    assert "train.steps" in printed
    assert (tmp_path / "report" / "report.html").is_file()
