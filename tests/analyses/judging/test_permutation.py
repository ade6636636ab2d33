"""The permutation null of pairings."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from analyses.judging.permutation import permutation_test


def test_permutations() -> None:
    scores = torch.full((5, 5), 0.2) + 0.5 * torch.eye(5)
    exact = permutation_test(scores)
    assert (exact.p_value, exact.exact) == (1 / 120, True)
    assert exact.expected == pytest.approx(0.3)
    assert permutation_test(torch.ones(4, 4)).p_value == 1
    large = permutation_test(torch.full((9, 9), 0.2) + 0.5 * torch.eye(9))
    assert not large.exact and large.p_value < 0.001
    drawn = [torch.randn(5, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(200)]
    assert stats.kstest([permutation_test(one).p_value for one in drawn], "uniform").pvalue > 1e-3
    with pytest.raises(ValueError, match="square"):
        permutation_test(torch.ones(2, 3))
