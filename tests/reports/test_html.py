"""The page: its values, that nothing in it runs or loads but its own, and how a browser shows it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import asdict, replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from reports import Evidence, Item, ReportContext, ShownAlignment, ShownAnswer, TokenSide, build_table, html, write
from reports.exhibits import STEP_COLUMNS
from reports.to_html import LONGEST_TEXT, MOST_BYTES
from reports.training_costs import COST_COLUMNS
from tests.reports.test_analysis import three_seeds
from tests.reports.test_reports import NEARLY_EVERYTHING, context, frame, score

HOSTILE = "</pre></script><script>document.title = 'taken'</script><img src=x onerror=alert(1)> & \"'"
RESULTS = frame(
    score("sft", 20.0, seed=0),
    score("sft", 22.0, seed=1),
    score("uld", 24.0, seed=0, teacher="big", teacher_kind="cross-tokenizer"),
    score("uld", 25.0, seed=1, teacher="big", teacher_kind="cross-tokenizer"),
    score("cdm", reason="out of memory", teacher="big", teacher_kind="cross-tokenizer"),
    score("sft", 0.75, "bits_per_byte", seed=0),
    score("uld", 0.7, "bits_per_byte", seed=0, teacher="big", teacher_kind="cross-tokenizer"),
)


def alignment(row: str = "uld", text: str = "ab", item: str = "x/0") -> ShownAlignment:
    student, teacher = TokenSide("small", ("a", text, "</s>"), (1, 2, 2)), TokenSide("big", ("ab", "</s>"), (2, 2))
    return ShownAlignment("dolly", item, row, "uld", student, teacher, (((0, 1), (0,)),), (0.25, 0.5, None))


def costs() -> pd.DataFrame:
    seconds = {"uld": 12.5, "sft": 9.5}
    lines = [(row, "dolly", 0, s, 1000, np.nan, 0, np.nan, 1.5, "a machine") for row, s in seconds.items()]
    return pd.DataFrame(lines, columns=list(COST_COLUMNS))


def evidence(**more: object) -> Evidence:
    steps = [("uld", "dolly", 0, step, 2.0 / step, 1.0 / step, 3.0, 0.5, np.nan, np.nan) for step in (1, 2, 3)]
    given: dict[str, object] = {
        "steps": pd.DataFrame(steps, columns=list(STEP_COLUMNS)),
        "items": [
            Item(
                "dolly",
                name,
                "Why?",
                tuple(ShownAnswer(row, HOSTILE, "length", (("rouge_l", 12.345, "%"),)) for row in rows),
            )
            for name, rows in (("x/0", ("sft", "uld")), ("x/1", ("sft", "uld")))
        ],
        "alignments": [alignment(), alignment(item="x/1", text=HOSTILE)],
        "recipe": "name: smoke\n",
        "manifest": [("torch", "2.13.0"), ("student sha256", "ab" * 32)],
        "stages": pd.DataFrame([{"cell": "dolly · uld", "stage": "student", "seconds": 12.5}]),
        "failures": [("dolly · cdm", "out of memory")],
    }
    return Evidence(**(given | more))  # type: ignore[arg-type]


def page(given: Evidence | None = None, results: pd.DataFrame = RESULTS, **more: object) -> str:
    settings = [("Seeds", "0, 1")]
    notes = {
        "notes": ["Mind the noise."],
        "settings": settings,
        "appendix": pd.DataFrame({"method": ["uld"], "x": [0.5]}),
        "costs": costs(),
    }
    return html(build_table(results), context(**(notes | more)), evidence() if given is None else given)


class Page(HTMLParser):
    """What a parser makes of a page: elements with their attributes, and the text of tables, scripts and pre."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in VOID:
            return
        self.open.append(tag)
        self.texts.setdefault(tag, []).append("")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open:
            return
        self.texts[self.open[-1]][-1] += data
        if "td" in self.open or ("th" in self.open and "tr" in self.open):
            self.tables[-1][-1][-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


VOID = {"meta", "link", "br", "img", "input", "hr"}


def clean(cells: list[str]) -> list[str]:
    return [" ".join(cell.split()) for cell in cells]


# --- What it says -----------------------------------------------------------------------------------------------------


def test_the_table_holds_every_value() -> None:
    table = [clean(row) for row in Page(page()).tables[0]]
    assert table[0] == ["method", "dollyROUGE-L% ↑", "gsm8kbits/byte↓", "seeds"]
    assert table[1] == ["sft no teacher", "21.00 ± 1.41", "0.750", "2"]
    assert table[2] == ["uld cross tokenizer: big", "24.50 ± 0.71", "0.700", "2"]
    assert table[3] == ["cdm cross tokenizer: big", "–1", "–2", "0"]  # a footnote's number stands at the end


@pytest.mark.parametrize(
    ("seeds_of_codem", "said"),
    [((0, 1), "on dolly, codem, 2 seeds each."), ((0,), "on dolly (2 seeds), codem (1 seed).")],
)
def test_the_summary_counts_the_seeds_of_each_task(seeds_of_codem: tuple[int, ...], said: str) -> None:
    scores = [score("sft", 20.0 + seed, seed=seed) for seed in (0, 1)]
    results = frame(*scores, *(score("sft", 30.0, "humaneval", seed=seed) for seed in seeds_of_codem))
    assert f"1 way to train small {said}" in page(results=results)


def page_of_tests(**effects: float) -> str:
    frames = three_seeds(**effects)
    return html(frames.table(), context(references=["@misc{uld, title = {<b>}}"], command="harness run recipe=smoke"))


def test_what_can_not_be_told_from_the_best_is_strong() -> None:
    table = three_seeds(top=20, close=19.9, down=-20).table()
    made = Page(html(table, context()))
    assert made.texts["strong"] == [cell.number for *_, cell in table.cells() if cell.best]
    assert len(made.texts["strong"]) == 3


def test_the_page_begins_with_a_verdict_and_its_figure() -> None:
    text = page_of_tests(up=20, down=-20)
    assert text.index('<h2 id="verdict-heading">') < text.index('<h2 id="results-heading">')
    section = text[text.index('<section id="verdict"') : text.index('<section id="results"')]
    assert section.count("<figure>") == 2
    assert "Better than control: up by 2" in section
    assert "Intervals: dolly ROUGE-L, %: row minus control" in section
    assert text.count("Intervals: dolly ROUGE-L, %: row minus control") == 1  # not among the other figures again
    assert "@misc{uld, title = {&lt;b&gt;}}" in text
    assert "harness run recipe=smoke" in text


def test_a_hostile_name_stays_text_in_the_verdict() -> None:
    text = page_of_tests(**{HOSTILE: 20.0, "down": -20.0})
    made = Page(text)
    assert len(made.of("script")) == 1
    assert not made.of("img")


def test_sorting_has_full_precision() -> None:
    made = Page(page())
    values = [attributes.get("data-value") for attributes in made.of("td")]
    assert "24.5" in values
    assert "21.0" in values


def test_footnotes_are_linked_and_all_links_of_the_page_lead_somewhere() -> None:
    made = Page(page())
    ids = [value for _, attributes in made.elements if (value := attributes.get("id"))]
    assert len(ids) == len(set(ids))
    targets = {href for tag in ("a", "use") for attributes in made.of(tag) if (href := attributes.get("href"))}
    assert {target.removeprefix("#") for target in targets} <= set(ids)
    assert {"#note-1", "#results", "#alignments"} <= targets
    assert any("out of memory" in text for text in made.texts["li"])


def test_protocol_settings_manifest_recipe_failures_and_notes_are_there() -> None:
    made = Page(page())
    texts = [text for tag in ("dd", "dt", "li", "p", "pre", "code") for text in made.texts[tag]]
    for expected in ("greedy", "0, 1", "ab" * 32, "2.13.0", "name: smoke\n", "out of memory", "Mind the noise."):
        assert expected in texts


def test_a_report_without_evidence_has_no_empty_sections() -> None:
    made = Page(html(build_table(NEARLY_EVERYTHING), context(), Evidence()))
    sections = {attributes["id"] for attributes in made.of("section")}
    assert sections == {"results", "figures", "protocol"}
    assert {a["href"] for a in made.of("a")} >= {f"#{name}" for name in sections}


def test_figures_are_of_every_column_and_every_part_of_the_training() -> None:
    labels = [label for attributes in Page(page()).of("svg") if (label := attributes.get("aria-label"))]
    assert labels == [
        "Bars: dolly ROUGE-L, %",
        "Bars: gsm8k bits/byte",
        *(
            f"Lines over optimiser steps: {part}"
            for part in ("total loss", "cross-entropy", "distillation term (KD)", "KD/CE gradient norm")
        ),
        "Points: dolly ROUGE-L, % against seconds of training",
    ]


def test_the_pages_figures_are_files_too_and_old_ones_go(tmp_path: Path) -> None:
    write(RESULTS, context(costs=costs()), tmp_path, evidence=evidence())
    of_page = [label for attributes in Page(page()).of("svg") if (label := attributes.get("aria-label"))]
    made = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "figures").iterdir()}
    assert sorted(ElementTree.fromstring(svg).attrib["aria-label"] for svg in made.values()) == sorted(of_page)
    assert not any("currentColor" in svg for svg in made.values())  # there is no page to take it from
    assert "scores-dolly-rouge-l.svg" in made
    write(RESULTS[RESULTS["metric"] == "bits_per_byte"], context(), tmp_path)
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["scores-gsm8k-bits-byte.svg"]


