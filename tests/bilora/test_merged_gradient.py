"""The gradient at the merged weights, against the gradient of a plain network's weights, in float64."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from bilora import BiLoraConfig, attach, build_method
from bilora.adapters import adapted_layers, adapter_factors
from bilora.gradients import StepGradients
from bilora.probe import AscentProbe
from bilora.recorder import DynamicsRecorder
from tests.bilora.conftest import TARGETS, make_method, merged_loss
from tests.bilora.test_trainer import dataset
from tests.bilora.test_trainer_features import trainer

Batch = tuple[Tensor, Tensor]


def filled(method, scale: float = 0.3):
    """Random factors, so that no product vanishes."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name in method.model.peft_config:
            for pair in adapter_factors(method.model, name).values():
                pair.B.copy_(scale * torch.randn(pair.B.shape, generator=generator, dtype=torch.float64))
    return method


def dense_gradients(network: nn.Module, method, batch: Batch) -> dict[str, Tensor]:
    deltas = {name: torch.zeros(()) for name in TARGETS}
    for adapter in method.model.peft_config:
        for name, pair in adapter_factors(method.model, adapter).items():
            deltas[name] = deltas[name] + pair.delta_weight.detach()
    deltas = {name: delta.clone().requires_grad_() for name, delta in deltas.items()}
    merged_loss(network, batch, deltas).backward()
    return {name: delta.grad for name, delta in deltas.items()}


def probed(method, passes) -> dict[str, float]:
    probe = AscentProbe(method, num_passes=len(passes))
    for backward in passes:
        with probe:
            backward()
    return probe.metrics()


def backwards(method, batch: Batch, parts: int = 1, scale: float = 1.0):
    chunks = zip(batch[0].chunk(parts), batch[1].chunk(parts), strict=True)

    def backward(x: Tensor, y: Tensor) -> None:
        (scale * len(x) / len(batch[0]) * F.cross_entropy(method.model(x), y)).backward()

    return [partial(backward, x, y) for x, y in chunks]


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_gain_and_cosine_are_those_of_the_whole_step(
    network: nn.Module, batch: Batch, parts: int, scale: float
) -> None:
    method = filled(make_method(network, "bilora"))
    gradients = dense_gradients(network, method, batch)
    method.loss_scale = scale
    found = probed(method, backwards(method, batch, parts, scale))
    g, e = (
        torch.cat([tensors[name].flatten() for name in TARGETS])
        for tensors in (gradients, {name: pair.delta_weight.detach() for name, pair in method.auxiliary.items()})
    )
    assert found["ascent_gain"] == pytest.approx(float(g @ e), rel=1e-9)
    assert found["cos_auxiliary_gradient"] == pytest.approx(float(g @ e / g.norm() / e.norm()), rel=1e-9)


def test_under_dora_the_gradient_is_that_of_the_weight_that_the_auxiliary_is_added_to(
    network: nn.Module, batch: Batch
) -> None:
    method = filled(make_method(network, "bilora", primary="dora"))
    with StepGradients(method) as step:
        backwards(method, batch)[0]()
    merged = copy.deepcopy(method.model)
    merged.base_model.set_adapter(["primary"])
    plain = merged.merge_and_unload()
    deltas = {name: pair.delta_weight.detach().clone().requires_grad_() for name, pair in method.auxiliary.items()}
    merged_loss(plain, batch, deltas).backward()
    for name, gradient in step.of_layers().items():
        torch.testing.assert_close(gradient, deltas[name].grad, rtol=1e-9, atol=1e-12)


