"""ROUGE-L as DSKD and CDM report it: rouge-score's rougeL F1 with the Porter stemmer, the best over the references.

The F1 of a longest common subsequence of words (Lin 2004), times 100. A corpus score is the mean over its rows. The
stemmer matters: without it published scores move by 0.6 points.
"""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

END_OF_TEXT = "<|endoftext|>"  # DSKD cuts here whatever the model's own end token is


def score(output: str, references: Sequence[str]) -> float:
    """ROUGE-L of one output, 0 to 100: the best over its references, an empty output 0.

    Raises:
        ValueError: there are no references.
    """
    if not references:
        raise ValueError("ROUGE-L needs at least one reference")
    answer = output.split(END_OF_TEXT, 1)[0].strip()
    scorer = _scorer()
    return 100 * max(float(scorer.score(reference, answer)["rougeL"].fmeasure) for reference in references)


@cache
def _scorer() -> "RougeScorer":
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