def test_answers_stand_side_by_side_with_their_scores() -> None:
    made = Page(page())
    articles = [attributes["data-name"] for attributes in made.of("article")]
    assert articles == ["dolly · x/0", "dolly · x/1"]
    assert made.texts["pre"].count(HOSTILE) == 4
    assert [text for text in made.texts["span"] if "ROUGE" in text] == ["ROUGE-L 12.35 %"] * 4


def unpacked(made: Page) -> list[dict[str, object]]:
    """The alignments in a page, tokens and groups where they belong."""
    (text,) = [text for text in made.texts["script"] if text.startswith("{")]
    packed = json.loads(text)
    groups = [
        [[members if isinstance(members, list) else [members] for members in group] for group in of_one]
        for of_one in packed["groups"]
    ]
    sides = packed["sides"]
    places = {"student": sides, "teacher": sides, "groups": groups}
    return [
        {name: places[name][value] if name in places else value for name, value in one.items()}
        for one in packed["alignments"]
    ]


def test_alignment_data_is_what_was_given() -> None:
    names = {"teacher_kind": "kind", "stand_in": "standIn"}
    expected = [asdict(one) for one in (alignment(), alignment(item="x/1", text=HOSTILE))]
    named = [{names.get(name, name): value for name, value in one.items()} for one in expected]
    assert unpacked(Page(page())) == json.loads(json.dumps(named))


