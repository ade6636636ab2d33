"""Statistics behind the verdicts, against scipy, definitions and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from analyses.judging.families import fallback, holm
from analyses.judging.power import runs_needed, smallest_effect
from analyses.judging.sequential import inflated_rate, nominal_levels, repeated_p_value
from analyses.judging.simulation import Truth, simulate
from analyses.judging.statistics import bootstrap_interval, fieller, paired, sign_flip, signed_ranks


def test_paired_agrees_with_scipy() -> None:
    differences = np.random.default_rng(1).normal(0.3, 1, 9)
    result, reference = paired(differences), stats.ttest_1samp(differences, 0, alternative="greater")
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert result.p_above == pytest.approx(reference.pvalue)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high))


def test_a_spread_of_rounding_is_no_evidence() -> None:
    same = paired(0.1 + 1e-16 * np.arange(6))
    assert same.p_above == 0.5 and same.low == -math.inf and same.p_outside(1.0) == 1.0
    assert bootstrap_interval(0.1 + 1e-16 * np.arange(6)) == (-math.inf, math.inf)


def test_fieller_covers_the_true_ratio_at_its_level() -> None:
    generator, hits = np.random.default_rng(2), 0
    for _ in range(1000):
        denominators = generator.normal(2.0, 1.0, 8)
        numerators = 0.5 * denominators + generator.normal(0, 0.5, 8)
        _, low, high = fieller(numerators, denominators)
        hits += low <= 0.5 <= high
    assert 0.93 <= hits / 1000 <= 0.97


def test_signed_ranks_are_wilcoxons_without_infinities() -> None:
    differences = np.random.default_rng(5).normal(0.4, 1, 10)
    reference = stats.wilcoxon(differences, alternative="greater", method="exact")
    assert signed_ranks(differences).p_above == pytest.approx(reference.pvalue)
    assert sign_flip(differences) == pytest.approx(
        2 * min(sign_flip(differences, alternative="greater"), sign_flip(-differences, alternative="greater"))
    )


@pytest.mark.parametrize(("n", "alpha"), [(2, 0.025), (3, 0.05 / 11), (4, 0.005), (5, 1e-3), (12, 0.05)])
def test_the_smallest_effect_has_its_power_at_any_level(n: int, alpha: float) -> None:
    """Against a simulation: of few pairs at strict levels scipy's noncentral t and root finders on it fail."""
    effect = smallest_effect(1.0, n, alpha=alpha)
    assert effect is not None
    generator = np.random.default_rng(0)
    samples = effect + generator.standard_normal((40_000, n))
    t = samples.mean(axis=1) / samples.std(axis=1, ddof=1) * math.sqrt(n)
    assert np.mean(np.abs(t) > stats.t.isf(alpha / 2, n - 1)) == pytest.approx(0.8, abs=0.01)


def test_the_smallest_effect_is_found_with_its_power() -> None:
    generator = np.random.default_rng(3)
    smallest = smallest_effect(1.5, 8, alpha=0.05)
    assert smallest is not None
    draws = generator.normal(smallest, 1.5, (4000, 8))
    assert np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.02)
    assert smallest_effect(0.0, 8, alpha=0.05) is smallest_effect(1.0, 1, alpha=0.05) is None


@pytest.mark.parametrize(("effect", "margin"), [(0.5, None), (0.02, 0.22)])
def test_so_many_runs_decide_with_their_power(effect: float, margin: float | None) -> None:
    spread = 0.4 if margin is None else 0.2
    n = runs_needed(effect, spread, alpha=0.05, margin=margin)
    assert n is not None

    def power(pairs: int) -> float:
        draws = np.random.default_rng(6).normal(effect, spread, (1500, pairs))
        comparisons = [paired(draw) for draw in draws]
        if margin is None:
            return float(np.mean([2 * min(one.p_above, one.p_below) < 0.05 for one in comparisons]))
        return float(np.mean([one.p_outside(margin) < 0.05 for one in comparisons]))

    assert power(n - 1) < 0.83 and power(n) > 0.77


