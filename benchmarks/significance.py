"""How often a table's marks are wrong, and what they find: simulated columns, tested as the reports test them.

    python benchmarks/significance.py                # the whole table, about a minute on one core
    python benchmarks/significance.py --tables 500   # a first look

A score is method + block + training + items: a block is what rows of one seed share (teacher, warm start, order of the
data), a training's noise has the deviation 1, an item's the deviation :data:`ITEM` (in 82 items a difference of two
rows then has an error of 0.55, as in a published study). Marks are wrong where no method differs; size is the share of
tables in which any row is marked. "once" trains the control with as many seeds as the others, "twice" with twice as
many. "larger" takes the larger of the pooled variance and that of a row's differences to the control, where marks tell
the two rows' own variances apart; "old" is what reports marked before: items alone, and with a paired t-test over seeds
besides.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from common import machine, markdown, parsed, write

from reports.analysis import LEVEL
from reports.method_tests import Contrasts, contrasts, pooled_variance
from reports.statistics import holm, student_t_tail

Array = npt.NDArray[np.float64]

ITEM = 3.5
BLOCK = 1.0
NOISIER = 3.0
TABLES = 4_000
SEEDS, ROWS, ITEMS = (2, 3, 5), (4, 6, 8, 12), (82, 300, 1319)
NOISE = ("equal", "row x3", "control x3")
EFFECTS = (1.0, 2.0, 3.0, 4.0, 6.0)
ALLOWED, ALLOWED_NOISY = 0.05, 0.08  # of a family: at equal noise; with one noisier row or control, from 3 seeds on
MARGIN = 3.5  # Monte-Carlo errors that a share may lie above what is allowed


@dataclass(frozen=True)
class Setting:
    """A column of tables: rows with the control, seeds of each, items; who is noisier; the control's seeds."""

    rows: int
    seeds: int
    items: int
    noise: str = "equal"
    control: int = 1  # times the others' seeds
    effect: float = 0.0  # of the first row


@dataclass(frozen=True)
class Tables:
    """Simulated columns; row 0 is the control, and the pairs are all other rows with it."""

    setting: Setting
    scores: Array  # [tables, rows, seeds]; NaN where only the control has a seed
    item_variances: Array  # [tables, pairs], as estimated

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return [(row, 0) for row in range(1, self.setting.rows)]

    @cached_property
    def tested(self) -> Contrasts:
        """By the product's own functions."""
        return contrasts(self.scores, self.pairs, self.item_variances, self.setting.items - 1)


def simulate(setting: Setting, tables: int) -> Tables:
    """The same setting gives the same tables."""
    s = setting
    coordinates = [s.rows, s.seeds, s.items, NOISE.index(s.noise), s.control, round(10 * s.effect)]
    rng = np.random.default_rng(coordinates)
    deviation = np.ones(s.rows)
    if s.noise != "equal":
        deviation[1 if s.noise == "row x3" else 0] = NOISIER
    seeds = s.seeds * s.control
    scores = deviation[:, None] * rng.standard_normal((tables, s.rows, seeds))
    scores += BLOCK * rng.standard_normal((tables, 1, seeds))
    # what items think of a row is the same in all of its seeds; the error of that is estimated from them
    scores += ITEM / math.sqrt(s.items) * rng.standard_normal((tables, s.rows, 1))
    of_rows = ITEM**2 / s.items * rng.chisquare(s.items - 1, (tables, s.rows)) / (s.items - 1)
    scores[:, 1] += s.effect
    scores[:, 1:, s.seeds :] = np.nan
    return Tables(setting, scores, of_rows[:, 1:] + of_rows[:, :1])


def _larger(tables: Tables) -> Array:
    """p by the larger of the pooled variance and that of the row's differences to the control over seeds."""
    s = tables.setting
    pooled, df = pooled_variance(tables.scores)
    differences = (tables.scores[:, 1:] - tables.scores[:, :1])[..., : s.seeds]
    seeds = 2 * np.maximum(pooled[:, None], differences.var(-1, ddof=1) / 2) / s.seeds
    total = seeds + tables.item_variances
    both = total**2 / (seeds**2 / df + tables.item_variances**2 / (s.items - 1))
    return np.asarray(student_t_tail(differences.mean(-1) / np.sqrt(total), both))


def _old_items(tables: Tables) -> Array:
    """p over items alone: a t-test on the means over common seeds stands for the paired bootstrap."""
    common = tables.scores[:, :, : tables.setting.seeds].mean(-1)
    t = (common[:, 1:] - common[:, :1]) / np.sqrt(tables.item_variances)
    return np.asarray(student_t_tail(t, tables.setting.items - 1))


