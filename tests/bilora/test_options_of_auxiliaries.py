"""The options of the set auxiliaries that a benchmark measures do what their names say, on gradients that are known."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.auxiliary_options import FreshAveraged, FreshHardest, FreshLayerwise, StaleBoth
from bilora import BiLoraConfig
from bilora.methods.base import Method
from tests.bilora.test_trainer import dataset, tiny_vit

RHO = 0.3
SIZES = [(6, 5), (4, 7)]


def prepared(kind: type[Method]) -> Method:
    model = nn.ModuleList([nn.Linear(n, m, bias=False) for m, n in SIZES]).double()
    config = BiLoraConfig(
        method=f"benchmarks.auxiliary_options:{kind.__name__}", r=2, rho=RHO, target_modules=["0", "1"]
    )
    method = kind(model, config, seed=0)
    method.model.double()
    return method


def gradients(seed: int, rank: int | None = None) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    if rank is None:
        return [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in SIZES]
    return [
        torch.randn(m, rank, generator=draw, dtype=torch.float64)
        @ torch.randn(rank, n, generator=draw, dtype=torch.float64)
        for m, n in SIZES
    ]


def step(method: Method, wanted: list[Tensor]) -> list[Tensor]:
    """One step on a loss that is linear in the merged weights; returns the auxiliary's products at its own pass."""

    def backward(fraction: float = 1.0) -> Tensor:
        layers = method.model.base_model.model
        loss = sum((g * layer(torch.eye(g.shape[1]).double()).T).sum() for g, layer in zip(wanted, layers, strict=True))
        loss.backward()
        return loss.detach()

    method.gradient(backward)
    products = [pair.delta_weight.detach().clone() for pair in method.auxiliary.values()]
    method.before_step()
    method.after_step()
    return products


def direction(blocks: list[Tensor]) -> Tensor:
    whole = torch.cat([block.flatten() for block in blocks])
    return RHO * whole / whole.norm()


def test_both_factors_from_one_gradient_are_that_gradient_where_it_has_their_rank() -> None:
    method, wanted = prepared(StaleBoth), gradients(1, rank=2)
    for _ in range(3):
        last = step(method, wanted)
    torch.testing.assert_close(torch.cat([p.flatten() for p in last]), direction(wanted))


def test_every_layer_has_its_own_radius() -> None:
    method = prepared(FreshLayerwise)
    for product in step(method, gradients(2)):
        assert float(product.norm()) == pytest.approx(RHO / 2**0.5)


def test_the_average_is_that_of_projected_gradients() -> None:
    method = prepared(FreshAveraged)
    average = [torch.zeros(shape, dtype=torch.float64) for shape in SIZES]
    for seed in (3, 4, 5):
        rows = [pair.A.detach().clone() for pair in method.auxiliary.values()]
        projectors = [torch.linalg.pinv(a) @ a for a in rows]
        wanted = gradients(seed)
        average = [(0.9 * m + g) @ p for m, g, p in zip(average, wanted, projectors, strict=True)]
        torch.testing.assert_close(torch.cat([p.flatten() for p in step(method, wanted)]), direction(average))


def test_the_hardest_examples_give_the_perturbation() -> None:
    config = BiLoraConfig(method="benchmarks.auxiliary_options:FreshHardest", r=2, rho=RHO, target_modules=["fc1"])
    plain = tiny_vit().double()
    method = FreshHardest(copy.deepcopy(plain), config, seed=0)
    method.model.double()
    batch = {key: torch.stack([example[key] for example in dataset()]) for key in ("pixel_values", "labels")}
    batch["pixel_values"] = batch["pixel_values"].double()

    def backward(fraction: float = 1.0) -> Tensor:
        loss = method.model(**batch).loss
        loss.backward()
        return loss.detach()

    (pair,) = method.auxiliary.values()
    rows = pair.A.detach().clone()
    losses = F.cross_entropy(plain(pixel_values=batch["pixel_values"]).logits, batch["labels"], reduction="none")
    (weight,) = (p for name, p in plain.named_parameters() if name.endswith("fc1.weight"))
    (gradient,) = torch.autograd.grad(losses.sort().values[-2:].mean(), weight)  # a quarter of ten, rounded to even
    method.gradient(backward)
    expected = gradient @ torch.linalg.pinv(rows) @ rows
    torch.testing.assert_close(pair.delta_weight, RHO * expected / expected.norm())
    assert method.passes_per_step == 2