def test_holm_matches_its_definition() -> None:
    for p_values in ([0.03, 0.2, 0.001, 0.02], [0.01, 0.01, 0.5], [0.04], [1.0, 0.9], [0.001, 0.01, 0.02, 0.04]):
        rejected, expected, *_ = multipletests(p_values, alpha=0.05, method="holm")
        found = holm(p_values, alpha=0.05)
        assert [one.p_value for one in found] == pytest.approx(list(expected))
        assert [p <= one.level for p, one in zip(p_values, found, strict=True)] == list(rejected)
    assert holm([], alpha=0.05) == []


def test_the_fallback_procedure_keeps_the_family_error() -> None:
    """Three true null hypotheses and one false one before them, correlated; at most 5 % of families err."""
    generator, errors = np.random.default_rng(7), 0
    for _ in range(4000):
        z = generator.normal(size=4) + generator.normal()
        z = z / math.sqrt(2) + [4, 0, 0, 0]
        p_values = list(2 * stats.norm.sf(np.abs(z)))
        found = fallback(p_values, [1, 1, 1, 1], alpha=0.05)
        errors += any(p <= one.level for p, one in list(zip(p_values, found, strict=True))[1:])
        assert all((p <= a.level) == (a.p_value <= 0.05) for p, a in zip(p_values, found, strict=True))
    assert errors / 4000 < 0.057


def test_levels_of_looks_are_those_of_the_literature() -> None:
    """Bounds for four equal looks at 0.025 (Jennison & Turnbull 2000, chapter 7), and two looks of Pocock's example."""
    bounds = stats.norm.isf(nominal_levels([0.25, 0.5, 0.75, 1.0], 0.025))
    assert bounds == pytest.approx([4.333, 2.963, 2.359, 2.014], abs=2e-3)
    assert inflated_rate([0.5, 1.0], 0.05) == pytest.approx(0.083, abs=5e-4)
    assert inflated_rate([k / 5 for k in range(1, 6)], 0.05) == pytest.approx(0.142, abs=5e-4)


def test_repeated_p_values_err_at_most_at_their_level() -> None:
    fractions, generator = [5 / 14, 8 / 14, 11 / 14, 1.0], np.random.default_rng(8)
    draws = generator.normal(size=(3000, 14)).cumsum(axis=1)
    z = draws[:, [4, 7, 10, 13]] / np.sqrt([5, 8, 11, 14])
    smallest = [min(repeated_p_value(list(p[:k]), fractions[:k]) for k in range(1, 5)) for p in stats.norm.sf(z)]
    rates = [np.mean(np.array(smallest) <= level) for level in (0.025, 0.05)]
    assert rates == pytest.approx([0.025, 0.05], abs=0.009)


@pytest.mark.parametrize("looks", [[5], [12], [5, 8, 11, 14, 17, 20]])
def test_the_judges_err_at_most_at_their_level(looks: list[int]) -> None:
    """As `benchmarks/judges.py`, in fewer studies: the standard error of a rate of 5 % is 0.7 to 1 point."""
    options = {"studies": 500 if len(looks) > 1 else 1000, "alpha": 0.05, "margin": 1.25, "seed": 2}
    equal = simulate(Truth(1.0, (0.05, 0.45)), looks, **options)
    assert equal.supported < 0.04 and equal.contradicted < 0.04
    assert simulate(Truth(1.25, (0.11, 0.11)), looks, **options).equivalent < 0.07
    if len(looks) == 1:
        assert equal.coverage == pytest.approx(0.95, abs=0.02)
        seen = smallest_effect(math.hypot(0.35, 0.35), looks[0], alpha=0.05)
        assert seen is not None
        assert simulate(Truth(math.exp(-seen), (0.35, 0.35)), looks, **options).supported == pytest.approx(
            0.8, abs=0.05
        )
