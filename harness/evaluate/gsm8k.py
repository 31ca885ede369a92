"""GSM8K, asked and scored by lm-eval's own task: its prompt, its few-shot examples, its two filters.

Two passes over one task, so that generation can be stored between them: ``requests`` runs it with a "model" that only
writes down what it is asked, ``score`` runs it again with one that answers from the stored outputs. Both read local
files; nothing is downloaded.

The task is a YAML file that includes lm-eval's ``gsm8k.yaml`` and changes where rows come from. The few-shot examples
are drawn for each test row in turn from one generator, so they depend on the seed and on the order of both files, but
not on ``limit``. lm-eval's command line uses the seed 1234.
"""

import json
import logging
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base.errors import HarnessError
from harness.base.files import scratch_folder
from harness.data.rows import read_rows

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

DEFAULT_MAX_NEW_TOKENS = 256  # lm-eval's own default; its task names no other
DEFAULT_FEW_SHOT_SEED = 1234  # lm-eval's own default

_TASK = "gsm8k_local"
_FILTERS = {"strict-match": "strict_match", "flexible-extract": "flexible_extract"}  # lm-eval's name -> ours
_BEFORE = "#### "
_FINAL = f"`{_BEFORE}` and a number at its end"  # lm-eval leaves out commas, dollar signs and a last full stop

Answerer = Callable[[Sequence["Instance"]], list[str]]


@dataclass(frozen=True)
class LmEvalRequest:
    """One prompt to generate for, greedily.

    Attributes:
        id: names the test row: ``gsm8k/test/`` and its line in the file, from 0.
        prompt: few-shot examples and question, as lm-eval renders them.
        stop: the output ends before the first of these.
        max_new_tokens: and after this many tokens.
    """

    id: str
    prompt: str
    stop: tuple[str, ...]
    max_new_tokens: int


@dataclass(frozen=True)
class ItemScore:
    """Scores of one test row: ``strict_match`` and ``flexible_extract``, each 0 or 1."""

    id: str
    scores: dict[str, float]


