"""A walk through calls that people get wrong: each is refused at the door, in words that say what to do instead."""

from __future__ import annotations

import copy
import math
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import landscape
from landscape import (
    DenseOperator,
    EmpiricalRisk,
    GGNOperator,
    HessianOperator,
    alignment,
    average_sharpness,
    bezier_path,
    captured_energy,
    estimate_trace,
    lanczos,
    linear_path,
    loss_line,
    loss_surface,
    losses_at,
    m_sharpness,
    power_iteration,
    random_direction,
    sharpness_curve,
    spectral_density,
    trajectory_plane,
    trust_region_maximum,
    worst_case_sharpness,
)

ROOT = Path(landscape.__file__).parent
INPUTS, TARGETS = torch.randn(10, 4, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 3


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


NET = network()
BATCHES = [(INPUTS, TARGETS)]
RISK = EmpiricalRisk(NET, BATCHES)
HESSIAN = HessianOperator(RISK)
SIZE = RISK.num_params
VECTOR = torch.ones(SIZE)


def diverged() -> nn.Module:
    model = copy.deepcopy(NET)
    with torch.no_grad():
        model[2].bias[1] = math.nan
    return model


def weighted_nll() -> nn.Module:
    return nn.NLLLoss(weight=torch.ones(3))


CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    # the risk: model, batches, labels, loss, weights
    "model by name": (lambda: EmpiricalRisk("bert", BATCHES), "model: expected a torch.nn.Module, got str"),
    "a function as model": (lambda: EmpiricalRisk(torch.tanh, BATCHES), "wrap a function into a module"),
    "a diverged model": (lambda: EmpiricalRisk(diverged(), BATCHES), "1 of the 3 entries of 2.bias are NaN"),
    "data parallel": (lambda: EmpiricalRisk(nn.DataParallel(NET), BATCHES), "pass model.module"),
    "pair as batches": (lambda: EmpiricalRisk(NET, (INPUTS, TARGETS)), "got a pair of tensors; put it into a list"),
    "mapping as batches": (lambda: EmpiricalRisk(NET, {"labels": TARGETS}), "got one mapping; put it into a list"),
    "data set as batches": (lambda: EmpiricalRisk(NET, TensorDataset(INPUTS, TARGETS)), "pass DataLoader(dataset)"),
    "tensor as batches": (lambda: EmpiricalRisk(NET, INPUTS), "expected an iterable of batches"),
    "no batches": (lambda: EmpiricalRisk(NET, None), "got a NoneType"),
    "empty batches": (lambda: EmpiricalRisk(NET, []), "batches: expected at least one batch, got none"),
    "tensor as batch": (lambda: EmpiricalRisk(NET, [INPUTS]), "got a Tensor as batch 0; a loss needs targets"),
    "three parts": (lambda: EmpiricalRisk(NET, [(INPUTS, INPUTS, TARGETS)]), "got 3 parts in batch 0"),
    "arrays": (lambda: EmpiricalRisk(NET, [(INPUTS.numpy(), TARGETS.numpy())]), "convert it by torch.as_tensor"),
    "no labels": (lambda: EmpiricalRisk(NET, [{"input": INPUTS}]), "a mapping needs 'labels'"),
    "dropped examples": (
        lambda: EmpiricalRisk(NET, DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=4, drop_last=True)),
        "use drop_last=False",
    ),
    "inputs too narrow": (lambda: EmpiricalRisk(NET, [(INPUTS[:, :3], TARGETS)]), "the model fails on the first"),
    "integers as inputs": (lambda: EmpiricalRisk(NET, [(INPUTS.long(), TARGETS)]), "are shapes, types and names"),
    "inputs not a number": (lambda: EmpiricalRisk(NET, [(INPUTS * math.nan, TARGETS)]), "example 0 of the first"),
    "label too large": (lambda: EmpiricalRisk(NET, [(INPUTS, TARGETS + 1)]), "from 0 to 2 or -100, got 3"),
    "label negative": (lambda: EmpiricalRisk(NET, [(INPUTS, TARGETS - 1)]), "got -1 in batch 0"),
    "labels as floats": (lambda: EmpiricalRisk(NET, [(INPUTS, TARGETS.float())]), "labels: "),
    "labels in a column": (lambda: EmpiricalRisk(NET, [(INPUTS, TARGETS[:, None])]), "expected one class index"),
    "labels too few": (lambda: EmpiricalRisk(NET, [(INPUTS, TARGETS[:5])]), "got labels of shape (5,)"),
    "all labels left out": (lambda: EmpiricalRisk(NET, [(INPUTS, TARGETS * 0 - 100)]), "every label is -100"),
    "loss by name": (lambda: EmpiricalRisk(NET, BATCHES, "cross_entropy"), "loss: expected a function of"),
    "a sum as loss": (lambda: EmpiricalRisk(NET, BATCHES, nn.CrossEntropyLoss(reduction="sum")), "reduction='mean'"),
    "other ignored label": (lambda: EmpiricalRisk(NET, BATCHES, nn.CrossEntropyLoss(ignore_index=0)), "-100"),
    "a functional loss": (lambda: EmpiricalRisk(NET, BATCHES, nn.functional.l1_loss), "F.l1_loss(outputs, batch[1]"),
    "class weights": (lambda: EmpiricalRisk(NET, BATCHES, weighted_nll()), "use landscape.cross_entropy_of"),
    "a scalar loss": (lambda: EmpiricalRisk(NET, BATCHES, lambda out, batch: out.sum()), "use reduction='none'"),
    "a glob": (lambda: EmpiricalRisk(NET, BATCHES, params="*.weight"), "write '.*' for the '*' of file names"),
    "a pattern without match": (lambda: EmpiricalRisk(NET, BATCHES, params="attn"), "found none; the model has"),
    "a misspelt name": (lambda: EmpiricalRisk(NET, BATCHES, params=["0.weigth"]), "did you mean '0.weight'?"),
    "tensors for names": (lambda: EmpiricalRisk(NET, BATCHES, params=list(NET.parameters())), "got Parameters"),
    "integer precision": (lambda: EmpiricalRisk(NET, BATCHES, dtype=torch.int32), "dtype: expected a floating type"),
    "precision by name": (lambda: EmpiricalRisk(NET, BATCHES, dtype="float64"), "got 'float64'"),
    "a point of other size": (lambda: RISK.loss(torch.ones(3)), f"expected shape ({SIZE},)"),
    "a state dictionary as point": (lambda: RISK.loss(NET.state_dict()), "join named tensors by layout.join"),
    # operators and solvers
    "operator of a model": (lambda: HessianOperator(NET), "expected an EmpiricalRisk, got a Sequential"),
    "Gauss-Newton of a model": (lambda: GGNOperator(NET), "EmpiricalRisk(model, batches)"),
    "a matrix that is not square": (lambda: DenseOperator(torch.ones(2, 3)), "expected a square matrix"),
    "lanczos of a risk": (lambda: lanczos(RISK, 2), "pass HessianOperator(risk), or GGNOperator(risk)"),
    "lanczos of a model": (lambda: lanczos(NET, 2), "pass HessianOperator(EmpiricalRisk(model, batches))"),
    "lanczos of a matrix": (lambda: lanczos(torch.eye(4), 2), "pass DenseOperator(matrix)"),
    "no eigenpairs": (lambda: lanczos(HESSIAN, 0), f"k: expected 1 <= k <= n = {SIZE}"),
    "too many eigenpairs": (lambda: lanczos(HESSIAN, 1000), "got 1000"),
    "half an eigenpair": (lambda: lanczos(HESSIAN, 2.5), "got 2.5"),
    "an unknown end": (lambda: lanczos(HESSIAN, 1, which="top"), "which: expected 'LA', 'SA' or 'LM'"),
    "no tolerance": (lambda: lanczos(HESSIAN, 1, tol=0), "tol: expected a positive"),
    "power iteration of a risk": (lambda: power_iteration(RISK, 1), "HessianOperator(risk)"),
    "trace of a risk": (lambda: estimate_trace(RISK), "HessianOperator(risk)"),
    "an unknown estimator": (lambda: estimate_trace(HESSIAN, method="hutch"), "method: expected one of hutchinson"),
    "density of a risk": (lambda: spectral_density(RISK), "HessianOperator(risk)"),
    "trust region of a risk": (lambda: trust_region_maximum(RISK, VECTOR, 0.1), "HessianOperator(risk)"),
    "a product of other size": (lambda: HESSIAN.matvec(torch.ones(3)), f"vector: expected a tensor of shape ({SIZE},)"),
    # sharpness
    "sharpness of a model": (lambda: worst_case_sharpness(NET, 0.1), "risk: expected an EmpiricalRisk"),
    "sharpness of an operator": (lambda: worst_case_sharpness(HESSIAN, 0.1), "pass the risk that the operator"),
    "several radii": (lambda: worst_case_sharpness(RISK, [0.1, 0.2]), "use sharpness_curve for several radii"),
    "a negative radius": (lambda: worst_case_sharpness(RISK, -0.1), "rho: expected a finite radius >= 0, got -0.1"),
    "a radius in words": (lambda: worst_case_sharpness(RISK, "0.1"), "rho: expected a number, got '0.1'"),
    "an infinite radius": (lambda: worst_case_sharpness(RISK, math.inf), "rho: expected a finite radius >= 0, got inf"),
    "one radius for a curve": (lambda: sharpness_curve(RISK, 0.1), "use [rho], or worst_case_sharpness for one"),
    "no radii": (lambda: sharpness_curve(RISK, []), "rhos: expected at least one radius"),
    "an unknown norm": (lambda: worst_case_sharpness(RISK, 0.1, norm="l1"), "norm: expected 'l2', 'layer"),
    "adaptive as a switch": (lambda: worst_case_sharpness(RISK, 0.1, adaptive=True), "adaptive: expected 'none'"),
    "no steps": (lambda: worst_case_sharpness(RISK, 0.1, steps=0), "steps"),
    "a start of other size": (lambda: worst_case_sharpness(RISK, 0.1, starts={"a": torch.ones(3)}), "starts['a']"),
    "negative noise": (lambda: average_sharpness(RISK, -1.0, num_samples=2, seed=0), "sigma: expected a finite"),
    "noise around a model": (lambda: average_sharpness(NET, 0.1, num_samples=2, seed=0), "make one: EmpiricalRisk"),
    "empty chunks": (lambda: m_sharpness(RISK, 0.1, m=0), "m: expected 1 <= m <= N = 10"),
    # surfaces, paths, subspaces
    "a line around a model": (lambda: loss_line(NET, VECTOR, [0.0]), "risk: expected an EmpiricalRisk"),
    "a short direction": (lambda: loss_line(RISK, torch.ones(3), [0.0]), "direction: expected a tensor of shape"),
    "a list as direction": (lambda: loss_line(RISK, [1.0] * SIZE, [0.0]), "pass torch.tensor(values)"),
    "one number as grid": (lambda: loss_line(RISK, VECTOR, 0.5), "alphas: expected a non-empty list"),
    "a surface with one direction": (
        lambda: loss_surface(RISK, VECTOR, VECTOR * math.nan, [0.0], [0.0]), "direction_b: expected finite entries",
    ),
    "points as a vector": (lambda: losses_at(RISK, VECTOR), f"points: expected shape (m, {SIZE})"),
    "a path between models": (lambda: linear_path(RISK, NET, NET), "or that model's own risk.theta"),
    "a path between dictionaries": (
        lambda: bezier_path(RISK, dict(NET.named_parameters()), VECTOR), "pass risk.layout.join(tensors by name)",
    ),
    "two points of a path": (lambda: linear_path(RISK, VECTOR, VECTOR, num_points=2), "num_points: expected"),
    "a plane through one point": (lambda: trajectory_plane(VECTOR[None]), "expected variation in 2 directions"),
    "a random direction of a model": (lambda: random_direction(NET, seed=0), "risk: expected an EmpiricalRisk"),
    "alignment with nothing": (lambda: alignment(VECTOR, None), "subspace: expected a LowRankSubspace"),
    "bases of other height": (lambda: captured_energy(torch.ones(5), torch.ones(4, 2)), "basis: expected 5 rows"),
}  # fmt: skip


