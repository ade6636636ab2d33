"""What SAM-type methods move, and what they leave as it was."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilora import BiLoraConfig, build_method
from bilora.adapters import PRIMARY, adapted_layers, adapter_factors

SAM_TYPE = ["sam", "lora_sam", "lora_sam_full"]


def prepared(model: nn.Module, name: str, **settings):
    adapters = {} if name == "sam" else {"r": 2, "target_modules": ["0", "3"]}
    return build_method(model, BiLoraConfig(method=name, rho=0.5, **adapters, **settings), seed=0)


def normalised(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(dropout), nn.Linear(6, 3))


def backward_on(method, x: Tensor, y: Tensor, seen: list | None = None):
    def backward() -> Tensor:
        loss = F.cross_entropy(method.model(x), y)
        loss.backward()
        if seen is not None:
            seen.append(torch.rand(3))
        return loss.detach()

    return backward


@pytest.mark.parametrize("name", SAM_TYPE)
def test_the_second_pass_leaves_batch_statistics_alone(name: str) -> None:
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    method = prepared(normalised(), name)
    norm = method.model.get_submodule("base_model.model.1") if name != "sam" else method.model[1]
    plain = normalised().train()
    for step in range(3):
        if step == 0:
            plain(x)
            expected = plain[1].running_mean.clone()
        method.gradient(backward_on(method, x, y))
        if step == 0:
            torch.testing.assert_close(norm.running_mean, expected)
    assert int(norm.num_batches_tracked) == 3


@pytest.mark.parametrize("name", SAM_TYPE)
def test_both_passes_see_one_dropout_mask(name: str) -> None:
    method, seen = prepared(normalised(0.5), name), []
    torch.manual_seed(7)
    method.gradient(backward_on(method, torch.randn(8, 4), torch.randint(3, (8,)), seen))
    assert len(seen) == 2 and torch.equal(*seen)
    assert not torch.equal(torch.rand(3), seen[0])


class Tied(nn.Module):
    """A head that uses the embedding's table."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens))


@pytest.mark.parametrize("name", ["lora_sam_full", "flat_lora"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_only_the_adapted_layer_is_moved_and_by_all_of_the_perturbation(name: str, dtype: torch.dtype) -> None:
    """The head computes with W + epsilon, the embedding that shares W with W; bfloat16 weights lose nothing."""
    torch.manual_seed(0)
    model, tokens = Tied().to(dtype), torch.tensor([0, 1, 2, 3])
    method = build_method(model, BiLoraConfig(method=name, r=2, target_modules=["head"], rho=1e-3), seed=0)
    method.step, method.num_steps = 1, 2
    rows, moved = [], []

    def watch(_: nn.Module, __: object, out: Tensor) -> None:
        rows.append(out.detach().clone())

    method.model.get_submodule("base_model.model.embed").register_forward_hook(watch)
    layer = adapted_layers(method.model)["head"]

    def backward() -> Tensor:
        loss = F.cross_entropy(method.model(tokens).float(), tokens)
        loss.backward()
        with torch.no_grad():
            eye = torch.eye(6, dtype=dtype)
            moved.append(layer(eye).T.double())
        return loss.detach()

    with torch.no_grad():
        still = layer(torch.eye(6, dtype=dtype)).T.double()
    method.gradient(backward)
    assert all(torch.equal(row, rows[0]) for row in rows)
    change = moved[-1] - still
    if dtype == torch.float64:
        norm = 1e-3 if name == "lora_sam_full" else float(torch.cat([n.flatten() for n in method.noise()]).norm())
        assert float(change.norm()) == pytest.approx(norm, rel=1e-9)


def test_a_perturbation_survives_bf16_weights() -> None:
    """Half a unit in the last place of the weights, and still felt: added to the output, not to the weight."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(32, 32, bias=False)).to(torch.bfloat16)
    method = build_method(network, BiLoraConfig(method="lora_sam_full", r=2, target_modules=["0"], rho=0.01), seed=0)
    layer = adapted_layers(method.model)["0"]
    inputs = torch.randn(64, 32).to(torch.bfloat16)

    losses = []

    def backward() -> Tensor:
        loss = method.model(inputs).float().square().mean()
        loss.backward()
        losses.append(float(loss))
        return loss.detach()

    method.gradient(backward)
    assert losses[1] - losses[0] == pytest.approx(rise_along_the_gradient(inputs, layer), rel=0.3)


def rise_along_the_gradient(inputs: Tensor, layer) -> float:
    """The rise of the loss at rho G / |G|, in float64."""
    weight = layer.get_base_layer().weight.detach().double().requires_grad_()
    loss = F.linear(inputs.double(), weight).square().mean()
    (gradient,) = torch.autograd.grad(loss, weight)
    with torch.no_grad():
        moved = weight + 0.01 * gradient / gradient.norm()
        return float(F.linear(inputs.double(), moved).square().mean() - loss)


def test_weights_that_would_swallow_the_perturbation_are_refused() -> None:
    with pytest.raises(ValueError, match="load the model in float32"):
        prepared(normalised().to(torch.bfloat16), "sam")
    method = prepared(normalised(), "lora_sam")
    for pair in adapter_factors(method.model, PRIMARY).values():
        pair.A.data = pair.A.data.half()
    with pytest.raises(ValueError, match="lora_sam perturbs weights in float16"):
        method.gradient(backward_on(method, torch.randn(8, 4), torch.randint(3, (8,))))


@pytest.mark.parametrize("name", ["full", "sam"])
def test_frozen_layers_stay_frozen(name: str) -> None:
    model = normalised()
    model[0].requires_grad_(False)
    settings = {} if name == "full" else {"rho": 0.5}
    method = build_method(model, BiLoraConfig(method=name, **settings), seed=0)
    assert {id(p) for p in method.primary_parameters()} == {id(p) for part in model[1:] for p in part.parameters()}
    with pytest.raises(ValueError, match="all weights are frozen"):
        build_method(copy.deepcopy(model).requires_grad_(False), BiLoraConfig(method=name, **settings), seed=0)