class Shared(nn.Module):
    """A layer that is called twice, a head tied to an embedding, and a part under checkpointing."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.embed = nn.Embedding(7, 5)
        self.body = nn.Linear(5, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        def part(hidden: Tensor) -> Tensor:
            return torch.tanh(self.body(hidden))

        hidden = self.embed(tokens).requires_grad_()
        for _ in range(2):
            hidden = part(hidden) if self.reentrant is None else checkpoint(part, hidden, use_reentrant=self.reentrant)
        return self.head(hidden)


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_layers_called_twice_tied_and_checkpointed(reentrant: bool | None) -> None:
    model = Shared(reentrant).double()
    tokens, targets = torch.tensor([0, 1, 2, 3]), torch.tensor([1, 2, 3, 4])
    config = BiLoraConfig(r=2, target_modules=["body", "head"])
    method = filled(build_method(model, config, seed=0))
    method.model.double()
    probe, whole = AscentProbe(method), StepGradients(method)
    with probe, whole:
        F.cross_entropy(method.model(tokens), targets).backward()
    weights = {}
    for name in ("body", "head"):
        base = model.get_submodule(name).get_base_layer().weight.detach()
        deltas = [adapter_factors(model, a)[name].delta_weight.detach() for a in ("primary", "auxiliary")]
        weights[name] = (base + sum(deltas)).requires_grad_()
    hidden = model.embed.weight.detach()[tokens]
    for _ in range(2):
        hidden = torch.tanh(F.linear(hidden, weights["body"], model.body.get_base_layer().bias.detach()))
    F.cross_entropy(F.linear(hidden, weights["head"]), targets).backward()
    for name, gradient in whole.of_layers().items():
        torch.testing.assert_close(gradient, weights[name].grad, rtol=1e-9, atol=1e-12)
    gain = sum(float((weights[n].grad * pair.delta_weight.detach()).sum()) for n, pair in method.auxiliary.items())
    assert probe.metrics()["ascent_gain"] == pytest.approx(gain, rel=1e-9)


def test_square_conv1d_layers_are_taken_in_their_own_layout() -> None:
    """GPT-2's `Conv1D` stores (in, out): a square one shows nothing in its shape."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.square = Conv1D(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.square(x)

    x, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    for name in ("bilora", "lora_sam_full", "flat_lora"):
        settings = {"r": 2, "target_modules": ["square"], "rho": 0.1}
        method = build_method(Net().double(), BiLoraConfig(method=name, **settings), seed=0)
        method.model.double()
        filled(method)
        layer = next(iter(adapted_layers(method.model).values()))
        frozen = layer.get_base_layer().weight.detach()
        factors = [pair["square"] for a in method.model.peft_config if (pair := adapter_factors(method.model, a))]
        merged = (frozen.T + sum(pair.delta_weight.detach() for pair in factors)).requires_grad_()
        F.cross_entropy(x @ merged.T + layer.get_base_layer().bias.detach(), y).backward()
        points = []

        def backward(method=method, layer=layer, points=points) -> Tensor:
            points.append(layer.get_base_layer().weight.detach().clone())
            loss = F.cross_entropy(method.model(x), y)
            loss.backward()
            return loss.detach()

        if name == "bilora":
            with StepGradients(method) as step:
                backward()
            torch.testing.assert_close(step.of_layers()["square"], merged.grad)
        else:
            method.step, method.num_steps = 1, 2
            method.gradient(backward)
            moved = (points[-1] - frozen).T
            if name == "lora_sam_full":
                torch.testing.assert_close(moved, 0.1 * merged.grad / merged.grad.norm())
            else:
                rows = moved.norm(dim=1) / merged.detach().norm(dim=1)
                assert float(moved.norm()) > 0 and float(rows.max()) < 0.3


def test_gpt2_trains_with_peft_s_own_choice_of_layers() -> None:
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=8, pad_token_id=0)
    tokens = torch.arange(12).view(2, 6)
    model = attach(GPT2LMHeadModel(config), BiLoraConfig(r=2, rho=0.1))
    assert list(adapted_layers(model)) == ["transformer.h.0.attn.c_attn"]
    probe = AscentProbe(model.bilora_method)
    with probe:
        model(input_ids=tokens, labels=tokens).loss.backward()
    assert probe.metrics() == {"ascent_gain": 0.0, "cos_auxiliary_gradient": 0.0}  # B2 is zero
    wide = attach(GPT2LMHeadModel(config), BiLoraConfig(r=2, target_modules="all-linear"))
    assert {name.rsplit(".", 1)[-1] for name in adapted_layers(wide)} == {"c_attn", "c_proj", "c_fc"}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_recorder_and_log_agree_when_both_look(tmp_path: Path, accumulation: int) -> None:
    run = trainer(
        tmp_path, logging_strategy="steps", logging_steps=1, max_steps=3, rho=0.5, learning_rate=0.1,
        gradient_accumulation_steps=accumulation, per_device_train_batch_size=2,
    )  # fmt: skip
    recorder = DynamicsRecorder(run.method, every=1)
    run.add_callback(recorder)
    run.train()
    logged = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(logged) == len(recorder.rows) == 3
    for entry, row in zip(logged[1:], recorder.rows[1:], strict=True):
        assert row["gain"] != 0
        assert entry["ascent_gain"] == pytest.approx(row["gain"], rel=1e-4)
        assert entry["cos_auxiliary_gradient"] == pytest.approx(row["cosine"], rel=1e-4)


def test_bf16_weights_are_read_in_float32(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=1)
    for layer in adapted_layers(run.model).values():
        layer.get_base_layer().to(torch.bfloat16)
    batch = {key: torch.stack([example[key] for example in dataset()]) for key in dataset()[0]}
    with StepGradients(run.method) as step, torch.autocast("cpu", torch.bfloat16):
        run.model(**batch).loss.backward()
    assert {gradient.dtype for gradient in step.of_layers().values()} == {torch.float32}
