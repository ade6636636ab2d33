"""Angles to the final space, and the propositions on records whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from analyses.judging.propositions import judge_propositions
from analyses.measures.dynamics import angles_to_final, settled_at
from analyses.records import records_frame


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


def test_planted_propositions() -> None:
    supported = judge_propositions(made_up(0.8, 0.1, (0.2, 0.9)), alpha=0.05)
    assert [claim.number for claim in supported] == [1, 2, 3, 4, 5, 6]
    parts = {claim.number: claim.parts for claim in supported}
    assert parts[5][0].effect == pytest.approx(0.8, abs=0.03)
    assert {claim.verdict for claim in supported} == {"supported"}
    contradicted = judge_propositions(made_up(0.1, -0.1, (0.9, 0.2)), alpha=0.05)
    assert {c.number: c.verdict for c in contradicted if c.number in (2, 3, 5)} == dict.fromkeys(
        (2, 3, 5), "contradicted"
    )


def test_nothing_recorded_is_nothing_judged() -> None:
    assert judge_propositions(records_frame([]), alpha=0.05) == []
