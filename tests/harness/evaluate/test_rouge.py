"""ROUGE-L against values worked out by hand and against rouge-score itself."""

import random

import pytest

from harness.evaluate import rouge


def test_a_hand_computed_subsequence() -> None:
    # LCS of "the cat sat on the mat" (6 words) and "the cat on a mat" (5): "the cat on mat", 4 words.
    precision, recall = 4 / 5, 4 / 6
    expected = 100 * 2 * precision * recall / (precision + recall)
    assert rouge.score("the cat on a mat", ["the cat sat on the mat"]) == pytest.approx(expected)


def test_word_order_counts() -> None:
    # "c b a" against "a b c": one word in order, so P = R = F1 = 1/3.
    assert rouge.score("c b a", ["a b c"]) == pytest.approx(100 / 3)


def test_words_are_stemmed() -> None:
    assert rouge.score("running dogs jumped", ["run dog jump"]) == 100.0


def test_the_best_reference_counts() -> None:
    assert rouge.score("blue sky", ["green grass", "blue sky", "blue"]) == 100.0


def test_the_same_as_rouge_score() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    output, reference = "Paris is the capital, and largest city, of France.", "The capital city of France is Paris!"
    expected = RougeScorer(["rougeL"], use_stemmer=True).score(reference, output)["rougeL"].fmeasure
    assert rouge.score(output, [reference]) == pytest.approx(100 * expected)
    assert 0 < expected < 1


def test_random_texts_score_as_in_rouge_score() -> None:
    """Words with endings to stem, capitals, digits, punctuation and other scripts, against one to four references."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer, draw = RougeScorer(["rougeL"], use_stemmer=True), random.Random(0)
    words = ["running", "runs", "Run", "3.5", "it's", "Zürich", "天空", "cities", "city", "the", "(the)", "\n", "-"]

    def text() -> str:
        return " ".join(draw.choices(words, k=draw.randint(0, 12)))

    values = []
    for _ in range(200):
        output, references = text(), [text() for _ in range(draw.randint(1, 4))]
        values.append(rouge.score(output, references))
        by_hand = max(scorer.score(reference, output)["rougeL"].fmeasure for reference in references)
        assert values[-1] == pytest.approx(100 * by_hand)
    assert len(set(values)) > 50


def test_text_ends_at_the_end_token() -> None:
    assert rouge.score("  blue sky \n<|endoftext|> and much more<|endoftext|>", ["blue sky"]) == 100.0


@pytest.mark.parametrize("output", ["", "  \n", "<|endoftext|>blue sky", "...", "天空"])
def test_an_output_without_words_gives_zero(output: str) -> None:
    # Rouge-score's words are of a-z and 0-9 only, so text in other scripts scores 0, as it does in the papers' tables.
    assert rouge.score(output, ["blue sky"]) == 0.0


# --- Words of every script --------------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    return rouge.UnicodeWords().tokenize(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("天空是蓝的。", ["天", "空", "是", "蓝", "的"]),
        ("GPT-4在2023年", ["gpt", "4", "在", "2023", "年"]),
        ("カラスが", ["カ", "ラ", "ス", "が"]),
        ("Привет, мир!", ["привет", "мир"]),
        ("하늘은 파랗다", ["하늘은", "파랗다"]),
        ("السماءُ زرقاء", ["السماءُ", "زرقاء"]),  # a vowel sign stays with its word
        ("आसमान नीला है", ["आसमान", "नीला", "है"]),
        ("ฟ้า", ["ฟ้", "า"]),
        ("Zürich STRASSE Straße", ["zürich", "strass", "strass"]),
        ("e\u0301te\u0301", ["été"]),  # decomposed is composed
        ("１２ ｋｍ", ["12", "km"]),
        ("snake_case it's", ["snake", "case", "it", "s"]),
        ("- 😌😊 …", []),
    ],
)
def test_words_of_every_script(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_on_ascii_text_they_are_rouge_scores_own() -> None:
    from rouge_score.tokenizers import DefaultTokenizer

    draw, theirs = random.Random(1), DefaultTokenizer(use_stemmer=True)
    for _ in range(2000):
        text = "".join(chr(draw.randint(1, 127)) for _ in range(30)) + " running cities Happily 3.5"
        assert words(text) == theirs.tokenize(text)


def test_a_text_is_like_itself_in_every_script() -> None:
    """Identical Chinese scored 0.0."""
    for text in ("天空是蓝的。", "Привет, мир!", "السماء زرقاء", "ฟ้าเป็นสีฟ้า"):
        assert rouge.score(text, [text]) == 0.0
        assert not rouge.can_score([text])
        assert rouge.score(text, [text], "unicode") == 100.0
        assert rouge.can_score([text], "unicode")
        assert rouge.score("blue", [text], "unicode") == 0.0
    # of 5 characters 3 in order: P = R = F1 = 3/5
    assert rouge.score("天空是红色", ["天空是蓝的"], "unicode") == pytest.approx(60)
    assert not rouge.can_score(["- 😌😊"], "unicode")
    assert rouge.can_score(["- 😌😊", "a smile"])


def test_a_mark_for_a_new_line_is_one() -> None:
    """As in DSKD; its letter counted as a word of the answer."""
    assert rouge.score("red<n>green", ["red green"]) == 100.0


def test_no_reference_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one reference"):
        rouge.score("blue", [])
