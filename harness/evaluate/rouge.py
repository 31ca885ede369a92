"""ROUGE-L as DSKD and CDM report it: rouge-score's rougeL F1 with the Porter stemmer, the best over the references.

The F1 of a longest common subsequence of words (Lin 2004), times 100. A corpus score is the mean over its rows. The
stemmer matters: without it published scores move by 0.6 points.

Words are what one of two tokenisers finds:

* ``rouge_score``, the package's own, as published numbers have it: runs of a-z and 0-9. Text of other scripts has none,
  and whatever is answered to a reference without any scores 0: such an item is not scored (:func:`can_score`).
* ``unicode``, ours: runs of letters and digits of every script, compatibility forms and case folded; each character is
  a word of its own in scripts that put no space between words. On ASCII text it finds the same words.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

END_OF_TEXT = "<|endoftext|>"  # DSKD cuts here whatever the model's own end token is
NEW_LINE = "<n>"  # of answers, as DSKD takes it; its two letters would be a word

Tokens = Literal["rouge_score", "unicode"]

# Han with its iteration mark and zero, Hiragana and Katakana, Thai, Lao, Myanmar, Khmer: written without spaces
_NO_SPACES = re.compile(
    "[\u3005\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"
)


def score(output: str, references: Sequence[str], tokens: Tokens = "rouge_score") -> float:
    """ROUGE-L of one output, 0 to 100: the best over its references, an empty output 0.

    Args:
        tokens: what finds the words.

    Raises:
        ValueError: there are no references.
    """
    if not references:
        raise ValueError("ROUGE-L needs at least one reference")
    answer = output.split(END_OF_TEXT, 1)[0].replace(NEW_LINE, "\n").strip()
    scorer = _scorer(tokens)
    return 100 * max(float(scorer.score(reference, answer)["rougeL"].fmeasure) for reference in references)


def can_score(references: Sequence[str], tokens: Tokens = "rouge_score") -> bool:
    """Whether any answer scores more than 0: whether a reference has a word."""
    return any(_tokenizer(tokens).tokenize(reference) for reference in references)


class UnicodeWords:
    """Words of every script; those of ASCII letters and digits stemmed as rouge-score stems them."""

    def tokenize(self, text: str) -> list[str]:
        words = _words(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()))
        plain = _tokenizer("rouge_score")
        return [found for word in words for found in (plain.tokenize(word) if word.isascii() else [word])]


def _words(text: str) -> Iterator[str]:
    """Runs of letters, marks and digits; characters of scripts without spaces one by one, each with its marks."""
    word = ""
    for character in text:
        kind = unicodedata.category(character)[0]
        if kind == "M" and word:
            word += character
            continue
        alone = bool(_NO_SPACES.match(character))
        if word and (kind not in "LN" or alone or _NO_SPACES.match(word[0])):
            yield word
            word = ""
        if kind in "LN":
            word += character
    if word:
        yield word


@cache
def _tokenizer(tokens: Tokens) -> Any:
    from rouge_score.tokenizers import DefaultTokenizer

    return UnicodeWords() if tokens == "unicode" else DefaultTokenizer(use_stemmer=True)


@cache
def _scorer(tokens: Tokens) -> "RougeScorer":
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_tokenizer(tokens))
