"""Verdicts on made-up records whose answer is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from scipy import stats

from analyses.judging.claims import Judged, claim_file, claims_document, judge
from analyses.records import records_frame
from analyses.study import ClaimFile, ClaimSettings

SETTINGS = ClaimSettings(rho=0.1)
RISES = {
    "sam": 0.2, "lora": 1.0, "lora_sam": 0.9, "lora_sam_full": 0.3, "bilora": 0.4, "dual_lora": 1.0,
    "random_aux": 0.95, "lora_2r": 1.1, "lora_2r_same_rate": 1.2, "bilora_cooled": 1.0,
}  # fmt: skip


def made_up(
    rises: dict[str, float],
    *,
    seeds: int = 6,
    noise: float = 0.02,
    sizes: tuple[int, ...] = (100,),
    loss: dict[str, float] | None = None,
    accuracy: dict[str, float] | None = None,
    diverged: tuple[tuple[str, int], ...] = (),
) -> pd.DataFrame:
    generator, rows = np.random.default_rng(0), []
    for size in sizes:
        for seed in range(seeds):
            shared = math.exp(generator.normal(0, 0.3))  # a seed's own level, which pairing removes
            for method, rise in rises.items():
                base = {"study": "s", "method": method, "seed": seed, "train_size": size}
                value = rise * shared * math.exp(noise * generator.normal())
                if (method, seed) in diverged:
                    rows.append(base | {"measure": "diverged", "value": 1.0})
                    continue
                worst = base | {"measure": "worst_case_rise", "rho": 0.1, "subspace": "full", "value": value}
                rows += [worst, worst | {"rho": 0.2, "value": 50.0}, worst | {"ball": "filter", "value": 50.0}]
                rows.append(worst | {"subspace": "lora", "value": -value})
                rows.append(worst | {"measure": "worst_case_gap", "ball": "l2", "value": 0.01})
                right = (accuracy or {}).get(method, 0.8) + 0.001 * generator.normal()
                rows.append(base | {"measure": "test_accuracy", "value": right})
                wrong = (loss or {}).get(method, 0.6) * math.exp(0.01 * generator.normal())
                rows.append(base | {"measure": "test_loss", "value": wrong})
                for k in range(1, 3):
                    energy = base | {"index": k, "layer": "all", "subspace": "column"}
                    rows.append(energy | {"measure": "captured_energy", "value": 0.2 + 0.01 * generator.normal()})
                    rows.append(energy | {"measure": "captured_energy_null", "value": 0.05})
    for method in rises:
        base = {"study": "s", "method": method, "seed": 0, "train_size": sizes[0]}
        passes = 2 if method == "lora_sam" else 1
        for name, cost in {"gradient_passes": passes, "step_flops": 1e6, "peak_memory_bytes": 2e6}.items():
            rows.append(base | {"measure": name, "value": cost})
    return records_frame(rows)


def judged(records: pd.DataFrame, settings: ClaimSettings = SETTINGS) -> dict[str, Judged]:
    return {claim.name: claim for claim in judge(records, settings)}


def test_the_question_comes_first_and_the_families_in_their_order() -> None:
    claims = judge(made_up(RISES), SETTINGS)
    assert [claim.name for claim in claims[:2]] == ["flatter_than_full_sam", "generalises_better_than_lora"]
    order = [claim.family for claim in claims]
    assert order == sorted(order, key=["outcome", "mechanism", "controls", "cost"].index)
    assert [claim.number for claim in claims] == list(range(1, len(claims) + 1))


def test_planted_effects_are_supported() -> None:
    records = made_up(RISES | {"bilora": 0.2}, loss={"bilora": 0.5}, accuracy={"bilora": 0.85})
    found = judged(records)
    assert {claim.verdict for claim in found.values()} == {"supported"}
    first = found["flatter_than_lora"].evidence
    assert first.unit == "ratio" and first.low < 0.2 < first.high
    assert found["recovers_full_sam"].evidence.effect == pytest.approx(0.8 / 0.7, abs=0.1)
    assert found["flatter_than_lora"].evidence.search_error == pytest.approx(-2 * math.log(0.99))


def test_opposite_effects_are_contradicted() -> None:
    found = judged(made_up(RISES | {"bilora": 1.6}, loss={"bilora": 0.8}, accuracy={"bilora": 0.7}))
    contradicted = {name for name, claim in found.items() if claim.verdict == "contradicted"}
    assert contradicted == {name for name, claim in found.items() if claim.family in ("outcome", "controls")}


def test_noise_decides_nothing() -> None:
    found = judged(made_up(dict.fromkeys(RISES, 1.0), noise=0.3))
    rises = [claim for claim in found.values() if claim.evidence.search_error is not None]
    assert len(rises) == 9 and {claim.verdict for claim in rises} == {"undecided"}
    assert all(claim.evidence.runs_needed is None or claim.evidence.runs_needed > 6 for claim in rises)


def test_equal_rises_are_equivalent_and_a_small_difference_is_none_that_matters() -> None:
    found = judged(made_up(dict.fromkeys(RISES, 1.0), noise=0.01))
    assert found["flatter_than_full_sam"].verdict == found["flatter_than_dual_lora"].verdict == "equivalent"
    slightly = judged(made_up(dict.fromkeys(RISES, 1.0) | {"bilora": 0.93}, noise=0.001))["flatter_than_lora"]
    assert slightly.evidence.high < 1 and slightly.verdict == "equivalent"


def test_a_ratio_of_rises_is_scipys_t_test_on_logarithms() -> None:
    records = made_up(RISES)
    full = records[(records["measure"] == "worst_case_rise") & (records["subspace"] == "full") & records["ball"].isna()]
    rises = full[full["rho"] == 0.1].pivot_table(index="seed", columns="method", values="value")
    logs = np.log(rises["bilora"] / rises["lora"])
    evidence, reference = judged(records)["flatter_than_lora"].evidence, stats.ttest_1samp(logs, 0)
    interval = reference.confidence_interval(0.95)
    assert evidence.p_directed == pytest.approx(reference.pvalue)
    assert (evidence.low, evidence.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))
    margin = math.log(SETTINGS.rise_margin)
    above = stats.ttest_1samp(logs, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(logs, margin, alternative="less").pvalue
    assert evidence.p_equivalent == pytest.approx(max(above, below))
    assert evidence.p_sign_flip == 2 / 2**6  # all six pairs agree


def test_accuracy_may_be_lower_by_less_than_the_margin() -> None:
    verdicts = [
        judged(made_up(RISES, accuracy={"bilora": 0.8 - loss}))["accuracy_not_worse_than_lora"]
        for loss in (0.005, 0.02)
    ]
    assert [one.verdict for one in verdicts] == ["supported", "contradicted"]
    assert verdicts[0].evidence.effect == pytest.approx(-0.5, abs=0.2)


def test_the_sentence_answers_the_question() -> None:
    sentence = claims_document(made_up(RISES | {"bilora": 1.0}, loss={"bilora": 0.7}), SETTINGS)["sentence"]
    assert sentence.startswith("Bi-LoRA's minima are 3.") and "full-space SAM's: contradicted" in sentence
    assert "its test loss is 1.1" in sentence and "LoRA's: contradicted" in sentence
    assert claims_document(made_up({"lora": 1.0}), SETTINGS)["sentence"] == ""


def test_what_a_study_lacks_is_named_and_not_counted() -> None:
    document = claims_document(made_up({name: RISES[name] for name in ("lora", "bilora")}), SETTINGS)
    names = {claim["name"]: claim for claim in document["claims"]}
    assert "flatter_than_full_sam" not in names
    assert names["flatter_than_lora"]["procedure"].endswith("over 3 claims")
    reasons = {one["name"]: one["reason"] for one in document["not_judged"]}
    assert reasons["flatter_than_lora_sam"] == "the study lacks lora_sam"
    assert reasons["auxiliary_ascends_after_the_clip"] == "nothing recorded of ascent"
    assert claims_document(records_frame([]), SETTINGS)["claims"] == []


def test_what_one_seed_or_equal_values_cannot_say_is_said() -> None:
    document = claims_document(made_up(RISES, seeds=1), SETTINGS)
    tested = [claim for claim in document["claims"] if claim["family"] != "cost"]
    assert {claim["verdict"] for claim in tested} == {"undecided"}
    assert all("one pair has no spread" in claim["note"] for claim in tested)
    equal = judged(made_up(dict.fromkeys(RISES, 1.0), noise=0.0))["flatter_than_lora"]
    assert equal.verdict == "undecided" and "all pairs give the same effect" in equal.evidence.note
    assert {claim["verdict"] for claim in document["claims"] if claim["family"] == "cost"} == {"supported"}


def test_a_run_that_diverged_is_the_worst_and_not_left_out() -> None:
    """Bi-LoRA below LoRA on five seeds, and diverged on the two where it would have been sharpest."""
    even = RISES | {"lora": 1.0, "bilora": 0.8}
    whole = judged(made_up(even, seeds=7))["flatter_than_lora"]
    assert whole.verdict == "supported"
    found = judged(made_up(even, seeds=7, diverged=(("bilora", 2), ("bilora", 5))))["flatter_than_lora"]
    assert found.verdict == "undecided" and found.evidence.n == 7 and "diverged" in found.evidence.test
    ranks = np.array([-1.0, -2, 6.5, -3, -4, 6.5, -5])  # whichever of the small ones is smaller
    exact = stats.permutation_test((ranks,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert found.evidence.p_directed == pytest.approx(exact)
    assert found.evidence.high == math.inf
    for method in ("lora", "bilora"):
        all_bad = tuple((method, seed) for seed in range(7))
        verdict = judged(made_up(even, seeds=7, diverged=all_bad))["flatter_than_lora"]
        assert verdict.evidence.p_directed == pytest.approx(2 / 2**7)


def test_divergence_counts_against_a_claim_of_more_too() -> None:
    """Of "mine is at least as large" a subject that diverged is the smallest, on any scale."""
    for scale in ("ratio", "difference"):
        claim = {"name": "more", "sentence": "more", "measure": "test_accuracy", "subject": "a", "reference": "b",
                 "scale": scale, "direction": "above"}  # fmt: skip
        settings = ClaimSettings(rho=0.1, file=ClaimFile.model_validate({"claims": [claim]}))
        records = made_up({"a": 1.0, "b": 1.0}, accuracy={"a": 0.9}, diverged=(("a", 0), ("a", 1), ("a", 2)))
        evidence = judged(records, settings)["more"].evidence
        assert evidence.n == 6 and evidence.p_for > 0.4


def test_both_diverged_is_a_tie() -> None:
    both = (("bilora", 1), ("lora", 1))
    evidence = judged(made_up(RISES, diverged=both))["flatter_than_lora"].evidence
    assert evidence.n == 6 and math.isfinite(evidence.effect) and evidence.test == "paired t"


def test_a_failed_seed_drops_its_pair_only() -> None:
    records = made_up(RISES)
    records = records[~((records["method"] == "lora") & (records["seed"] == 2))]
    assert judged(records)["flatter_than_lora"].evidence.n == 5


def test_sizes_are_pooled_seed_by_seed() -> None:
    """Twelve numbers of six seeds are six, not twelve."""
    records = made_up(RISES, sizes=(50, 100))
    evidence = judged(records)["flatter_than_lora"].evidence
    rises = records[
        (records["measure"] == "worst_case_rise") & (records["subspace"] == "full") & records["ball"].isna()
    ]
    wide = rises[rises["rho"] == 0.1].pivot_table(index=["train_size", "seed"], columns="method", values="value")
    logs = np.log(wide["bilora"] / wide["lora"]).unstack("train_size")
    assert evidence.n == 6
    assert evidence.p_directed == pytest.approx(stats.ttest_1samp(logs.mean(axis=1), 0).pvalue)
    assert evidence.by_size == pytest.approx({size: math.exp(logs[size].mean()) for size in (50, 100)})


def test_roles_fill_the_claims_of_a_study_with_other_columns() -> None:
    ranks = {"lora_r1": 1.0, "bilora_r1": 0.3, "lora_r4": 1.0, "bilora_r4": 1.0}
    roles = [{"bilora": f"bilora_r{r}", "lora": f"lora_r{r}"} for r in (1, 4)]
    found = judged(made_up(ranks), ClaimSettings(rho=0.1, roles=roles))
    assert found["flatter_than_lora@bilora_r1+lora_r1"].verdict == "supported"
    assert found["flatter_than_lora@bilora_r4+lora_r4"].verdict == "equivalent"
    assert found["flatter_than_lora@bilora_r1+lora_r1"].statement.startswith("Bi-LoRA (bilora_r1)'s worst-case")
    assert not judged(made_up(ranks))
    same = [{"lora": "lora_r1", "bilora": "bilora_r1"}, {"lora": "lora_r4", "bilora": "bilora_r1"}]
    claims = judge(made_up(ranks), ClaimSettings(rho=0.1, roles=same))
    names = [claim.name for claim in claims]
    assert len(set(names)) == len(names) and names.count("captures_more_than_chance@bilora_r1") == 1


MINE: dict[str, Any] = {
    "claims": [
        {"name": "same", "sentence": "{mine}'s minima are those of {adamw}", "measure": "worst_case_rise",
         "subject": "mine", "reference": "adamw", "scale": "ratio", "direction": "equivalent", "margin": 1.2},
        {"name": "small", "sentence": "{mine}'s loss is below one half", "measure": "test_loss",
         "subject": "mine", "reference": 0.5, "scale": "difference", "direction": "below", "family": "controls"},
    ],
    "roles": {"mine": "lora_sam"},
    "labels": {"adamw": "AdamW"},
}  # fmt: skip


def test_claims_of_ones_own() -> None:
    settings = ClaimSettings(rho=0.1, file=ClaimFile.model_validate(MINE | {"roles": {"mine": "a", "adamw": "b"}}))
    equal = judged(made_up({"a": 1.0, "b": 1.0}), settings)
    assert equal["same"].verdict == "supported" and equal["same"].statement == "mine's minima are those of AdamW"
    assert equal["small"].verdict == "contradicted" and equal["small"].evidence.effect == pytest.approx(0.6, abs=0.02)
    assert judged(made_up({"a": 2.0, "b": 1.0}), settings)["same"].verdict == "contradicted"
    assert judged(made_up({"a": 1.1, "b": 1.0}, noise=0.3), settings)["same"].verdict == "undecided"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": "share", "direction": "above"}, "limit: scale share needs one"),
        ({"scale": "share"}, "equivalent does not go with scale share"),
        ({"margin": None}, "margin: direction equivalent needs one"),
        ({"reference": 2.0}, "goes with scale difference"),
        ({"baseline": "x"}, "belongs to scale share"),
        ({"colour": "blue"}, "Extra inputs"),
        ({"margin": "wide"}, "margin"),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ClaimFile.model_validate(MINE | {"claims": [MINE["claims"][0] | changes]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": "ratio", "direction": "not_above", "margin": 0.5}, "margin: expected a factor of at least 1"),
        ({"scale": "ratio", "direction": "equivalent", "margin": -1.0}, "margin: expected a factor of at least 1"),
        ({"scale": "ratio", "limit": -1.0}, "limit: expected a ratio above 0, got -1"),
        ({"scale": "ratio", "limit": 0.0}, "limit: expected a ratio above 0, got 0"),
        (
            {"scale": "difference", "direction": "equivalent", "margin": -0.1},
            "margin: expected a difference of at least 0",
        ),
        (
            {"where": {"subspce": "full"}},
            r"where: the records have no column 'subspce'; did you mean 'subspace'\? expected",
        ),
        ({"reference_where": {"layr": "all"}}, "reference_where: the records have no column 'layr'"),
    ],
)
def test_thresholds_and_rows_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    claim = {
        "name": "own", "sentence": "{a} is below {b}", "measure": "test_loss", "subject": "a", "reference": "b",
        "scale": "difference", "direction": "below",
    }  # fmt: skip
    with pytest.raises(ValidationError, match=message):
        ClaimFile.model_validate({"claims": [claim | changes], "labels": {"a": "A", "b": "B"}})


@pytest.mark.parametrize(
    ("scale", "direction", "limit", "margin", "holds"),
    [
        ("difference", "below", None, None, True),
        ("difference", "above", None, None, False),
        ("difference", "not_above", None, 0.1, True),
        ("difference", "not_below", None, 0.1, False),
        ("difference", "not_below", None, 1e7, True),
        ("difference", "equivalent", None, 0.1, False),
        ("difference", "equivalent", -1e6, 0.1, True),
        ("ratio", "equivalent", 0.5, 1.0, True),
        ("ratio", "equivalent", None, 1.5, False),
        ("ratio", "not_below", None, 2.0, True),
        ("ratio", "below", 0.5, None, False),
    ],
)
def test_counted_claims_of_every_kind(
    scale: str, direction: str, limit: float | None, margin: float | None, holds: bool
) -> None:
    """LoRA counts 1e6 FLOPs a step, and its reference twice as many."""
    records = made_up({"lora": 1.0, "bilora": 1.0})
    records.loc[(records["measure"] == "step_flops") & (records["method"] == "bilora"), "value"] = 2e6
    claim = {
        "name": "own", "sentence": "{a} costs less than {b}", "measure": "step_flops", "subject": "a", "reference": "b",
        "scale": scale, "direction": direction, "limit": limit, "margin": margin, "family": "cost",
    }  # fmt: skip
    file = ClaimFile.model_validate(
        {"claims": [claim], "roles": {"a": "lora", "b": "bilora"}, "labels": {"a": "A", "b": "B"}}
    )
    (judged,) = judge(records, ClaimSettings(rho=0.1, file=file))
    assert judged.verdict == ("supported" if holds else "contradicted")


def test_the_bundled_claims_are_whole() -> None:
    claims = claim_file(SETTINGS).claims
    assert len({claim.name for claim in claims}) == len(claims) >= 25
    labels = claim_file(SETTINGS).labels
    assert {role for claim in claims for role in claim.roles} <= labels.keys()


LADDER = ClaimSettings(rho=0.1, bundled="ladder")


def test_the_ladders_claims_name_what_each_difference_costs() -> None:
    rungs = {
        "lora": 1.0, "lora_sam_full": 0.2, "lora_sam_rank": 0.2, "lora_sam_lag": 0.5, "bilora_stale": 0.5,
        "bilora_fresh": 0.2, "bilora_fresh_one": 0.25, "bilora": 1.2, "bilora_full_ball": 0.9, "bilora_inner_16": 0.2,
    }  # fmt: skip
    found = judged(made_up(rungs, loss={"bilora_fresh": 0.5}, accuracy={"bilora_fresh": 0.9}), LADDER)
    verdicts = {name: claim.verdict for name, claim in found.items()}
    assert verdicts.pop("lag_costs_no_flatness") == "contradicted"
    assert verdicts.pop("fresh_one_as_flat_as_full_sam") in ("undecided", "contradicted")  # at the margin itself
    assert {name for name, verdict in verdicts.items() if verdict != "supported"} == {
        "fresh_takes_fewer_passes_than_full_sam"  # made-up passes are equal
    }
    assert found["learned_ascent_costs_flatness"].evidence.effect == pytest.approx(6, rel=0.1)
    text = claims_document(made_up(rungs), LADDER)["sentence"]
    assert text.startswith("full-space SAM cut to rank r's minima are 1.0")


def test_the_sentence_names_the_share_that_is_asked_for() -> None:
    for share, words in ((0.5, "at least half of"), (0.3, "at least 0.3 of")):
        claim = judged(made_up(RISES), ClaimSettings(rho=0.1, recovered_share=share))["recovers_full_sam"]
        assert words in claim.statement and claim.evidence.limit == share