def read_training(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """Rows with a question and an answer that ends with ``#### `` and a number, each with its place as ``source``.

    lm-eval would fail without naming the row, or score 0.

    Raises:
        HarnessError: names file, line and field.
    """
    rows = read_rows(path, ("question", "answer"), limit)
    for row in rows:
        if _BEFORE not in row["answer"]:
            raise HarnessError(f"{row['source']}, field 'answer'", "no final answer", _FINAL)
    return rows


def read_tests(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """The same, where the number is one that lm-eval finds in answers: no answer could score on another.

    Raises:
        HarnessError: names file, line and field.
    """
    rows = read_training(path, limit)
    for row in rows:
        final = row["answer"].rpartition(_BEFORE)[2]
        if not re.fullmatch(r"-?[0-9.]+", re.sub(r"[,$]", "", final).removesuffix(".")):
            found = f"the final answer {final!r:.40}, which no answer scores on"
            raise HarnessError(f"{row['source']}, field 'answer'", found, _FINAL)
    return rows


def requests(train: Path, test: Path, *, few_shot: int, few_shot_seed: int, limit: int | None) -> list[LmEvalRequest]:
    """The prompts of the first ``limit`` test rows (None: all), in the order of the file.

    Args:
        train: GSM8K jsonl; the few-shot examples come from it.
        test: GSM8K jsonl; one prompt a row.
        few_shot: number of examples before the question; the protocol of the papers is 5.
        few_shot_seed: draws them.
        limit: number of test rows.

    Raises:
        HarnessError: a file is missing, or a row of it is not GSM8K's.
    """
    asked: list[LmEvalRequest] = []

    def write_down(instances: Sequence["Instance"]) -> list[str]:
        asked.extend(_request(instance) for instance in instances)
        return [""] * len(instances)

    _run_task(write_down, train, test, few_shot, few_shot_seed, limit)
    return asked


def score(
    train: Path, test: Path, outputs: Mapping[str, str], *, few_shot: int, few_shot_seed: int, limit: int | None
) -> list[ItemScore]:
    """Score stored outputs through the same task; the arguments are those given to ``requests``.

    Args:
        outputs: what was generated, by ``LmEvalRequest.id``; cut at the first stop string here if it was not before.

    Raises:
        HarnessError: a file is missing or malformed, or an output is missing.
    """

    def look_up(instances: Sequence["Instance"]) -> list[str]:
        return [_cut(_stored(outputs, request.id), request.stop) for request in map(_request, instances)]

    samples = _run_task(look_up, train, test, few_shot, few_shot_seed, limit)
    scores: dict[str, dict[str, float]] = {}
    for sample in samples:  # one for each row and filter
        scores.setdefault(_id(sample["doc_id"]), {})[_FILTERS[sample["filter"]]] = float(sample["exact_match"])
    return [ItemScore(id, by_filter) for id, by_filter in scores.items()]


def score_numbers(outputs: Mapping[str, str], numbers: Mapping[str, str]) -> dict[str, float]:
    """Outputs to any prompts by the task's flexible filter, which takes the last number: 100 where it is the right one.

    Args:
        outputs: by item.
        numbers: the right ones of :func:`final_number`, by item.
    """
    with scratch_folder("numbers") as folder:
        path = folder / "rows.jsonl"
        rows = [{"question": "?", "answer": f"{_BEFORE}{number}"} for number in numbers.values()]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        asked = {_id(place): outputs[item] for place, item in enumerate(numbers)}
        scored = score(path, path, asked, few_shot=0, few_shot_seed=DEFAULT_FEW_SHOT_SEED, limit=None)
    by_id = {one.id: 100 * one.scores["flexible_extract"] for one in scored}
    return {item: by_id[_id(place)] for place, item in enumerate(numbers)}


def final_number(text: str) -> str | None:
    """The last number of a text as the flexible filter finds it, in digits alone; None where there is none."""
    found = re.findall(r"-?[$0-9.,]{2,}|-?[0-9]+", text)
    number = re.sub(r"[,$]", "", found[-1]).removesuffix(".") if found else ""
    return number if re.fullmatch(r"-?[0-9.]+", number) and re.search("[0-9]", number) else None


def task_version() -> str:
    """Version of lm-eval and of its gsm8k task, e.g. ``lm-eval 0.4.13, gsm8k 3.0``: scores compare only within it."""
    from importlib.metadata import version

    import yaml

    with _official_task().open(encoding="utf-8") as file:
        task = yaml.safe_load(file)
    return f"lm-eval {version('lm-eval')}, gsm8k {float(task['metadata']['version'])}"


def _run_task(
    answer: Answerer, train: Path, test: Path, few_shot: int, few_shot_seed: int, limit: int | None
) -> list[dict[str, Any]]:
    """Run lm-eval's task with a stand-in for the model; its samples, one for each row and filter.

    ``evaluate`` and not ``simple_evaluate``: that one reseeds torch, numpy and random for the whole process, and spends
    five seconds on a description of the machine. All 1,319 rows with 5 examples take about 15 s, most of it lm-eval
    compiling its templates again for each row.
    """
    if (rows := len(read_training(train))) < few_shot:
        raise HarnessError(str(train), f"{rows} rows", f"a GSM8K jsonl file of at least {few_shot}")
    read_tests(test)
    from lm_eval import evaluate
    from lm_eval.tasks import TaskManager

    with scratch_folder("lm-eval") as folder, _quiet():
        _write_task(folder, train, test, few_shot)
        loaded = TaskManager(include_path=str(folder), include_defaults=False).load([_TASK])
        loaded["tasks"][_TASK].set_fewshot_seed(seed=few_shot_seed)
        results = evaluate(_stand_in(answer), loaded, limit=limit, bootstrap_iters=0, log_samples=True)
    samples: list[dict[str, Any]] = results["samples"][_TASK]
    return samples


def _write_task(folder: Path, train: Path, test: Path, few_shot: int) -> None:
    """lm-eval's task with local files. The cache of ``datasets`` goes to the same temporary folder."""
    import yaml

    data_files = {"train": str(train.resolve()), "test": str(test.resolve())}
    task = {
        "include": str(_official_task()),
        "task": _TASK,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": data_files, "cache_dir": str(folder / "cache")},
        "num_fewshot": few_shot,
    }
    (folder / f"{_TASK}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")


def _official_task() -> Path:
    """lm-eval's gsm8k.yaml, found without importing lm-eval."""
    from importlib.util import find_spec

    spec = find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise HarnessError("gsm8k", "no lm-eval", "the package lm-eval", "Install it: pip install lm-eval.")
    return Path(spec.origin).parent / "tasks" / "gsm8k" / "gsm8k.yaml"


def _stand_in(answer: Answerer) -> Any:
    """A "model" for lm-eval that hands every request to ``answer``. Its class needs lm-eval, so it is made here."""
    from lm_eval.api.model import LM

    class StandIn(LM):  # type: ignore[misc]
        def generate_until(self, requests: list["Instance"]) -> list[str]:
            return answer(requests)

        def loglikelihood(self, requests: list["Instance"]) -> list[tuple[float, bool]]:
            raise NotImplementedError("gsm8k only generates")

        def loglikelihood_rolling(self, requests: list["Instance"]) -> list[float]:
            raise NotImplementedError("gsm8k only generates")

    return StandIn()


def _request(instance: "Instance") -> LmEvalRequest:
    prompt, how = instance.args
    stop = how["until"]
    return LmEvalRequest(
        id=_id(instance.doc_id),
        prompt=prompt,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        max_new_tokens=int(how.get("max_gen_toks", DEFAULT_MAX_NEW_TOKENS)),
    )


def _id(doc_id: int) -> str:
    return f"gsm8k/test/{doc_id}"


def _stored(outputs: Mapping[str, str], id: str) -> str:
    if id not in outputs:
        raise HarnessError("gsm8k outputs", f"no output for {id}", "one for every request", "Generate it first.")
    return outputs[id]


def _cut(output: str, stop: Sequence[str]) -> str:
    for text in stop:
        output = output.split(text, 1)[0]
    return output


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, no log lines below errors; Python's own random numbers as before (some are drawn in there)."""
    state = random.getstate()
    names = ("lm_eval", "datasets")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
        random.setstate(state)
