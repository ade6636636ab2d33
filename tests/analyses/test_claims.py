"""Verdicts on made-up records whose answer is known, and the statistics behind them."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analyses.judging.claims import claims_document, judge
from analyses.judging.statistics import fieller, paired
from analyses.records import records_frame
from analyses.study import ClaimSettings

SETTINGS = ClaimSettings(rho=0.1)
RISES = {
    "sam": 0.2, "lora": 1.0, "lora_sam": 0.9, "lora_sam_full": 0.3, "bilora": 0.4, "dual_lora": 1.0,
    "random_aux": 0.95, "lora_2r": 1.1,
}  # fmt: skip


def made_up(rises: dict[str, float], *, seeds: int = 6, noise: float = 0.02, step: float = 1.1) -> pd.DataFrame:
    generator, rows = np.random.default_rng(0), []
    for seed in range(seeds):
        shared = math.exp(generator.normal(0, 0.3))  # a seed's own level, which pairing removes
        for method, rise in rises.items():
            base = {"study": "s", "method": method, "seed": seed, "train_size": 100}
            value = rise * shared * math.exp(noise * generator.normal())
            rows.append(base | {"measure": "worst_case_rise", "rho": 0.1, "subspace": "full", "value": value})
            rows.append(base | {"measure": "worst_case_rise", "rho": 0.2, "subspace": "full", "value": 50.0})
            rows.append(
                base | {"measure": "worst_case_rise", "ball": "filter", "rho": 0.1, "subspace": "full", "value": 50.0}
            )
            rows.append(base | {"measure": "worst_case_rise", "rho": 0.1, "subspace": "lora", "value": -value})
            accuracy = {"bilora": 0.85, "lora": 0.80}.get(method, 0.8) + 0.001 * generator.normal()
            rows.append(base | {"measure": "test_accuracy", "value": accuracy})
            seconds = {"bilora": step, "lora_sam": 2.0}.get(method, 1.0) * (1 + 0.01 * generator.normal())
            rows.append(base | {"measure": "step_seconds", "value": seconds})
            for k in range(1, 3):
                energy = base | {"index": k, "layer": "all", "subspace": "column"}
                rows.append(energy | {"measure": "captured_energy", "value": 0.2 + 0.01 * generator.normal()})
                rows.append(energy | {"measure": "captured_energy_null", "value": 0.05})
                rows.append(energy | {"measure": "captured_energy_optimum", "value": 0.8})
    return records_frame(rows)


def verdicts(records: pd.DataFrame) -> dict[int, str]:
    return {claim.number: claim.verdict for claim in judge(records, SETTINGS)}


def test_planted_effects_are_supported() -> None:
    claims = judge(made_up(RISES), SETTINGS)
    assert {claim.verdict for claim in claims} == {"supported"}
    first = claims[0].parts[0]
    assert first.unit == "ratio" and first.low < 0.4 < first.high and first.effect == pytest.approx(0.4, abs=0.05)
    assert claims[2].parts[0].effect == pytest.approx(0.6 / 0.7, abs=0.1)
    assert len(claims[6].parts) == 3


def test_opposite_effects_are_contradicted() -> None:
    flipped = RISES | {"bilora": 1.4}
    found = verdicts(made_up(flipped, step=1.6))
    assert [found[n] for n in (1, 2, 3, 5, 7)] == ["contradicted"] * 5


def test_noise_decides_nothing() -> None:
    same = dict.fromkeys(RISES, 1.0)
    found = verdicts(made_up(same, noise=0.3))
    assert {found[n] for n in (1, 2, 3, 7)} == {"undecided"}


def test_equal_rises_are_equivalent_and_a_small_difference_is_none_that_matters() -> None:
    claims = judge(made_up(dict.fromkeys(RISES, 1.0), noise=0.01), SETTINGS)
    assert [claims[n].verdict for n in (0, 1, 6)] == ["equivalent"] * 3
    assert max(part.p_equivalent for part in claims[6].parts) < 1e-3
    slightly = judge(made_up(dict.fromkeys(RISES, 1.0) | {"bilora": 0.93}, noise=0.001), SETTINGS)[0]
    assert slightly.parts[0].high < 1 and slightly.verdict == "equivalent"


def test_a_ratio_of_rises_is_scipys_t_test_on_logarithms() -> None:
    records = made_up(RISES)
    full = records[(records["measure"] == "worst_case_rise") & (records["subspace"] == "full") & records["ball"].isna()]
    rises = full[full["rho"] == 0.1].pivot_table(index="seed", columns="method", values="value")
    logs = np.log(rises["bilora"] / rises["lora"])
    part, reference = judge(records, SETTINGS)[0].parts[0], stats.ttest_1samp(logs, 0)
    interval = reference.confidence_interval(0.95)
    assert part.p_value == pytest.approx(reference.pvalue)
    assert (part.low, part.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))
    margin = math.log(SETTINGS.rise_margin)
    above = stats.ttest_1samp(logs, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(logs, margin, alternative="less").pvalue
    assert part.p_equivalent == pytest.approx(max(above, below))


def test_the_smallest_effect_is_found_with_its_power() -> None:
    generator = np.random.default_rng(3)
    smallest = paired(np.array([-1.0, 1.0] * 4)).smallest_effect(0.05)
    draws = generator.normal(smallest, math.sqrt(8 / 7), (4000, 8))
    assert np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.02)


def test_the_judge_errs_at_most_at_its_level() -> None:
    """Lognormal rises of 2,000 studies: a direction where there is none, and equivalence on the margin itself."""
    generator, margin = np.random.default_rng(4), math.log(SETTINGS.rise_margin)
    wrong_direction = wrong_equivalence = 0
    for _ in range(2000):
        level = paired(generator.normal(0, 0.3, 12))
        wrong_direction += 2 * min(level.p_above, level.p_below) < 0.05
        wrong_equivalence += paired(generator.normal(margin, 0.1, 12)).p_outside(margin) < 0.05
    assert wrong_direction / 2000 < 0.065 and wrong_equivalence / 2000 < 0.065


def test_a_spread_of_rounding_is_no_evidence() -> None:
    same = paired(0.1 + 1e-16 * np.arange(6))
    assert same.p_above == 0.5 and same.low == -math.inf and same.p_outside(1.0) == 1.0
    assert same.smallest_effect(0.05) is None


def test_the_sentence_answers_the_question() -> None:
    sentence = str(claims_document(made_up(RISES | {"bilora": 1.0}), SETTINGS)["sentence"])
    assert "as sharp as full-space SAM's (sharper; alone, p = " in sentence
    assert "as sharp as LoRA's (equal within a factor of 1.25; claim 1)" in sentence
    assert claims_document(made_up({"lora": 1.0}), SETTINGS)["sentence"] == ""
    assert claims_document(made_up(RISES, seeds=1), SETTINGS)["sentence"] == ""


def test_one_control_that_does_as_well_blocks_claim_7() -> None:
    found = verdicts(made_up(RISES | {"dual_lora": 0.4}, noise=0.05))
    assert found[1] == "supported" and found[7] == "undecided"


def test_without_a_reduction_by_full_sam_there_is_no_share() -> None:
    claims = judge(made_up(RISES | {"lora_sam_full": 1.0, "sam": 1.0}, noise=0.2), SETTINGS)
    part = claims[2].parts[0]
    assert claims[2].verdict == "undecided"
    assert part.low == -math.inf and part.high == math.inf


def test_holm_matches_its_definition() -> None:
    claims = judge(made_up(RISES, noise=0.5), SETTINGS)
    running, expected = 0.0, {}
    for rank, claim in enumerate(sorted(claims, key=lambda claim: claim.p_value)):
        running = max(running, min(1.0, (len(claims) - rank) * claim.p_value))
        expected[claim.number] = running
    assert {claim.number: claim.p_adjusted for claim in claims} == pytest.approx(expected)


def test_one_seed_is_undecided_not_an_error() -> None:
    claims = judge(made_up(RISES, seeds=1), SETTINGS)
    assert len(claims) == 7 and {claim.verdict for claim in claims} == {"undecided"}


def test_claims_about_methods_that_the_study_lacks_are_not_judged() -> None:
    few = judge(made_up({method: RISES[method] for method in ("lora", "bilora", "sam")}), SETTINGS)
    assert [claim.number for claim in few] == [1, 3, 4, 5, 6]
    assert few[0].test.endswith("Holm over 5 claims")
    document = claims_document(made_up({"lora": 1.0}), SETTINGS)
    assert document["claims"] == [] and document["propositions"] == []
    assert judge(records_frame([]), SETTINGS) == []


def test_a_claim_whose_values_are_undefined_stays_undecided() -> None:
    records = made_up(RISES)
    diverged = (records["method"] == "bilora") & (records["measure"] == "worst_case_rise")
    claims = judge(records.assign(value=records["value"].mask(diverged)), SETTINGS)
    assert len(claims) == 7 and claims[0].verdict == "undecided" and math.isnan(claims[0].parts[0].effect)


def test_a_failed_seed_drops_its_pair_only() -> None:
    records = made_up(RISES)
    records = records[~((records["method"] == "lora") & (records["seed"] == 2))]
    assert judge(records, SETTINGS)[0].parts[0].n == 5


def test_paired_agrees_with_scipy() -> None:
    differences = np.random.default_rng(1).normal(0.3, 1, 9)
    result, reference = paired(differences), stats.ttest_1samp(differences, 0, alternative="greater")
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert result.p_above == pytest.approx(reference.pvalue)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high))


def test_fieller_covers_the_true_ratio_at_its_level() -> None:
    generator, hits = np.random.default_rng(2), 0
    for _ in range(1000):
        denominators = generator.normal(2.0, 1.0, 8)
        numerators = 0.5 * denominators + generator.normal(0, 0.5, 8)
        _, low, high = fieller(numerators, denominators)
        hits += low <= 0.5 <= high
    assert 0.93 <= hits / 1000 <= 0.97
