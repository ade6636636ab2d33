"""Every public function on a GPU, against the same on the CPU: ``pytest -m cuda``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from bilora import METHODS, BiLoraTrainer, minimum
from landscape import (
    EmpiricalFisherOperator,
    EmpiricalRisk,
    GGNOperator,
    HessianOperator,
    LowRankSubspace,
    alignment,
    average_sharpness,
    estimate_trace,
    lanczos,
    m_sharpness,
    orthonormal_basis,
    power_iteration,
    spectral_density,
    trust_region_maximum,
    weighted_capture,
    worst_case_sharpness,
)
from tests.bilora.conftest import config_of
from tests.bilora.test_trainer import dataset, tiny_vit

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def risks(dtype: torch.dtype = torch.float64) -> tuple[EmpiricalRisk, EmpiricalRisk]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    batches = [
        (torch.randn(7, 6, dtype=dtype), torch.arange(7) % 3),
        (torch.randn(4, 6, dtype=dtype), torch.arange(4) % 3),
    ]
    # Batches stay where the loader leaves them.
    return tuple(EmpiricalRisk(copy.deepcopy(model).to(d), batches, params=".*weight") for d in ("cpu", "cuda"))


def space(risk: EmpiricalRisk) -> LowRankSubspace:
    generator = torch.Generator().manual_seed(1)

    def bases(axis: int) -> dict[str, Tensor]:
        return {
            name: orthonormal_basis(torch.randn(shape[axis], 2, generator=generator, dtype=torch.float64)).to(
                risk.device
            )
            for name, shape in zip(risk.layout.names, risk.layout.shapes, strict=True)
        }

    return LowRankSubspace(risk.layout, bases(0), bases(1))


def of_eigenvectors(risk: EmpiricalRisk) -> Tensor:
    found = lanczos(HessianOperator(risk), 3)
    share = weighted_capture(found.eigenvalues, found.eigenvectors, space(risk))
    pooled = alignment(found.eigenvectors[:, 0], space(risk)).pooled
    return torch.tensor([share, pooled.captured, pooled.deviation, pooled.p_value])


MEASURES: dict[str, Callable[[EmpiricalRisk], Any]] = {
    "loss": lambda risk: risk.loss(),
    "losses": lambda risk: risk.per_example_losses(),
    "gradient": lambda risk: risk.gradient(),
    "hessian": lambda risk: HessianOperator(risk).to_dense(),
    "ggn": lambda risk: GGNOperator(risk).to_dense(),
    "fisher": lambda risk: EmpiricalFisherOperator(risk).to_dense(),
    "lanczos": lambda risk: lanczos(HessianOperator(risk), 3).eigenvalues,
    "power iteration": lambda risk: power_iteration(HessianOperator(risk), 2, tol=1e-6).eigenvalues,
    "hutchinson": lambda risk: estimate_trace(GGNOperator(risk), method="hutchinson").trace,
    "hutch++": lambda risk: estimate_trace(GGNOperator(risk), method="hutch++").trace,
    "xtrace": lambda risk: estimate_trace(GGNOperator(risk), method="xtrace").trace,
    "density": lambda risk: spectral_density(HessianOperator(risk), num_steps=10).density,
    "trust region": lambda risk: trust_region_maximum(HessianOperator(risk), risk.gradient(), 0.1).predicted_rise,
    "worst case": lambda risk: worst_case_sharpness(risk, 0.1, max_passes=100).rise,
    "worst case in a space": lambda risk: worst_case_sharpness(risk, 0.1, subspace=space(risk), max_passes=100).rise,
    "average case": lambda risk: average_sharpness(risk, 0.1, num_samples=5).rise,
    "m-sharpness": lambda risk: m_sharpness(risk, 0.1, m=2).rise,
    "alignment and capture": of_eigenvectors,
}


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_a_gpu_measures_what_the_cpu_measures(name: str) -> None:
    here, there = (torch.as_tensor(MEASURES[name](risk)).cpu() for risk in risks())
    torch.testing.assert_close(there, here, rtol=1e-6, atol=1e-9)


def test_products_are_not_blurred_by_tf32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        here, there = (HessianOperator(risk).to_dense().cpu() for risk in risks(torch.float32))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert float((here - there).norm() / here.norm()) < 1e-5


def test_random_numbers_on_the_device_are_noticed() -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            torch.randn(1, device=x.device)
            return super().forward(x)

    with pytest.raises(ValueError, match="draws random numbers"):
        EmpiricalRisk(Noisy(3, 2).cuda(), [(torch.randn(4, 3), torch.arange(4) % 2)])


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_trains_on_a_gpu_and_leads_to_a_minimum(tmp_path: Path, method: str) -> None:
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=8, per_device_train_batch_size=5, learning_rate=0.02, report_to=[],
        save_strategy="no", logging_steps=4, disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    config = config_of(method, r=2, rho=0.05, target_modules=["q_proj", "fc1"])
    run = BiLoraTrainer(tiny_vit(), arguments, bilora=config, train_dataset=dataset())
    run.train()
    assert run.step_losses[-1] < run.step_losses[0]
    assert next(run.model.parameters()).is_cuda
    examples = dataset()
    batch = {key: torch.stack([example[key] for example in examples]) for key in examples[0]}
    found = minimum(run)
    assert found.risk([batch]).loss() == pytest.approx(run.evaluate(examples)["eval_loss"], abs=1e-4)
