"""How small a difference a comparison finds, and how many seeds one of a given size needs.

Columns are simulated with the noise that a run showed, and tested by the rule of the table (`reports.method_tests`).
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from reports.analysis import LEVEL, Noise
from reports.method_tests import contrasts
from reports.statistics import seed_of, student_t_quantile
from reports.table import Pairwise, Table

POWER = 0.8  # of finding a difference
MOST_SEEDS = 50
SHOWN_SEEDS = (2, 3, 5, 10)
DRAWS = 2_000
SPREAD = 1.2816  # standard normal deviates that 80 % lie within


def comparisons_of(table: Table, pairwise: Pairwise) -> int:
    """How many comparisons with the baseline a student's marks are corrected over."""
    columns = [p for p in table.pairwise if p.student == pairwise.student and p.column.key in table.named]
    return max(1, sum(len(p.rows) - 1 for p in columns))


def findable(noise: Noise, seeds: int, comparisons: int) -> float:
    """The difference from the baseline that is marked with a chance of `POWER`, in the column's unit.

    Args:
        seeds: of every row, at least two.
        comparisons: that Holm's correction is over; the other rows are taken not to differ.
    """
    rng = np.random.default_rng(seed_of("power", str(noise.rows), str(seeds)))
    items_df = noise.n_items - 1
    luck = noise.items * rng.standard_normal(DRAWS)
    of_items = noise.items**2 * rng.chisquare(items_df, DRAWS) / items_df
    scores = noise.training * rng.standard_normal((DRAWS, noise.rows, seeds))
    made = contrasts(scores, [(1, 0)], of_items[:, None], items_df)
    # between a few degrees of freedom the quantile is as good as linear in their inverse
    inverse = np.linspace((1 / made.df).min(), (1 / made.df).max(), 33)
    needed = np.interp(1 / made.df[:, 0], inverse, student_t_quantile(LEVEL / comparisons, 1 / inverse))
    return float(np.quantile(needed * made.error[:, 0] - made.difference[:, 0] - luck, POWER))


def seeds_for(noise: Noise, difference: float, comparisons: int) -> int | None:
    """Seeds of every row with which a difference is found with a chance of `POWER`; None: more than `MOST_SEEDS`."""
    if findable(noise, MOST_SEEDS, comparisons) > difference:
        return None
    low, high = 1, MOST_SEEDS  # too few, enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if findable(noise, middle, comparisons) <= difference else (middle, high)
    return high


def power_frame(table: Table, difference: float | None = None) -> pd.DataFrame:
    """A line for each tested column: its noise, what some numbers of seeds find, the seeds that `difference` needs.

    Empty where no column has two seeds: one seed shows no noise. `difference` is in each column's own unit.
    """
    lines = []
    for pairwise in table.pairwise:
        noise, column = pairwise.noise, pairwise.column
        if noise is None or column.key not in table.named:
            continue
        comparisons = comparisons_of(table, pairwise)
        digits = column.digits
        line = {
            "column": column.full_label,
            **({"student": pairwise.student} if len(table.students()) > 1 else {}),
            "rows": str(noise.rows),
            "seeds": str(noise.seeds),
            "deviation over seeds": f"{noise.training:.{digits + 1}f}",
            "error over items": f"{noise.items:.{digits + 1}f}",
        }
        line |= {f"{n} seeds find": f"{findable(noise, n, comparisons):.{digits}f}" for n in SHOWN_SEEDS}
        if difference is not None:
            line[f"seeds for {difference:g}"] = _seeds_said(noise, difference, comparisons)
        lines.append(line)
    return pd.DataFrame(lines)


def power_lines() -> list[str]:
    """What to know to read `power_frame`."""
    return [
        f"N seeds find: the difference from the baseline that N seeds of every row would mark in {100 * POWER:g} % of "
        "repetitions, after the correction over rows and named columns, if it were true and no other row differed.",
        "Deviation over seeds: of one row between trainings, the seeds' common part taken out. Error over items: of a "
        "difference of two rows, which more seeds do not lessen.",
        "The deviation is itself an estimate from few seeds: (low to high) are the seeds at the ends of an 80 % "
        "interval of it.",
    ]


def _seeds_said(noise: Noise, difference: float, comparisons: int) -> str:
    known = [seeds_for(one, difference, comparisons) for one in (noise, *_noise_range(noise))]
    said = [f"over {MOST_SEEDS}" if seeds is None else str(seeds) for seeds in known]
    if known[1] is None:  # not even at the least noise
        return f"over {MOST_SEEDS}" if _items_allow(noise, difference, comparisons) else "more items first"
    return said[0] if said[1] == said[2] else f"{said[0]} ({said[1]} to {said[2]})"


def _noise_range(noise: Noise) -> Sequence[Noise]:
    """The ends of an 80 % interval of the deviation over seeds, by Wilson and Hilferty's approximation to χ²."""
    step = 2 / (9 * noise.df)
    ends = [noise.df * max(1e-3, 1 - step + sign * SPREAD * math.sqrt(step)) ** 3 for sign in (1, -1)]
    return [replace(noise, training=noise.training * math.sqrt(noise.df / end)) for end in ends]


def _items_allow(noise: Noise, difference: float, comparisons: int) -> bool:
    """Whether any number of seeds could find the difference with so many items."""
    return findable(replace(noise, training=1e-9 * noise.items + 1e-12), 3, comparisons) <= difference