def test_alignments_of_an_item_stay_together_and_share_what_is_the_same() -> None:
    """Tasks in turn: a page that has no room for all of them has some of each."""
    given = [
        replace(alignment(row, item=f"x/{number}"), task=task)
        for task in ("dolly", "gsm8k")
        for row in ("uld", "gold")
        for number in (0, 1)
    ]
    text = page(evidence(alignments=given))
    assert [(one["task"], one["item"], one["row"]) for one in unpacked(Page(text))] == [
        (task, item, row) for item in ("x/0", "x/1") for task in ("dolly", "gsm8k") for row in ("uld", "gold")
    ]
    assert text.count('"ends":[2,2]') == 1


def test_what_can_be_chosen_and_what_is_not_there_is_said() -> None:
    apart = replace(alignment("cdm", item="x/1"), kd=(), traced=False, stand_in=True)
    text = page(evidence(alignments=[alignment(), apart], aligned=[("dolly", 50, 500), ("gsm8k", 8, 8)]))
    for said in ("dolly: the first 50 of 500 test responses.", "gsm8k: all 8 test responses.", "they alone have KD"):
        assert said in text
    assert "they alone have KD" not in page()


def test_the_reference_stands_before_the_answers() -> None:
    items = [
        Item("dolly", "x/0", "Why?", (ShownAnswer("sft", "so", "eos"),), HOSTILE),
        Item("dolly", "x/1", "Who?", ()),
    ]
    made = Page(page(evidence(items=items)))
    assert made.texts["h4"] == ["reference answer", "sft"]
    assert made.texts["pre"][:3] == ["Why?", HOSTILE, "so"]


# --- What it must not do ----------------------------------------------------------------------------------------------