def test_the_table_is_long_enough() -> None:
    assert len(CALLS) >= 60


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_says_what_to_do(name: str) -> None:
    call, message = CALLS[name]
    state = torch.get_rng_state()
    with pytest.raises(ValueError) as refused:
        call()
    assert message in str(refused.value) and "\n" not in str(refused.value)
    raised = Path(traceback.extract_tb(refused.value.__traceback__)[-1].filename)
    assert ROOT in raised.parents, f"from the depths: {raised}"
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (nn.CrossEntropyLoss(), landscape.cross_entropy),
        (nn.CrossEntropyLoss(reduction="none"), landscape.cross_entropy),
        (nn.functional.cross_entropy, landscape.cross_entropy),
        (nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0])), landscape.cross_entropy_of(torch.tensor([1.0, 2.0, 3.0]))),
        (nn.CrossEntropyLoss(label_smoothing=0.1), landscape.cross_entropy_of(label_smoothing=0.1)),
    ],
)
def test_torchs_losses_mean_what_torch_computes(given: Any, meant: Any) -> None:
    parts = [(INPUTS[:7], TARGETS[:7]), (INPUTS[7:], TARGETS[7:])]
    whole = copy.deepcopy(given)
    if isinstance(whole, nn.Module):
        whole.reduction = "mean"
    expected = float(whole(NET(INPUTS), TARGETS).detach())
    assert EmpiricalRisk(NET, parts, given).loss() == pytest.approx(expected, rel=1e-6)
    assert EmpiricalRisk(NET, parts, meant).loss() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("given", [nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss(), nn.functional.mse_loss])
def test_so_do_those_of_regression(given: Any) -> None:
    targets = torch.randn(10, 3)
    parts = [(INPUTS[:7], targets[:7]), (INPUTS[7:], targets[7:])]
    assert EmpiricalRisk(NET, parts, given).loss() == pytest.approx(float(given(NET(INPUTS), targets)), rel=1e-6)
