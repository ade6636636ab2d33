"""What diverged counts against a claim, what so many runs find at the claim's own level, and notes that are true."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from scipy import stats

from analyses.judging.claims import claims_document
from analyses.judging.power import runs_needed
from analyses.records import records_frame
from analyses.running.stopping import looked_at
from analyses.study import ClaimFile, ClaimSettings, StudyFolder
from tests.analyses.running.test_tuning import study_of

SHARE = {
    "name": "recovers", "sentence": "x", "measure": "worst_case_rise", "subject": "b", "reference": "f",
    "baseline": "l", "scale": "share", "direction": "above", "limit": 0.5,
}  # fmt: skip
RATIO = {
    "name": "flatter", "sentence": "x", "short": "minima are {effect} as sharp", "measure": "worst_case_rise",
    "subject": "a", "reference": "b", "scale": "ratio", "direction": "below", "margin": 1.25,
}  # fmt: skip


def rise(method: str, seed: int, value: float, size: int = 100) -> dict[str, Any]:
    at = {"ball": "l2", "rho": 0.1, "subspace": "full"}
    return {"method": method, "seed": seed, "train_size": size, "measure": "worst_case_rise", "value": value} | at


def diverged(method: str, seed: int) -> dict[str, Any]:
    return {"method": method, "seed": seed, "train_size": 100, "measure": "diverged", "value": 1.0}


def document(rows: list[dict[str, Any]], *claims: dict[str, Any]) -> dict[str, Any]:
    records = records_frame([row | {"study": "s"} for row in rows])
    return claims_document(records, ClaimSettings(rho=0.1, file=ClaimFile.model_validate({"claims": [*claims]})))


def claim_of(rows: list[dict[str, Any]], claim: dict[str, Any]) -> dict[str, Any]:
    (found,) = document(rows, claim)["claims"]
    return found


def reduced(seeds: int, lost: dict[str, int], b: float = 0.9) -> list[dict[str, Any]]:
    """LoRA at 1, SAM at 0.2, a subject; the first seeds of some of them diverged."""
    generator, rows = np.random.default_rng(0), []
    for seed in range(seeds):
        for method, value in {"l": 1.0, "f": 0.2, "b": b}.items():
            noisy = value * (1 + 0.03 * generator.normal())
            rows.append(diverged(method, seed) if seed < lost.get(method, 0) else rise(method, seed, noisy))
    return rows


@pytest.mark.parametrize(("direction", "b"), [("above", 0.25), ("below", 0.9)])
def test_a_subject_that_diverged_recovers_nothing(direction: str, b: float) -> None:
    """Whatever the claim says of it: that it recovers more than half is wrong then, that it recovers less is right."""
    claim = SHARE | {"direction": direction}
    assert claim_of(reduced(12, {}, b), claim)["verdict"] == "supported"
    for lost in (7, 12):
        found = claim_of(reduced(12, {"b": lost}, b), claim)
        assert found["n"] == 12 and f"{lost} of 12 runs of the subject have no finite value" in found["note"]
        assert (found["p_for"] > 0.5) == (direction == "above")
    verdict = claim_of(reduced(12, {"b": 12}, b), claim)["verdict"]
    assert verdict == ("contradicted" if direction == "above" else "supported")


SHARPER = {"name": "sharper", "sentence": "x", "measure": "worst_case_rise", "subject": "b", "reference": "f",
           "scale": "ratio", "direction": "above"}  # fmt: skip


@pytest.mark.parametrize(("lost", "verdict"), [("b", "supported"), ("f", "contradicted")])
def test_a_run_that_diverged_is_the_sharpest_whatever_the_claim_says(lost: str, verdict: str) -> None:
    found = claim_of(reduced(12, {lost: 12}), SHARPER)
    assert found["verdict"] == verdict and "12 of 12 runs" in found["note"]
    assert found["effect"] == (math.inf if lost == "b" else 0.0)


@pytest.mark.parametrize("scale", ["difference", "ratio"])
def test_a_run_that_diverged_is_the_least_accurate(scale: str) -> None:
    rows = [row | {"measure": "test_accuracy"} if row["measure"] == "worst_case_rise" else row
            for row in reduced(12, {"f": 12})]  # fmt: skip
    claim = SHARPER | {"measure": "test_accuracy", "direction": "below", "scale": scale}
    assert claim_of(rows, claim)["verdict"] == "contradicted"  # the subject's accuracy is not below that of a lost run


def test_what_is_worst_can_be_said() -> None:
    rows = [row | {"measure": "settled_at"} if row["measure"] == "worst_case_rise" else row
            for row in reduced(12, {"b": 12})]  # fmt: skip
    claim = SHARPER | {"measure": "settled_at", "scale": "difference"}
    found = {worst: claim_of(rows, claim | {"worst": worst})["verdict"] for worst in ("highest", "lowest")}
    assert found == {"highest": "supported", "lowest": "contradicted"}


@pytest.mark.parametrize(
    ("direction", "limit", "verdict"),
    [("not_below", 0.85, "supported"), ("not_below", 1.2, "contradicted"), ("not_above", 0.85, "supported")],
)
def test_shares_have_margins(direction: str, limit: float, verdict: str) -> None:
    found = claim_of(reduced(12, {}, 0.25), SHARE | {"direction": direction, "limit": limit, "margin": 0.15})
    assert found["verdict"] == verdict


def test_ratios_of_negative_values_decide_nothing() -> None:
    """Nine pairs of twelve have the subject below; the three that have a ratio would say the contrary."""
    rows = reduced(12, {})
    for row in rows:
        if row["method"] == "b" and row["measure"] == "worst_case_rise":
            reference = next(r["value"] for r in rows if r["method"] == "f" and r["seed"] == row["seed"]
                             and r["measure"] == "worst_case_rise")  # fmt: skip
            row["value"] = -0.5 if row["seed"] < 9 else 1.1 * reference
    found = claim_of(rows, SHARPER | {"direction": "below"})
    assert found["verdict"] == "undecided" and "9 pairs have a negative value and no ratio" in found["note"]


def test_a_share_of_those_that_did_not_diverge_has_no_interval_over_all() -> None:
    found = claim_of(reduced(8, {"f": 6}), SHARE)
    assert (found["low"], found["high"]) == (-math.inf, math.inf) and found["n"] == 8
    assert "the share is that of 2 pairs without a run that diverged" in found["note"]
    note = claim_of(reduced(8, {"l": 4, "f": 4}), SHARE)["note"]
    assert "left out, in which what diverged leaves no share" in note and "both diverged" not in note


def test_runs_that_diverged_count_where_the_measure_was_planned() -> None:
    """The measure is taken at the first five of twelve seeds; later runs have nothing to be compared by."""
    claim = {"name": "late", "sentence": "x", "measure": "settled_at", "subject": "b", "reference": 0.8,
             "scale": "difference", "direction": "above"}  # fmt: skip
    noise = [0.1, -0.4, 0.3, 0.2, -0.2]
    own = {"method": "b", "train_size": 100}
    rows = [own | {"seed": s, "measure": "settled_at", "value": 0.9 + 0.01 * e} for s, e in enumerate(noise)]
    fitted = [own | {"seed": seed, "measure": "train_loss", "value": 0.1} for seed in range(12)]
    whole = claim_of(rows + fitted, claim)
    some = claim_of(rows + fitted[:9] + [diverged("b", seed) for seed in (9, 10, 11)], claim)
    assert whole["n"] == some["n"] == 5 and whole["p_for"] == some["p_for"]
    early = claim_of(rows[1:] + fitted[1:] + [diverged("b", 0)], claim)
    assert early["n"] == 5 and "diverged" in early["test"]


def power(effect: float, spread: float, n: int, level: float) -> float:
    return float(stats.nct.sf(stats.t.ppf(1 - level / 2, n - 1), n - 1, abs(effect) * math.sqrt(n) / spread))


def test_what_so_many_runs_find_is_found_at_the_claims_own_level() -> None:
    generator = np.random.default_rng(3)
    claims = [RATIO | {"name": f"flatter_{k}", "margin": None} for k in range(6)]
    rows = []
    for seed in range(9):
        rows += [
            rise("a", seed, math.exp(0.4 * generator.normal() - 0.4)),
            rise("b", seed, math.exp(0.4 * generator.normal())),
        ]
    first = document(rows, *claims)["claims"][0]
    assert first["level"] == pytest.approx(0.05 / 6)
    smallest = abs(math.log(first["smallest_effect"]))
    assert power(smallest, first["spread"], first["n"], first["level"]) == pytest.approx(0.8, abs=1e-3)
    effect, needed = math.log(first["effect"]), first["runs_needed"]
    assert power(effect, first["spread"], needed, first["level"]) >= 0.8
    assert power(effect, first["spread"], needed - 1, first["level"]) < 0.8


@pytest.mark.parametrize("effect", [math.log(1.3), 0.15])
def test_runs_that_a_claim_of_equivalence_needs(effect: float) -> None:
    """Beyond the margin only a difference beyond it decides, within it only equivalence."""
    margin, spread, generator = math.log(1.25), 0.2, np.random.default_rng(0)
    n = runs_needed(effect, spread, alpha=0.05, margin=margin, equivalent=True)
    assert n is not None
    draws = effect + spread * generator.normal(size=(4000, n))
    mean, error = draws.mean(axis=1), draws.std(axis=1, ddof=1) / math.sqrt(n)
    above, below = stats.t.sf((mean + margin) / error, n - 1), stats.t.cdf((mean - margin) / error, n - 1)
    equivalent = np.maximum(above, below) <= 0.05
    beyond = 2 * np.minimum(stats.t.sf((mean - margin) / error, n - 1), stats.t.cdf((mean + margin) / error, n - 1))
    assert float(np.mean(equivalent | (beyond <= 0.05))) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    ("rows", "message"),
    [({"layer": 3}, "column layer holds text: '3' in quotation marks, got 3.0"), ({"rho": "0.1"}, "holds numbers")],
)
def test_rows_are_chosen_by_values_of_their_columns_type(rows: dict[str, Any], message: str) -> None:
    for name in ("where", "reference_where"):
        with pytest.raises(ValidationError, match=message):
            ClaimFile.model_validate({"claims": [RATIO | {name: rows}]})


def test_rows_that_are_not_there_are_told_from_measures_that_are_not() -> None:
    rows = [rise(method, seed, 0.1 + 0.01 * seed) for method in "ab" for seed in range(3)]
    misspelt = RATIO | {"name": "misspelt", "where": {"subspace": "ful"}}
    absent = RATIO | {"name": "absent", "measure": "hessian_trace", "where": {"subspace": "full"}}
    reasons = {one["name"]: one["reason"] for one in document(rows, misspelt, absent)["not_judged"]}
    assert reasons["misspelt"] == "no records of worst_case_rise are left by where (subspace: ful) in both"
    assert reasons["absent"] == "nothing recorded of hessian_trace"


def test_the_sentence_stays_where_runs_diverged() -> None:
    some = [rise("a", s, 0.1 + 0.01 * s) for s in range(8)] + [rise("b", s, 0.2 + 0.02 * s) for s in range(7)]
    sentence = document([*some, diverged("b", 7)], RATIO)["sentence"]
    assert "0.50 × (unbounded; 1 of 8 runs of the reference have no finite value)" in sentence
    assert "medians where runs diverged" in sentence and "inf" not in sentence
    none = [diverged("a", s) for s in range(8)] + [rise("b", s, 0.2 + 0.02 * s) for s in range(8)]
    sentence = document(none, RATIO)["sentence"]
    assert "a's minima are infinitely many × (unbounded; 8 of 8 runs of the subject" in sentence
    assert sentence.endswith("rises at rho = 0.1).") and "contradicted" in sentence
    one = document([rise("a", 0, 0.1), rise("b", 0, 0.2)], RATIO)["sentence"]
    assert "0.50 × (unbounded)" in one and "inf" not in one


def test_notes_say_why_nothing_is_left() -> None:
    apart = [rise("a", 1, 0.1, 20), rise("b", 1, 0.2, 20), rise("a", 2, 0.1, 50), rise("b", 2, 0.21, 50)]
    negative = [rise("a", s, -0.1) for s in range(3)] + [rise("b", s, 0.1) for s in range(3)]
    for rows in (apart, negative):
        found = claim_of(rows, RATIO)
        assert found["n"] == 0 and "no pair is left to compare" in found["note"] and found["verdict"] == "undecided"
    assert claim_of(negative, RATIO | {"family": "cost"})["verdict"] == "undecided"


def test_rounds_of_step_costs_are_no_seeds(tmp_path: Path) -> None:
    fitted = [{"method": "lora", "train_size": 40, "measure": "train_loss", "value": 0.1, "seed": s} for s in range(2)]
    timed = [{"method": "lora", "train_size": 40, "measure": "step_seconds", "value": 0.1, "seed": s} for s in range(5)]
    study = study_of({"learning_rate": {"lora": [0.1]}}).model_copy(update={"seeds": 9})
    looks = looked_at(pd.DataFrame(records_frame(fitted + timed)), study, StudyFolder(tmp_path), None)
    assert [look.seeds for look in looks.looks] == [2]


def test_what_would_be_found_is_on_the_effects_own_scale() -> None:
    """Against a limit, a margin or a number the effect that is found is not its distance from that."""
    rows = reduced(12, {}, 0.9)
    plain = claim_of(rows, SHARPER | {"scale": "difference"})["smallest_effect"]
    margin = claim_of(rows, SHARPER | {"scale": "difference", "direction": "not_below", "margin": 1.0})
    assert margin["smallest_effect"] == pytest.approx(plain - 1.0)
    number = claim_of(rows, SHARPER | {"scale": "difference", "reference": 0.5, "direction": "above"})
    spread = number["spread"] / plain * claim_of(rows, SHARPER | {"scale": "difference"})["spread"]
    assert number["smallest_effect"] > 0.5 and spread > 0
    limit = claim_of(rows, SHARPER | {"limit": 2.0})["smallest_effect"]
    assert limit == pytest.approx(2 * claim_of(rows, SHARPER)["smallest_effect"])
    below = claim_of(rows, SHARPER | {"limit": 2.0, "direction": "below"})["smallest_effect"]
    assert below == pytest.approx(2 / claim_of(rows, SHARPER)["smallest_effect"])


@pytest.mark.parametrize(
    ("scale", "measure", "words"), [("difference", "test_accuracy", "points ["), ("ratio", "worst_case_rise", "× [")]
)
def test_the_opening_sentence_has_the_claims_own_unit(scale: str, measure: str, words: str) -> None:
    rows = [
        row | {"measure": measure} if row["measure"] == "worst_case_rise" else row for row in reduced(12, {}, 0.0009)
    ]
    claim = SHARPER | {"measure": measure, "scale": scale, "direction": "below", "unit": "points", "times": 100.0,
                       "short": "value is {effect}"}  # fmt: skip
    sentence = document(rows, claim)["sentence"]
    assert words in sentence and "[0.00," not in sentence and "unbounded" not in sentence