def test_hostile_text_stays_text_wherever_it_comes_from() -> None:
    results = frame(
        score(HOSTILE, 1.0, student=HOSTILE, teacher=HOSTILE, teacher_kind="both"),
        score("b", reason=HOSTILE, student=HOSTILE),
    )
    hostile = evidence(
        recipe=HOSTILE,
        manifest=[(HOSTILE, HOSTILE)],
        failures=[(HOSTILE, HOSTILE)],
        stages=pd.DataFrame({HOSTILE: [HOSTILE]}),
        items=[Item(HOSTILE, HOSTILE, HOSTILE, (ShownAnswer(HOSTILE, HOSTILE, HOSTILE, ((HOSTILE, 1.0, HOSTILE),)),))],
    )
    given = ReportContext(
        title=HOSTILE,
        recipe=HOSTILE,
        protocol={"dolly": [HOSTILE]},
        settings=[(HOSTILE, HOSTILE)],
        notes=[HOSTILE],
        appendix=pd.DataFrame({HOSTILE: [HOSTILE]}),
    )
    made = Page(html(build_table(results), given, hostile))
    assert len(made.of("script")) == 2
    assert made.of("img") == []
    assert made.texts["h1"] == [HOSTILE]
    assert not [name for _, attributes in made.elements for name in attributes if name.startswith("on")]


def test_nothing_outside_is_asked_for() -> None:
    text = page()
    for tag, attributes in Page(text).elements:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            if (value := attributes.get(name)) is not None:
                assert value.startswith("#") or value == "data:,", (tag, name, value)
    assert set(re.findall(r"url\(([^)]{1,3})", text)) <= {"#f-"}
    assert "@import" not in text
    assert not re.findall(r"\b(?:fetch|XMLHttpRequest|WebSocket|sendBeacon|import)\s*\(", text)


