"""A made-up study: records with the measures and shapes of a real one, and the files beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analyses.records import records_frame, write_records

RHO = 0.1
RADII = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4)
MODULES = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "mlp.up", "mlp.down")
LAYERS = tuple(f"vit.layers.{block}.{module}" for block in range(4) for module in MODULES)
SHARPNESS = {
    "full": 1.0,
    "sam": 0.5,
    "lora": 0.95,
    "lora_sam": 0.7,
    "lora_sam_full": 0.55,
    "bilora": 0.65,
    "dual_lora": 0.93,
    "random_aux": 0.9,
    "lora_2r": 1.05,
}


def made_up_records(methods: tuple[str, ...] = tuple(SHARPNESS), num_seeds: int = 5) -> pd.DataFrame:
    """Records of every measure for some methods and seeds."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for method in methods:
        for seed in range(num_seeds):
            cell = {"study": "made-up", "method": method, "seed": seed, "train_size": 100}
            rows += [cell | row for row in _cell(method, seed, rng)]
    return records_frame(rows)


def _cell(method: str, seed: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    sharp = SHARPNESS.get(method, 1.0) * rng.uniform(0.85, 1.15)
    for split, loss, accuracy in (("train", 0.02, 1.0), ("test", 0.3, 0.9)):
        yield {"measure": f"{split}_loss", "value": loss * rng.uniform(0.9, 1.1)}
        yield {"measure": f"{split}_accuracy", "value": accuracy - 0.02 * rng.uniform() * (split == "test")}
    for rho in RADII:
        for subspace, factor in (("full", 1.0), ("lora", 0.4)):
            rise = 40 * sharp * factor * rho**2 + 0.2 * rho
            yield {"measure": "worst_case_rise", "rho": rho, "subspace": subspace, "value": rise}
            yield {"measure": "one_step_rise", "rho": rho, "subspace": subspace, "value": 0.8 * rise}
    yield from _who_carries(method, sharp)
    yield from _eigenvalues(sharp, with_pyhessian=method == "bilora" and seed == 0)
    yield from _alignment(method, rng)
    if seed == 0:
        yield from _pictures(method, sharp)
    passes = 1 + (method in ("sam", "lora_sam", "lora_sam_full"))
    for measure, value in (
        ("step_seconds", 0.004 * passes * rng.uniform(0.98, 1.02)),
        ("train_step_seconds", 0.005 * passes),
        ("gradient_passes", passes),
        ("trainable_parameters", 61_440 if method in ("full", "sam") else 6_144),
        ("peak_memory_bytes", 3e7),
    ):
        if seed == 0 or measure == "step_seconds":
            yield {"measure": measure, "value": value}


def _who_carries(method: str, sharp: float) -> Iterator[dict[str, Any]]:
    """One example carries SAM's rises, twelve share the others'; the two searches differ by 1 %."""
    alone = method == "sam"
    for rho in RADII:
        common = {"ball": "l2", "rho": rho, "subspace": "full"}
        yield common | {"measure": "worst_case_gap", "value": 0.01}
        yield common | {"measure": "worst_case_converged", "value": 1.0}
        yield common | {"measure": "effective_examples", "value": 1.1 if alone else 12.0}
        yield common | {"measure": "largest_share", "index": 1, "value": 0.97 if alone else 0.2}
        yield common | {"measure": "largest_share", "index": 5, "value": 1.0 if alone else 0.6}
        yield common | {"measure": "own_worst_case_examples", "value": 100}
        yield common | {"measure": "own_worst_case_rise", "value": 3 * sharp, "stderr": 0.2}
        yield common | {"measure": "average_case_rise", "value": 1e-3 * sharp, "stderr": 1e-5}


def _eigenvalues(sharp: float, *, with_pyhessian: bool) -> Iterator[dict[str, Any]]:
    errors = {"lanczos": 0.0, "power_iteration": 1e-5} | ({"pyhessian": 2e-4} if with_pyhessian else {})
    for algorithm, error in errors.items():
        for k in range(1, 6):
            common = {"algorithm": algorithm, "subspace": "full", "index": k}
            yield common | {"measure": "hessian_eigenvalue", "value": 60 * sharp / k * (1 + error)}
            yield common | {"measure": "hessian_residual", "value": error + 1e-7}


def _alignment(method: str, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    excess = 0.25 if method == "bilora" else 0.05
    for layer in (*LAYERS, "all"):
        for k in range(1, 6):
            common = {"layer": layer, "index": k, "subspace": "column"}
            yield common | {"measure": "captured_energy", "value": 0.125 + excess * rng.uniform(0.5, 1.5)}
            yield common | {"measure": "captured_energy_null", "value": 0.125}
            yield common | {"measure": "captured_energy_optimum", "value": 0.9}
    exchanged = {"layer": "20 layers of 64 outputs", "subspace": "column"}
    yield exchanged | {"measure": "pairing_p_value", "value": 0.01}


def _pictures(method: str, sharp: float) -> Iterator[dict[str, Any]]:
    """Paraboloids, a quadratic model that is twice too low, and a barrier to every method that follows."""
    steps = np.linspace(-0.3, 0.3, 7)
    for direction, curvature in (("inside", 1.0), ("outside", 4.0)):
        for alpha in steps:
            value = 0.02 + sharp * curvature * alpha**2
            yield {"measure": "loss_profile", "subspace": direction, "alpha": alpha, "value": value}
    for alpha in steps:
        for beta in steps:
            value = 0.02 + sharp * (alpha**2 + 4 * beta**2)
            yield {"measure": "loss_surface", "alpha": alpha, "beta": beta, "value": value}
    for rho in RADII:
        yield {"measure": "quadratic_rise", "rho": rho, "value": 20 * sharp * rho**2 + 0.1 * rho}
    names = list(SHARPNESS)
    for number, other in enumerate(names[names.index(method) + 1 :] if method in names else []):
        yield {"measure": "loss_barrier", "other": other, "value": 0.1 * (number + 1)}


def made_up_claims() -> dict[str, Any]:
    """Claims of each verdict; the last but one has nothing that is defined, the last is counted."""

    def claim(
        number: int, verdict: str, effect: tuple[Any, Any, Any], p: float | None, family: str = "outcome"
    ) -> dict[str, Any]:
        statement = f"Statement number {number} says that one method's worst-case rise is below another's"
        common = {"number": number, "name": f"claim_{number}", "family": family, "statement": statement}
        value, low, high = effect
        unknown = dict.fromkeys(
            ["margin", "bootstrap_low", "bootstrap_high", "smallest_effect", "runs_needed", "spread", "search_error"]
        )
        tested = {"p_for": p, "p_against": p, "p_equivalent": 1.0, "p_sign_flip": 0.06, "test": "paired t"}
        rest = {"comparison": "bilora − lora", "unit": "nats", "n": 5, "limit": 0.0, "by_size": {}}
        shown = {"note": f"note {number} with 95 % & <b>", "procedure": "Holm's procedure over 4 claims"}
        judged = {"verdict": verdict, "p_value": p, "p_adjusted": p, "effect": value, "low": low, "high": high}
        return common | unknown | tested | rest | shown | judged

    whole = claim(1, "supported", (-0.1, -0.2, -0.05), 0.001)
    known = {"margin": 0.1, "bootstrap_low": -0.19, "bootstrap_high": -0.04, "smallest_effect": 0.08, "spread": 0.1}
    return {
        "rho": RHO,
        "alpha": 0.05,
        "sentence": "Bi-LoRA's minima are 5.40 × [4.42, 6.59] as sharp as full-space SAM's: contradicted.",
        "design": "The number of seeds was fixed: 5.",
        "claims": [
            whole | known | {"search_error": 0.02, "by_size": {"50": -0.1, "100": -0.2}},
            claim(2, "contradicted", (0.1, 0.05, 0.2), 0.002),
            claim(3, "undecided", (0.5, None, None), 0.8, "mechanism") | {"runs_needed": 44},
            claim(4, "undecided", (None, None, None), 1.0, "controls"),
            claim(5, "supported", (1.0, None, None), None, "cost"),
        ],
        "not_judged": [
            {"name": "flatter_than_x", "family": "outcome", "statement": "…", "reason": "the study lacks x"}
        ],
    }


def write_study(folder: Path, records: pd.DataFrame, claims: dict[str, Any], failures: list[dict[str, str]]) -> Path:
    """The files that an audit leaves for the report."""
    write_records(records, folder / "records.parquet")
    environment = {"torch": "2.13.0", "commit": "1b22b92", "cpu": "<made up>"}
    for name, content in (("claims", claims), ("failures", failures), ("environment", environment)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "study.yaml").write_text("name: made-up\nseeds: 5  # a <comment>\n")
    return folder


@pytest.fixture(scope="session")
def records() -> pd.DataFrame:
    """Records of all nine methods over five seeds."""
    return made_up_records()


@pytest.fixture
def claims() -> dict[str, Any]:
    """Claims of each verdict, some with undefined numbers."""
    return made_up_claims()
