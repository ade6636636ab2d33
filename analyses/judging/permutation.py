"""A permutation null: does every unit fit its own partner better than the partners of others?"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

_EXACT = 7


@dataclass(frozen=True)
class PermutationResult:
    """Outcome of a permutation test.

    Attributes:
        statistic: Mean of the diagonal.
        expected: Its exact mean over all pairings, the mean of all scores.
        p_value: One-sided: share of pairings with a mean at least as large.
        exact: Whether all pairings were tried.
    """

    statistic: float
    expected: float
    p_value: float
    exact: bool


def permutation_test(scores: Tensor, *, num_samples: int = 5000, seed: int = 0) -> PermutationResult:
    """Mean of the diagonal of ``scores`` against permuted pairings (Fisher 1935, The Design of Experiments, 21).

    Args:
        scores: (m, m); entry (i, j) says how unit i fits the partner of unit j, for instance the share of seed i's
            eigenvectors in seed j's subspace.
        num_samples: Pairings drawn for m above 7; up to 7 all are tried.
        seed: Seed of the draws.

    Raises:
        ValueError: ``scores`` is not a finite square matrix of at least two rows.

    >>> permutation_test(torch.eye(4)).p_value == 1 / 24
    True
    """
    if scores.dim() != 2 or scores.shape[0] != scores.shape[1] or len(scores) < 2:
        raise ValueError(f"scores: expected a square matrix of at least two rows, got shape {tuple(scores.shape)}")
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("scores: expected finite numbers")
    table, size = scores.double(), len(scores)
    observed = float(table.diagonal().mean())
    if size <= _EXACT:
        pairings = torch.tensor(list(itertools.permutations(range(size))))
        extra = 0
    else:
        generator = torch.Generator().manual_seed(seed)
        pairings = torch.stack([torch.randperm(size, generator=generator) for _ in range(num_samples)])
        extra = 1
    means = table[torch.arange(size), pairings].mean(dim=1)
    # Sums in another order differ in the last digits.
    at_least = int((means >= observed - 1e-12 * max(1.0, math.fabs(observed))).sum())
    return PermutationResult(observed, float(table.mean()), (at_least + extra) / (len(means) + extra), extra == 0)
