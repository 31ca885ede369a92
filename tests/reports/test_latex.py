"""The table as LaTeX: its cells, its escapes, and that pdflatex takes it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from reports import build_table, latex, latex_table
from reports.to_latex import escape
from tests.reports.test_analysis import three_seeds
from tests.reports.test_reports import NEARLY_EVERYTHING, context, frame, score

NASTY = '50% of $x_1 & #{a}~^\\ <b> "q" |p| é ß Ł 你 τ±→ \N{EM DASH} §2 *'


def rows(text: str) -> list[list[str]]:
    """Cells of each line of the tables."""
    return [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if line.endswith(r" \\")]


def test_values_best_spread_and_footnotes() -> None:
    results = frame(
        score("sft", 20.0, seed=0),
        score("sft", 22.0, seed=1),
        score("uld", 24.0, seed=0),
        score("uld", reason="out of memory", seed=1),
    )
    text = latex_table(build_table(results), context())
    made = {row[0]: row[1:] for row in rows(text)}
    assert made["sft"] == ["2", r"21.00 $\pm$ 1.41"]
    assert made["uld"] == ["1", "24.00$^{1}$"]
    assert r"$^{1}$~1 of 2 seeds; seed 1: out of memory\par" in text
    for command in (r"\toprule", r"\midrule", r"\bottomrule", r"\label{tab:smoke}"):
        assert command in text
    assert r"\hline" not in text


def test_the_caption_is_short_and_the_document_says_the_rest() -> None:
    table, said = build_table(frame(score("sft", 1.0), score("sft", 2.0, seed=1))), context(title="A & B")
    (caption,) = [line for line in latex_table(table, said).splitlines() if line.startswith(r"\caption{")]
    assert caption == r"\caption{A \& B. Student: small. $\pm$: deviation over training seeds.}"
    document = latex(table, said)
    assert r"\input{table.tex}" in document
    assert r"\paragraph{dolly} greedy. ROUGE-L: 100 items." in document
    assert "sample standard deviation over training seeds" in document


def test_marks_bold_and_verdict_are_in_the_table_and_the_document() -> None:
    table = three_seeds(up=20, down=-20).table()
    text, document = latex_table(table, context()), latex(table, context())
    made = {row[0]: row[1:] for row in rows(text)}
    assert re.fullmatch(r"\\textbf\{[\d.]+\}\$\\dagger\$ \$\\pm\$ [\d.]+", made["up"][1])
    assert re.fullmatch(r"[\d.]+\$\\ddagger\$ \$\\pm\$ [\d.]+", made["down"][1])
    (caption,) = [line for line in text.splitlines() if line.startswith(r"\caption{")]
    assert r"$\dagger$ better, $\ddagger$ worse than control (5 \%, Holm, over trainings and items)" in caption
    assert r"\section*{Verdict}" in document
    assert "Better than control: up by" in document


def test_tables_of_several_students_have_labels_of_their_own() -> None:
    text = latex_table(build_table(frame(score("sft", 1.0), score("sft", 1.0, student="Big One"))), context())
    assert [line for line in text.splitlines() if "label" in line] == [
        r"\label{tab:smoke-small}",
        r"\label{tab:smoke-big-one}",
    ]


def test_every_line_has_a_cell_for_every_column() -> None:
    text = latex_table(build_table(NEARLY_EVERYTHING), context())
    (columns,) = {
        line.count("r") + 1
        for line in text.splitlines()
        if line.startswith(r"\begin{tabular}{l")
        for line in [line.partition("{tabular}{l")[2]]
    }
    for row in rows(text):
        assert len(row) == columns or row[0].startswith(r"\multicolumn{" + str(columns))


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a_b & 5%", r"a\_b \& 5\%"),
        ("\\{}", r"\textbackslash{}\{\}"),
        ("two\n lines", "two lines"),
        ("é ×", r"é $\times$"),
        ("Łódź", "?ódz"),
        ("你", "?"),
        ("Σ -log2 p, δ ≤ θ", r"$\Sigma$ -log2 p, $\delta$ $\leq$ $\theta$"),
    ],
)
def test_escape(text: str, escaped: str) -> None:
    assert escape(text) == escaped


@pytest.mark.latex
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed (texlive-latex-recommended)")
def test_pdflatex_compiles_it(tmp_path: Path) -> None:
    results = frame(
        *(
            score(NASTY, 1.0, metric, student=NASTY, teacher=NASTY, teacher_kind="both")
            for metric in ("rouge_l", "humaneval")
        ),
        score("m", reason=NASTY, student=NASTY),
    )
    protocol = {name: [NASTY] for name in ("dolly", "codem")}
    for name, table, said in (
        ("all", build_table(NEARLY_EVERYTHING), context()),
        ("nasty", build_table(results), context(title=NASTY, protocol=protocol, command=NASTY)),
        ("marked", three_seeds(up=20, down=-20).table(), context()),
    ):
        (tmp_path / f"{name}.tex").write_text(latex(table, said), encoding="utf-8")
        (tmp_path / "table.tex").write_text(latex_table(table, said), encoding="utf-8")
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"{name}.tex"],
            cwd=tmp_path,
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
        assert "Overfull \\hbox" not in (tmp_path / f"{name}.log").read_text(errors="replace")
        assert (tmp_path / f"{name}.pdf").stat().st_size > 10_000
