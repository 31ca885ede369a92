"""Numbers and settings that pages repeat are those of the reports and recipes that they come from."""

from __future__ import annotations

import re

import pytest

from harness import api
from harness.recipe.references import resolved_at
from reports.published import published
from tests.docs.pages import ROOT
from tests.docs.texts import quoted_in, table_of

KNOWN = table_of(ROOT / "docs" / "choose_a_method.md", "What is known")
LITMUS = ROOT / "reports" / "results" / "litmus.md"


def rows_of(file: str, heading: str) -> dict[str, list[str]]:
    """The rows of a report's tables under a heading by their first cell; of two of a name the first."""
    return {row[0]: row for row in reversed(table_of(ROOT / file, heading))}


@pytest.mark.parametrize(("place", "study"), [(1, "known_truth_tuned_fresh"), (2, "known_truth_tuned")])
def test_gaps_are_those_of_the_published_studies(place: int, study: str) -> None:
    learnt = rows_of(f"reports/results/{study}/report.md", "What was learnt: known_truth")
    assert len(KNOWN) > 12
    for row in KNOWN:
        (name,) = quoted_in(row[0])
        assert row[place] in learnt[name], name


def test_what_a_term_teaches_is_the_litmus() -> None:
    claims = dict(re.findall(r"^\| (\w+) \| [^|]*goes \d+% [^|]* \| (-?\d+%) \|", LITMUS.read_text(), re.MULTILINE))
    said = {quoted_in(row[0])[0]: row[3] for row in KNOWN if row[3]}
    assert len(said) > 12
    assert said == {name: claims[name] for name in said}


def test_costs_are_the_benchmarks() -> None:
    losses = rows_of("benchmarks/README.md", "Losses")
    said = {quoted_in(row[0])[0]: row[4] for row in KNOWN if row[4] not in ("", "–")}
    assert len(said) > 5
    assert said == {name: losses[name][3] for name in said}


def test_settings_of_the_paper_are_those_of_its_recipe() -> None:
    recipe = api.load_recipe("phi_qwen_all").model_dump(mode="json")
    known = table_of(ROOT / "docs" / "reproduce_the_paper.md", "Known")
    assert len(known) > 12
    for row in known:
        (field,), (value,) = quoted_in(row[0]), quoted_in(row[1])
        there = resolved_at(recipe, field)
        assert (f"{there:g}" if isinstance(there, float) else str(there)) == value, field


def test_a_settings_page_forgets_none_that_a_report_compares() -> None:
    """Fields that a report holds to the paper's; those that say "all of it" or name models stand elsewhere."""
    fields = {quoted_in(row[0])[0] for row in table_of(ROOT / "docs" / "reproduce_the_paper.md", "Known")}
    compared = published("phi_qwen").settings
    numbers = {name for name, value in compared.items() if value is not None and not name.endswith(".model")}
    assert numbers - fields <= {"dolly.split", "dolly.bos"}


def test_doubtful_numbers_are_published() -> None:
    text = (ROOT / "docs" / "reproduce_the_paper.md").read_text(encoding="utf-8")
    told = re.search(r"HumanEval\+ of ([\d.]+) .* MBPP\+ of ([\d.]+) and ([\d.]+)", text)
    assert told is not None
    for number, column, items in zip(told.groups(), ("humaneval", "mbpp", "mbpp"), (164, 378, 378), strict=True):
        pairs = [published(pair).numbers for pair in ("phi_qwen", "llama_gemma")]
        assert any(value == float(number) and column in key for one in pairs for (_, key), value in one.items())
        assert all(abs(100 * right / items - float(number)) > 0.005 for right in range(items + 1))
