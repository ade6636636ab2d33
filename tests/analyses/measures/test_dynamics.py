"""Angles to the final space, and the propositions on records whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from analyses.judging.claims import Judged, judge
from analyses.measures.dynamics import angles_to_final, settled_at
from analyses.records import records_frame
from analyses.records.derive import gain_spreads
from analyses.study import ClaimSettings


def test_angles_of_a_rotating_line() -> None:
    """Column spaces of two layers, rotated by known angles; B = 0 has no space yet and counts as a right angle."""

    def snapshot(*angles: float) -> dict[str, torch.Tensor]:
        return {
            f"primary/{layer}/B": torch.tensor([[math.cos(a)], [math.sin(a)], [0.0]]) for layer, a in enumerate(angles)
        }

    start = {name: torch.zeros(3, 1) for name in snapshot(0.0, 0.0)}
    found = angles_to_final({0: start, 5: snapshot(0.4, 0.2), 10: snapshot(0.0, 0.0)}, "primary/", "/B")
    assert found == pytest.approx({0: math.pi / 2, 5: 0.3, 10: 0.0}, abs=1e-6)


def test_angles_do_not_depend_on_the_basis() -> None:
    generator = torch.Generator().manual_seed(0)
    first, last, mixing = (torch.randn(shape, generator=generator) for shape in ((8, 3), (8, 3), (3, 3)))
    plain = {0: {"auxiliary/x/B": first}, 1: {"auxiliary/x/B": last}}
    mixed = {0: {"auxiliary/x/B": first @ mixing}, 1: {"auxiliary/x/B": 7 * last}}
    expected = angles_to_final(plain, "auxiliary/", "/B")
    assert angles_to_final(mixed, "auxiliary/", "/B") == pytest.approx(expected, abs=1e-5)


def test_settling_needs_to_last() -> None:
    assert settled_at({0: 1.0, 10: 0.1, 20: 0.5, 30: 0.1, 40: 0.0}) == 0.75
    assert settled_at({0: 0.0, 10: 0.0}) == 0.0


def made_up(gain: float, ascent: float, settled: tuple[float, float]) -> pd.DataFrame:
    generator, rows = np.random.default_rng(1), []
    for seed in range(6):
        for method in ("bilora", "random_aux", "lora_sam"):
            base = {"study": "s", "method": method, "seed": seed, "train_size": 100}
            for step in range(1, 11):
                noise = 1 + 0.05 * generator.normal()
                best = 1 + step / 5
                noted = {
                    "ascent": ascent * noise, "ascent_before_clip": ascent * noise,
                    "ascent_gain": gain * best * noise, "ascent_gain_optimum": best,
                    "ascent_gain_ky_fan": 2.0 + generator.normal() ** 2,
                    "cos_auxiliary_gradient": (0.3 if method == "bilora" else 0.0) * noise,
                }  # fmt: skip
                if method == "lora_sam":
                    noted = {"formula_error": 0.02 * noise}
                rows += [base | {"measure": name, "value": value, "step": step} for name, value in noted.items()]
            adapter, share = ("auxiliary", settled[1]) if method == "bilora" else ("primary", settled[0])
            settles = {"measure": "settled_at", "subspace": "column", "component": adapter}
            rows.append(base | settles | {"value": share + 0.01 * generator.normal()})
    return records_frame(rows)


def mechanism(records: pd.DataFrame) -> dict[str, Judged]:
    return {claim.name: claim for claim in judge(records, ClaimSettings(rho=0.1)) if claim.family == "mechanism"}


LATE, EARLY = "auxiliarys_space_settles_late", "lora_sams_space_settles_early"
ASCENDS = ("auxiliary_ascends_before_the_clip", "auxiliary_ascends_after_the_clip")
REACHES = "reaches_half_of_the_optimum"


def test_planted_propositions() -> None:
    supported = mechanism(made_up(0.8, 0.1, (0.2, 0.9)))
    assert {"lora_sam_perturbs_inside_its_factors", LATE, EARLY, *ASCENDS, REACHES} < supported.keys()
    assert {"points_along_the_gradient", "follows_the_frobenius_optimum"} < supported.keys()
    assert supported[REACHES].evidence.effect == pytest.approx(0.8, abs=0.03)
    assert {claim.verdict for claim in supported.values()} == {"supported"}
    contradicted = mechanism(made_up(0.1, -0.1, (0.9, 0.2)))
    assert {contradicted[name].verdict for name in (LATE, EARLY, *ASCENDS, REACHES)} == {"contradicted"}


def test_the_spread_is_that_of_the_log_ratio_over_rising_steps() -> None:
    gains, best = [0.5, -0.1, 0.2, 0.4], [1.0, 1.0, 0.8, 0.5]
    rows = [
        {"method": "bilora", "seed": 0, "train_size": 9, "step": step, "measure": name, "value": value}
        for step, values in enumerate(zip(gains, best, best, strict=True))
        for name, value in zip(("ascent_gain", "ascent_gain_optimum", "ascent_gain_ky_fan"), values, strict=True)
    ]
    found = gain_spreads(records_frame(rows)).set_index("measure")["value"]
    expected = np.std(np.log([0.5, 0.25, 0.8]), ddof=1)
    assert found.to_dict() == pytest.approx({"gain_spread_to_optimum": expected, "gain_spread_to_ky_fan": expected})
