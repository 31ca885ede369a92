"""Divergences between rows of next-token distributions. Each returns one value a row, in nats where it is a KL."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student), mean-seeking.

    Args:
        student, teacher: log-probabilities [rows, vocabulary] over the same vocabulary.

    Returns:
        [rows].
    """
    return (teacher.exp() * (teacher - student)).sum(-1)


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(student || teacher), mode-seeking; arguments and result as in :func:`forward_kl`."""
    return (student.exp() * (student - teacher)).sum(-1)


def generalized_jsd(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """β KL(T || M) + (1 - β) KL(S || M) with M = (1 - β) S + β T (GKD, arXiv 2306.13649, equation 1).

    β = 0 stands for KL(T || S) and β = 1 for KL(S || T), which the divergence over β and over 1 - β tends to.

    Args:
        student, teacher: log-masses [rows, columns] of the same tokens. They need not add up to 1; where they don't,
            the value may be negative.
        beta: from 0 to 1.

    Returns:
        [rows].
    """
    if beta == 0:
        return forward_kl(student, teacher)
    if beta == 1:
        return reverse_kl(student, teacher)
    mixture = torch.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
    return beta * forward_kl(mixture, teacher) + (1 - beta) * forward_kl(mixture, student)


def sorted_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Distance of two distributions whose vocabularies have nothing to do with each other.

    Both are sorted in descending order, the smaller one padded with zeros: sum_k |p_(k) - q_(k)|
    (ULD, arXiv 2402.12030, section 3: the Wasserstein distance under a uniform cost). Exact: only the first
    min(V_s, V_t) ranks need an order, of the larger side's rest the sum is enough.

    Args:
        student: probabilities [rows, V_s], differentiable.
        teacher: probabilities [rows, V_t], no gradient.

    Returns:
        [rows].
    """
    ranks = min(student.shape[-1], teacher.shape[-1])
    ordered = student.sort(-1, descending=True).values
    reference = _sorted_values(teacher)
    distance = (ordered[:, :ranks] - reference[:, :ranks]).abs().sum(-1)
    return distance + ordered[:, ranks:].sum(-1) + reference[:, ranks:].sum(-1)


def _sorted_values(values: Tensor) -> Tensor:
    """Rows in descending order, without gradient. On the CPU numpy's vectorised sort is 10 times torch's speed."""
    values = values.detach()
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64):
        return values.sort(-1, descending=True).values
    ascending = np.sort(values.numpy(), axis=-1)
    return torch.from_numpy(ascending).flip(-1)