def _old_both(tables: Tables) -> Array:
    """The larger of p over items and of a paired t-test over seeds: where both had to be small."""
    differences = (tables.scores[:, 1:] - tables.scores[:, :1])[..., : tables.setting.seeds]
    n = tables.setting.seeds
    t = differences.mean(-1) / (differences.std(-1, ddof=1) / math.sqrt(n))
    return np.maximum(holm(_old_items(tables)), holm(student_t_tail(t, n - 1)))


RULES: dict[str, Callable[[Tables], Array]] = {
    "marks": lambda tables: holm(tables.tested.p),
    "larger": lambda tables: holm(_larger(tables)),
    "pooled alone": lambda tables: holm(tables.tested.p_pooled),
    "Welch": lambda tables: holm(tables.tested.p_welch),
    "old †": lambda tables: holm(_old_items(tables)),
    "old *": _old_both,
}
"""Corrected p-values [tables, pairs] of each rule."""


def shares(setting: Setting, tables: int, rules: Sequence[str] = tuple(RULES)) -> dict[str, tuple[float, float]]:
    """For each rule the share of tables in which any row is marked, and in which the first one is."""
    simulated = simulate(setting, tables)
    found = {}
    for name in rules:
        marked = RULES[name](simulated) <= LEVEL
        found[name] = float(marked.any(-1).mean()), float(marked[:, 0].mean())
    return found


def error(share: float, tables: int) -> float:
    """Monte-Carlo standard error of a share."""
    return math.sqrt(max(share * (1 - share), 1 / tables) / tables)


def allowed(setting: Setting) -> float | None:
    """The size that a rule may have; None where two seeds can't tell who is noisier."""
    if setting.noise == "equal":
        return ALLOWED
    return ALLOWED_NOISY if setting.seeds >= 3 else None


def breaks(setting: Setting, size: float, tables: int) -> bool:
    """Whether a size is above what it may be by more than chance explains."""
    most = allowed(setting)
    return most is not None and size > most + MARGIN * error(most, tables)


def sizes(tables: int) -> list[dict[str, object]]:
    """A line for each setting without any difference, in percent; of other rules the worst over numbers of items."""
    lines: list[dict[str, object]] = []
    for control, noise, seeds, rows in itertools.product((1, 2), NOISE, SEEDS, ROWS):
        if control == 2 and rows in (4, 8):
            continue
        settings = [Setting(rows, seeds, items, noise, control) for items in ITEMS]
        found = [{name: size for name, (size, _) in shares(setting, tables).items()} for setting in settings]
        line: dict[str, object] = {
            "control": ("once", "twice")[control - 1],
            "noise": noise,
            "seeds": seeds,
            "rows": rows,
        }
        for items, of_items in zip(ITEMS, found, strict=True):
            line[f"marks, {items} items"] = _percent(of_items["marks"], tables)
        for name in list(RULES)[1:]:
            line[name] = _percent(max(of_items[name] for of_items in found), tables)
        most = allowed(settings[0])
        held = not any(breaks(s, of_items["marks"], tables) for s, of_items in zip(settings, found, strict=True))
        lines.append(line | {"allowed": "–" if most is None else f"{100 * most:g}", "held": "yes" if held else "NO"})
    return lines


def _percent(share: float, tables: int) -> str:
    return f"{100 * share:.1f} ± {100 * error(share, tables):.1f}"


def powers(tables: int) -> list[dict[str, object]]:
    """How often one row's difference, in deviations of a training, is marked; percent, six rows."""
    lines: list[dict[str, object]] = []
    rules = [rule for rule in RULES if rule != "old †"]
    for items, seeds in itertools.product((82, 1319), SEEDS):
        found = {effect: shares(Setting(6, seeds, items, effect=effect), tables, rules) for effect in EFFECTS}
        for rule in rules:
            line: dict[str, object] = {"items": items, "seeds": seeds, "rule": rule}
            lines.append(line | {f"{effect:g}": f"{100 * made[rule][1]:.0f}" for effect, made in found.items()})
    return lines


def _table(lines: Sequence[dict[str, object]]) -> str:
    return markdown(list(lines[0]), [list(line.values()) for line in lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tables", type=int, default=TABLES, help="simulated tables of each setting")
    arguments = parsed(parser)
    arguments.device = "cpu"
    size, power = sizes(arguments.tables), powers(arguments.tables)
    print(
        f"Tables with a false mark, %, of {arguments.tables:,} each; ± Monte-Carlo standard error\n\n{_table(size)}\n"
    )
    print(f"Power for a difference of one row, in deviations of a training, % (six rows)\n\n{_table(power)}\n")
    print(f"{machine('cpu')}; numbers: {write(arguments, 'significance', {'size': size, 'power': power})}")


if __name__ == "__main__":
    main()
