"""DSKDv2: each model's hidden rows through the other's head, where both tokenizers cut the same token.

Zhang et al., arXiv 2504.11426:   L = CE + w · Σ_g [-log z_g(y_g) + 1(argmax z_g = y_g) KL(z_g || p_S) + KL(p_T || r_g)]

g: tokens that both tokenizers cut alike, behind the same text. z_g: what the student's head makes of the teacher's
hidden row times P, a matrix that is trained by the first part alone; y_g: the teacher's likeliest token as the student
has it, where it has none the pair is left out. r_g: what the teacher's head makes of the student's hidden row times Q.
Heads are held fixed; both KL are of distributions softened at τ, without a factor τ², as in the code. With the columns
W_S, W_T of both heads for the tokens that both vocabularies have, and their pseudo-inverses,

    P = W_T W_S⁺ at first,   Q = W_S W_T⁺ at every step, so that logits stay what they were.

Of the paper the abstract was read, and its code: the formula is the code's. Ours: tokens are compared by their bytes,
and heads have their bias, factor and bound. Of singular values, those below max(width, tokens) · 2^-23 of the largest
are left out, as torch leaves them out in float32. What is measured at the student's logits (the column "KD/CE gradient
norm", ``kd_scale: match_gradient``) does not see the third part, which reaches the student through its hidden rows.

``released`` (songmzhang/DSKDv2, at 5025279): tokens are the same where their strings are, without the signs for a space
and behind equal strings; y by the tokenizers' own strings (``Ġthe`` is not ``▁the``), and W by strings with one sign
for a space; z by the weight alone, r without the teacher's factor and bound; each part is a mean over its tokens, of a
response and then over responses (in the code: of a batch). An unknown token as label is not here, nor a share of
agreement above which the second part drops its condition, which the code sets to 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from methods.base import (
    AlignedChunk,
    Held,
    LossSums,
    Method,
    Need,
    OnPolicyOptions,
    OutputHead,
    Positive,
    TeacherKind,
    register,
)
from methods.library.alignment import AlignedResponse, Groups, group_bytes
from methods.library.closed_form import forward_kl_towards
from methods.library.maps import UNMAPPED, Tables, VocabularyMap, exact_map, mapped_columns
from methods.library.vocabulary import TokenizerPair, Vocabulary

_AT_ONCE = 8192  # columns of a head that are read in float64
_END = "\0"  # of no token


class DSKDv2Options(OnPolicyOptions):
    temperature: Positive = Field(2.0, description="τ of both KL parts, divides the logits of both sides")
    projector_learning_rate: Positive | None = Field(
        None, description="of the matrix that takes the teacher's rows to the student; none: as the student's"
    )


@register
class DSKDv2(Method[DSKDv2Options]):
    name, paper, teacher = "dskd_v2", "arXiv 2504.11426", TeacherKind.CROSS_TOKENIZER
    summary = "KL in both models' spaces: hidden rows through the other model's head, at tokens that both cut alike"
    fidelities_differ = True
    released_normalize = "samples"
    Options = DSKDv2Options
    zero_at_identity = False  # the projector's cross-entropy remains
    projectors = 1

    to_student: nn.Linear | None = None

    @property
    def needs(self) -> frozenset[Need]:
        means = {Need.ONE_RESPONSE, Need.SURVEY} if self._released else set()
        return super().needs | {Need.HIDDEN} | means

    @property
    def held(self) -> Held:
        return Held(4.3, 4.1)

    @property
    def own_learning_rate(self) -> float | None:
        return self.options.projector_learning_rate

    def trainable(self) -> nn.Module | None:
        return self.to_student

    def prepare(self, pair: TokenizerPair) -> None:
        exact = exact_map(pair.teacher, pair.student)
        labels, shared = exact, exact
        if self._released:
            self._pieces = [_pieces_without_spaces(side) for side in (pair.student, pair.teacher)]
            labels, shared = _labels_by_strings(pair), _shared_by_strings(pair)
        self.tables = Tables(labels=torch.from_numpy(labels), **mapped_columns(shared))

    def build(self, student: OutputHead, teacher: OutputHead) -> None:
        """P as a layer that is trained, and W_T⁺."""
        device, dtype = student.weight.device, torch.promote_types(student.weight.dtype, torch.float32)
        shared = self.tables.on(device)
        ours, theirs = (
            head.weight.detach().index_select(0, columns)
            for head, columns in ((student, shared["ours"]), (teacher, shared["theirs"]))
        )
        factor = 1.0 if self._released else teacher.scale / student.scale
        layer = nn.Linear(theirs.shape[1], ours.shape[1], bias=False, device="meta", dtype=dtype)  # draws no numbers
        layer.to_empty(device=device)
        with torch.no_grad():
            layer.weight.copy_(factor * _inverse(ours, len(ours)) @ _product(ours, theirs))
            inverse = _inverse(theirs, len(theirs)) / factor
            self._back = torch.cat([part.double() @ inverse for part in torch.split(theirs, _AT_ONCE)]).to(dtype)
        self.to_student = layer

    def align(self, response: AlignedResponse) -> Groups:
        if not self._released:
            return group_bytes(response.student_ends, response.teacher_ends).only_one_to_one()
        sides = response.student_ids, response.teacher_ids
        pairs = _pair_strings(
            *([known[token] for token in ids] for known, ids in zip(self._pieces, sides, strict=True))
        )
        return Groups.one_to_one(*pairs)

    def loss(self, chunk: AlignedChunk) -> LossSums:
        tau = self.options.temperature
        label, projected = self._labels(chunk), self._through_student(chunk)
        has_label, agrees = _counted(label, projected)
        of_label = nn.functional.cross_entropy(projected, label, ignore_index=UNMAPPED, reduction="none")
        student, teacher = chunk.student, chunk.teacher
        every = torch.arange(chunk.groups, device=label.device)
        in_student = forward_kl_towards(
            student.logits, student.index, projected.detach(), every, agrees.to(projected.dtype), tau
        )
        ours = self._through_teacher(chunk)
        in_teacher = forward_kl_towards(ours, every, teacher.logits, teacher.index, has_label.to(ours.dtype), tau)
        parts = torch.stack([of_label.sum(), in_student, in_teacher])
        known, agreeing = has_label.sum().to(parts.dtype), agrees.sum().to(parts.dtype)
        if self._released:
            over, over_agreeing = self.known(chunk, torch.stack([known, agreeing])).to(parts.dtype).unbind()
            parts = parts / torch.stack([over, over_agreeing, over]).clamp_min(1)
        pairs = known.new_full((), chunk.groups)
        return LossSums(
            parts.sum(),
            {
                "aligned 1-1": (pairs, None),
                "teacher's choice known": (known, pairs),
                "projection agrees": (agreeing, known),
            },
        )

    def survey(self, chunk: AlignedChunk) -> Tensor:
        """int64 [2]: how many tokens have a label, and at how many what was projected finds it."""
        return torch.stack([which.sum() for which in _counted(self._labels(chunk), self._through_student(chunk))])

    def conclude(self, surveys: Sequence[Tensor]) -> Tensor:
        """The same of a response: over how many tokens the parts of the released form are means."""
        return torch.stack([*surveys]).sum(0)

    def _labels(self, chunk: AlignedChunk) -> Tensor:
        """int64 [groups], y of each, -1 where the student has no such token."""
        labels = self.tables.on(chunk.student.logits.device)["labels"]
        return labels[chunk.teacher.logits[:, : len(labels)].argmax(-1)[chunk.teacher.index]]

    def _through_student(self, chunk: AlignedChunk) -> Tensor:
        """[groups, vocabulary]: logits that the student's head gives the teacher's rows, by P."""
        assert self.to_student is not None
        rows = _times(chunk.teacher.hidden.rows.index_select(0, chunk.teacher.index), self.to_student.weight.T)
        head = chunk.student.hidden
        return head.products(rows) if self._released else head.logits(rows)

    def _through_teacher(self, chunk: AlignedChunk) -> Tensor:
        """[groups, vocabulary]: logits that the teacher's head gives the student's rows, by Q."""
        ours, theirs = chunk.student.hidden, chunk.teacher.hidden
        rows = ours.rows.index_select(0, chunk.student.index)
        shared = self.tables.on(rows.device)
        at_shared = ours.products(rows).index_select(1, shared["ours"])
        rows = _times(at_shared, self._back)
        if not self._released:
            return theirs.logits(rows)
        made, bias = theirs.products(rows), theirs.head.bias
        return made if bias is None else made + bias


def _counted(label: Tensor, projected: Tensor) -> tuple[Tensor, Tensor]:
    """bool [groups] each: whether there is a label, and whether what was projected finds it."""
    has_label = label != UNMAPPED
    return has_label, (projected.argmax(-1) == label) & has_label


def _times(rows: Tensor, matrix: Tensor) -> Tensor:
    """Rows through a matrix, in its precision."""
    return (rows.to(matrix.dtype) @ matrix).to(rows.dtype)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """float64 [width of left, width of right]: left.T @ right, of matrices [tokens, width]."""
    made = torch.zeros(left.shape[1], right.shape[1], dtype=torch.float64, device=left.device)
    for a, b in zip(torch.split(left, _AT_ONCE), torch.split(right, _AT_ONCE), strict=True):
        made += a.double().T @ b.double()
    return made


def _inverse(columns: Tensor, tokens: int) -> Tensor:
    """float64 [width, width]: the pseudo-inverse of W Wᵀ, by which Wᵀ becomes that of W; W is given as [tokens, width].

    Its eigenvalues are the squares of the singular values of W.
    """
    least = max(tokens, columns.shape[1]) * torch.finfo(torch.float32).eps
    made: Tensor = torch.linalg.pinv(_product(columns, columns), rtol=least**2, hermitian=True)
    return made


def _pieces_without_spaces(side: Vocabulary) -> list[str]:
    """The string of each token as the released code compares it; what ends a response is one string on both sides."""
    pieces = [(piece or "").replace("▁", "").replace("Ġ", "") for piece in side.pieces]
    pieces += [""] * (len(side) - len(pieces))
    for end in side.eos[:1]:
        pieces[end] = _END
    return pieces


def _pair_strings(ours: Sequence[str], theirs: Sequence[str]) -> tuple[list[int], list[int]]:
    """Tokens with one string behind equal strings; else the side that has read fewer characters reads on, or both."""
    pairs: tuple[list[int], list[int]] = ([], [])
    i = j = 0
    read, their_read = "", ""
    while i < len(ours) and j < len(theirs):
        if read == their_read and ours[i] == theirs[j]:
            pairs[0].append(i)
            pairs[1].append(j)
        here, there = len(read) <= len(their_read), len(their_read) <= len(read)
        if here:
            read, i = read + ours[i], i + 1
        if there:
            their_read, j = their_read + theirs[j], j + 1
    return pairs


def _labels_by_strings(pair: TokenizerPair) -> VocabularyMap:
    """For each of the teacher's tokens the student's of the same string; ends of a response stand for each other."""
    mapped = exact_map(pair.teacher, pair.student, "string")
    mapped[list(pair.teacher.eos[:1])] = list(pair.student.eos[:1])
    return mapped


def _shared_by_strings(pair: TokenizerPair) -> VocabularyMap:
    """The same, where both write a space alike."""
    places = {piece.replace("Ġ", "▁"): index for index, piece in enumerate(pair.student.pieces) if piece is not None}
    found = [places.get((piece or "").replace("Ġ", "▁"), UNMAPPED) for piece in pair.teacher.pieces]
    return np.asarray(found, dtype=np.int64)
