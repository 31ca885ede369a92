"""What is known of a pair and its data before anything is trained: tokenizers, what they share, how rows align."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.base.errors import HarnessError
from harness.data.rows import Example
from harness.data.templates import TextSide
from harness.data.tokens import STUDENT, LeftOut, TokenizedExample, tokenize
from methods.library.alignment import group_bytes
from methods.library.maps import UNMAPPED, exact_map
from methods.library.vocabulary import TokenizerPair

TEACHER = "teacher"
_ROWS = 500  # that are looked at
_NO_LIMIT = 2**40


@dataclass(frozen=True)
class PairFacts:
    """What tokenizers make of rows.

    Attributes:
        names, tokens: of student and teacher: how they are called, and the size of their vocabularies.
        same_tokenizer: whether both cut every text alike.
        shared: tokens of the student that spell the same bytes as one of the teacher's.
        rows, unreadable: training rows that were looked at; those of them that a tokenizer changes.
        student_tokens, one_to_one: of their responses, ends included; those that begin and end where one of the
            teacher's does.
        longest: tokens of prompt and response that 99 of 100 rows have at most, on the longer side.
        response: tokens of a response that 99 of 100 rows have at most, on the student's side.
    """

    names: tuple[str, str]
    tokens: tuple[int, int]
    same_tokenizer: bool
    shared: int
    rows: int
    unreadable: int
    student_tokens: int
    one_to_one: int
    longest: int
    response: int

    def lines(self) -> list[str]:
        """In words, a line each."""
        (student, teacher), (ours, theirs) = self.names, self.tokens
        lines = [f"student {student}: {ours:,} tokens; teacher {teacher}: {theirs:,} tokens"]
        if self.same_tokenizer:
            lines.append("one tokenizer: both cut every text alike, so this is a pair for methods of teachers.same")
        else:
            lines += [
                f"two tokenizers: {self.shared:,} tokens spell the same bytes in both, {self.shared / ours:.0%} of the "
                f"student's and {self.shared / theirs:.0%} of the teacher's",
                f"of the student's {self.student_tokens:,} tokens in {self.rows:,} training responses "
                f"{self.one_to_one / self.student_tokens:.0%} align 1-1 with a token of the teacher's",
            ]
        lines.append(
            f"99 of 100 rows have at most {self.longest:,} tokens, their responses {self.response:,} of the student's"
        )
        if self.unreadable:
            lines.append(
                f"{self.unreadable:,} of {self.rows:,} responses are changed by a tokenizer: they are left out"
            )
        return lines


def pair_facts(examples: Sequence[Example], student: TextSide, teacher: TextSide) -> PairFacts:
    """What two tokenizers make of rows: of the first 500.

    Raises:
        HarnessError: no row that both can read.
    """
    pair = TokenizerPair(student.vocabulary, teacher.vocabulary)
    left_out: dict[str, LeftOut] = {}
    seen = examples[:_ROWS]
    sides = {STUDENT: student, TEACHER: teacher}
    rows = tokenize(seen, sides, _NO_LIMIT, unreadable="drop", left_out=left_out)
    if not rows:
        found = f"{len(seen):,} training rows, and a tokenizer changes every response"
        raise HarnessError("training rows", found, "rows that both tokenizers keep as they are", "Take another model.")
    mapped = exact_map(student.vocabulary, teacher.vocabulary)
    lengths = [max(side.length for side in row.sides.values()) for row in rows]
    return PairFacts(
        (student.name, teacher.name),
        (len(student.vocabulary), len(teacher.vocabulary)),
        pair.same_tokenizer,
        int((mapped != UNMAPPED).sum()),
        len(seen),
        len(left_out),
        sum(row.sides[STUDENT].response.size for row in rows),
        sum(map(_one_to_one, rows)),
        _most(lengths),
        _most([row.sides[STUDENT].response.size for row in rows]),
    )


def _one_to_one(row: TokenizedExample) -> int:
    response = row.aligned(TEACHER)
    return group_bytes(response.student_ends, response.teacher_ends).only_one_to_one().count


def _most(lengths: Sequence[int]) -> int:
    return int(np.quantile(lengths, 0.99, method="higher"))