def test_the_policy_allows_the_pages_own_style_and_script_and_nothing_else() -> None:
    made = Page(page())
    (policy,) = [m["content"] for m in made.of("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(made.texts[tag][-1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not [tag for tag, attributes in made.elements if "style" in attributes]  # the policy would ignore it


def test_the_page_stays_small_and_says_what_it_leaves_out() -> None:
    long = "word " * 2_000
    many = evidence(
        items=[
            Item("dolly", f"x/{i}", long, tuple(ShownAnswer(f"m{k}", long, "eos") for k in range(20)))
            for i in range(60)
        ],
        alignments=[alignment(item=f"x/{i}", text=f"{i} '<{long}") for i in range(400)],
    )
    text = page(many)
    assert len(text.encode()) < MOST_BYTES
    assert f"({len(long) - LONGEST_TEXT} more characters)" in text
    made = Page(text)
    shown = len(made.of("article"))
    assert 0 < shown < 60
    assert f"{60 - shown} more items are left out, to keep the page small." in text
    assert "more alignments are left out" in text


def test_equal_results_make_equal_pages() -> None:
    assert page() == page()


# --- In a browser -----------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian's package: chromium)")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


def browse(text: str, folder: Path, *flags: str) -> str:
    """Open a page in a new browser; what it prints."""
    folder.mkdir(exist_ok=True)
    (folder / "page.html").write_text(text, encoding="utf-8")
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, (folder / "page.html").as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout


def with_probe(text: str, code: str) -> str:
    """The page without its policy, and with a script of the test's that leaves JSON in an element of its own.

    It runs once everything has loaded, frames too, and before the browser prints the page.
    """
    bare = re.sub(r"<meta http-equiv[^>]*>", "", text)
    leave = "const out = document.createElement('output'); out.textContent = JSON.stringify(found);"
    run = f"const found = (() => {{{code}}})(); {leave} document.body.append(out);"
    return bare.replace("</body>", f"<script>addEventListener('load', () => {{{run}}});</script></body>")


def probed(text: str, code: str, folder: Path, *flags: str) -> object:
    (answer,) = Page(browse(with_probe(text, code), folder, "--dump-dom", *flags)).texts["output"]
    return json.loads(answer)


@pytest.mark.browser
@in_browser
def test_its_own_script_runs_under_its_policy_and_no_other_does(tmp_path: Path) -> None:
    made = Page(browse(page(), tmp_path, "--dump-dom"))
    assert made.texts["title"][0] == "Report"
    buttons = [text for text in made.texts["button"] if text]
    assert "Next" in buttons
    assert "seeds" in buttons  # headings can be clicked
    hidden = [attributes["data-name"] for attributes in made.of("article") if "hidden" in attributes]
    assert hidden == ["dolly · x/1"]
    assert [a for a in made.of("div") if a.get("id") == "viewer" and "hidden" in a] == []
    foreign = page().replace("</body>", "<script>document.title = 'taken'</script></body>")
    assert Page(browse(foreign, tmp_path / "foreign", "--dump-dom")).texts["title"][0] == "Report"


@pytest.mark.browser
@in_browser
def test_clicks_sort_the_table_turn_it_round_and_bring_it_back(tmp_path: Path) -> None:
    code = """
    const table = document.querySelector("table.sortable"), orders = [];
    const names = () => [...table.tBodies[0].rows].map(row => row.cells[0].dataset.value);
    for (const column of [1, 1, 1, 0]) {
      table.tHead.rows[0].cells[column].querySelector("button").click();
      orders.push([table.tHead.rows[0].cells[column].getAttribute("aria-sort"), names()]);
    }
    return orders;"""
    assert probed(page(), code, tmp_path) == [
        ["descending", ["uld", "sft", "cdm"]],  # what has no number stays below
        ["ascending", ["sft", "uld", "cdm"]],
        [None, ["sft", "uld", "cdm"]],
        ["ascending", ["cdm", "sft", "uld"]],
    ]


@pytest.mark.browser
@in_browser
def test_the_viewer_draws_tokens_links_masks_and_kd(tmp_path: Path) -> None:
    code = """
    const strip = document.getElementById("viewer-strip"), count = name => strip.querySelectorAll(name).length;
    const first = [count(".token"), count(".masked"), count(".link"), count(".kd")];
    const heights = [...strip.querySelectorAll(".kd")].map(bar => Number(bar.getAttribute("height")));
    const spans = [...strip.querySelectorAll(".token > rect")].map(
      box => [Number(box.getAttribute("x")), Number(box.getAttribute("width"))]);
    const said = document.getElementById("viewer-summary").textContent;
    const item = document.getElementById("viewer-item");
    item.selectedIndex = 1;
    item.dispatchEvent(new Event("change"));
    return {first, ratio: heights[1] / heights[0], spans, said, second: strip.textContent.includes("onerror"),
            images: strip.querySelectorAll("img, script").length,
            table: [...document.getElementById("viewer-table").rows].length};"""
    found = probed(page(), code, tmp_path)
    assert isinstance(found, dict)
    assert found["first"] == [5, 2, 2, 2]  # a, b, </s> and ab, </s>; the ends are in no group; two tokens to one
    assert found["ratio"] == pytest.approx(2)  # KD 0.5 and 0.25
    (a, _), (b, _), _, (ab, width), _ = found["spans"]
    assert a == ab  # both sides begin at byte 0, and the teacher's token is as wide as the student's two
    assert width > b - a
    assert found["said"] == (
        "3 student and 2 teacher tokens; 1 groups, 0 of them one to one; 1 student and 1 teacher tokens masked; "
        "KD 0.7500 in all."
    )
    assert found["second"]
    assert found["images"] == 0
    assert found["table"] == 2


@pytest.mark.browser
@in_browser
def test_the_viewer_opens_on_another_tokenizer_and_keeps_the_method_from_item_to_item(tmp_path: Path) -> None:
    kinds = {"fkd": "same-tokenizer", "uld": "cross-tokenizer", "cdm": "cross-tokenizer"}
    given = [
        replace(
            alignment(row, item=f"x/{number}"),
            teacher_kind=kind,
            traced=number == 1,
            kd=(0.25, 0.5, None) if number == 1 else (),
            stand_in=row == "cdm" and number != 1,
        )
        for row, kind in kinds.items()
        for number in range(3)
    ]
    code = """
    const item = document.getElementById("viewer-item"), row = document.getElementById("viewer-row"), seen = [];
    const see = () => seen.push([item.selectedOptions[0].textContent, row.value, strip.querySelectorAll(".kd").length,
                                 document.getElementById("viewer-summary").textContent.split("masked")[1]]);
    const strip = document.getElementById("viewer-strip");
    see();
    row.value = "cdm/uld";
    document.getElementById("viewer-next").click();
    see();
    document.getElementById("viewer-next").click();
    document.getElementById("viewer-next").click();
    see();
    return seen;"""
    apart = (
        "; KD by token is stored for the responses marked so. Groups of shared bytes: the links of uld itself need the "
        "models' entropies, and are stored for the responses marked with KD."
    )
    assert probed(page(evidence(alignments=given)), code, tmp_path) == [
        ["dolly · x/1 (KD)", "uld/uld", 2, "; KD 0.7500 in all."],
        ["dolly · x/2", "cdm/uld", 0, apart],
        ["dolly · x/1 (KD)", "cdm/uld", 2, "; KD 0.7500 in all."],
    ]


@pytest.mark.browser
@in_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_as_wide_as_its_window(width: int, tmp_path: Path) -> None:
    """In a frame: a window of its own is never as narrow as a phone."""
    wide = "unbreakable" * 40
    hard = evidence(recipe=wide, manifest=[(wide, wide)], failures=[(wide, wide)])
    bare = re.sub(r"<meta http-equiv[^>]*>", "", page(hard, title=wide, notes=[wide], settings=[(wide, wide)]))
    frame = (
        f'<!doctype html><html><body><iframe width="{width}" height="900" style="border: 0" srcdoc="{escape(bare)}">'
    )
    code = """
    const inside = document.querySelector("iframe").contentWindow;
    return [inside.innerWidth, inside.document.documentElement.scrollWidth];"""
    assert probed(f"{frame}</iframe></body></html>", code, tmp_path) == [width, width]


@pytest.mark.browser
@in_browser
@pytest.mark.parametrize(("name", "scheme"), [("light", 1), ("dark", 0)])
def test_a_shade_at_an_edge_of_a_table_says_that_it_goes_on_there(name: str, scheme: int, tmp_path: Path) -> None:
    """At 390 pixels at both ends of its way, and where it fits; in frames, as a window is never as narrow as a phone.

    The line of pixels through the caption's upper padding crosses no text.
    """
    metrics = ("rouge_l", "humaneval", "exact_match_strict", "bits_per_byte")
    bare = re.sub(r"<meta http-equiv[^>]*>", "", page(results=frame(*(score("sft", 50.0, m) for m in metrics))))
    roll = "<script>onload = () => { document.querySelector('.scroll').scrollLeft = 9999; };</script>"
    frames = "".join(
        f'<iframe width="{width}" height="900" style="border: 0" srcdoc="{escape(text)}"></iframe>'
        for width, text in ((390, bare), (390, bare.replace("</body>", f"{roll}</body>")), (900, bare))
    )
    code = """
    return [...document.querySelectorAll("iframe")].map(inside => {
      const box = inside.contentDocument.querySelector(".scroll").getBoundingClientRect();
      const at = inside.getBoundingClientRect();
      return [at.left + box.left, at.left + box.right, at.top + box.top + 6].map(Math.round);
    });"""
    text = f'<!doctype html><html><body style="display: flex; margin: 0; width: 1680px">{frames}</body></html>'
    window = ["--window-size=1680,900", f"--blink-settings=preferredColorScheme={scheme}"]
    places = probed(text, code, tmp_path, *window)
    shot = tmp_path / f"{name}.png"
    browse(text, tmp_path, f"--screenshot={shot}", *window)
    grey = matplotlib.image.imread(shot)[..., :3].mean(axis=-1)

    def shaded(x: int, y: int, ground: int) -> bool:
        return bool(abs(grey[y, x] - grey[y, ground]) > 0.05)

    # 4 pixels inside each edge, against 60 pixels inside the left one
    found = [(shaded(left + 4, y, left + 60), shaded(right - 4, y, left + 60)) for left, right, y in places]
    assert found == [(False, True), (True, False), (False, False)]


@pytest.mark.browser
@in_browser
@pytest.mark.parametrize(("name", "scheme"), [("light", 1), ("dark", 0)])
def test_screenshots_follow_the_readers_colours(name: str, scheme: int, tmp_path: Path) -> None:
    shot = tmp_path / f"{name}.png"
    flags = [f"--screenshot={shot}", "--window-size=800,1400", f"--blink-settings=preferredColorScheme={scheme}"]
    browse(page(), tmp_path, *flags)
    image = matplotlib.image.imread(shot)[..., :3]
    assert image.shape[:2] == (1400, 800)
    paper = image[5, 5].mean()
    assert (paper > 0.9) if name == "light" else (paper < 0.2)
    ink = np.abs(image.mean(axis=-1) - paper)
    assert ink.max() > 0.6  # text stands out
    assert 0.02 < (ink > 0.1).mean() < 0.6
