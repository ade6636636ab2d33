"""Gradients that are not the loss's derivative are refused; what models do to autograd inside leaves them right."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from landscape import EmpiricalRisk, HessianOperator, lanczos, worst_case_sharpness
from landscape.slopes import check_gradient

GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(24, 6, generator=GENERATOR, dtype=torch.float64)
Y = torch.randint(0, 3, (24,), generator=GENERATOR)
BATCHES = [(X, Y)]


def risk_of(model: nn.Module, **options: object) -> EmpiricalRisk:
    return EmpiricalRisk(model, BATCHES, **options)  # type: ignore[arg-type]


class Net(nn.Module):
    """Two layers; ``between`` is done to what lies between them."""

    def __init__(self, between: Callable[[Tensor], Tensor], inputs: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.between = nn.Linear(inputs, 8), nn.Linear(8, 3), between
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.between(self.first(x).tanh()))
        return out


def turned(z: Tensor) -> Tensor:
    if z.requires_grad:
        z.register_hook(lambda gradient: -gradient)
    return z


class Reversed(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return turned(z)


class Table(nn.Module):
    """A table looked up by torch's function, which leaves the gradient of one row out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Parameter(torch.randn(5, 4)), nn.Linear(4, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        rows = F.embedding((x[:, :3] * 10).long().abs() % 5, self.table, padding_idx=0)
        out: Tensor = self.head(rows.mean(1))
        return out


WRONG: dict[str, nn.Module] = {
    "reversed": Net(turned),
    "partly detached": Net(lambda z: 0.1 * z + 0.9 * z.detach()),
    "straight-through": Net(lambda z: z + ((4 * z).round() / 4 - z).detach()),
    "padding": Table(),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_gradient_that_is_another_functions_is_refused(name: str, dtype: torch.dtype) -> None:
    model = copy.deepcopy(WRONG[name]).to(dtype)
    batches = [(X.to(dtype), Y)]
    with pytest.raises(ValueError, match="its gradient is not the derivative of its loss"):
        EmpiricalRisk(model, batches)
    assert EmpiricalRisk(model, batches, check=False).num_params > 0


def test_dora_is_refused_and_its_merged_weights_are_not() -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=40, n_positions=12)
    dora = peft.LoraConfig(r=2, use_dora=True, target_modules=["c_attn"], init_lora_weights=False)
    model = peft.get_peft_model(transformers.GPT2LMHeadModel(config), dora)
    ids = torch.randint(0, 40, (6, 10), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": ids, "labels": ids}]
    from landscape import next_token_cross_entropy

    with pytest.raises(ValueError, match="merge such adapters"):
        EmpiricalRisk(model, batches, next_token_cross_entropy)
    merged = model.merge_and_unload()
    for weight in merged.parameters():
        weight.requires_grad_()
    assert EmpiricalRisk(merged, batches, next_token_cross_entropy).loss() > 0


def test_kinks_flat_losses_and_parts_in_fewer_digits_are_taken() -> None:
    class Rms(nn.Module):
        """As Llama's: in float32, whatever comes."""

        def forward(self, z: Tensor) -> Tensor:
            z = z.float()
            return (z * (z.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).double()

    class Black(nn.Module):
        """ReLU at its kink: inputs and biases of zero."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
            nn.init.zeros_(self.first.bias)
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.second(self.first(x * (x > 9)).relu())
            return out

    for scale in (1.0, 300.0):  # also where losses and gradients are small
        net = Net(Rms())
        with torch.no_grad():
            net.second.bias.add_(scale * F.one_hot(torch.tensor(0), 3))
        with pytest.warns(UserWarning, match="computes in torch.float32"):
            assert EmpiricalRisk(net, [(X, 0 * Y)]).loss() >= 0
    with pytest.raises(ValueError, match="its gradient is not the derivative"), pytest.warns(UserWarning):
        risk_of(Net(nn.Sequential(Rms(), Reversed())))
    assert risk_of(Black()).loss() > 0
    flat = Net(lambda z: z)
    nn.init.zeros_(flat.second.weight)
    assert risk_of(flat, params=r"first\.").gradient().norm() == 0


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_transformers_whose_softmax_is_in_float32_are_taken(attention: str, scale: float) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=8, patch_size=2,
        num_channels=1, num_labels=10, attn_implementation=attention,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    with torch.no_grad():
        model.vit.layernorm.weight.mul_(scale)  # gradients of tens, which bend within a hundredth
    pixels = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for rows in (1, 8):
        risk = EmpiricalRisk(model, [{"pixel_values": pixels[:rows], "labels": torch.arange(8)[:rows]}])
        assert risk.gradient().norm() > 0


def test_it_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    risk = risk_of(Net(lambda z: z))
    monkeypatch.setattr("landscape.slopes._differing", lambda *arguments: pytest.fail("asked again"))
    check_gradient(risk)
    with pytest.raises(pytest.fail.Exception):
        risk_of(Net(lambda z: z))


class Force(nn.Module):
    """A network of the derivative of another in its inputs, which it takes in one of autograd's ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.energy = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 1))
        self.head, self.way = nn.Linear(6, 3), way
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        z = x.detach().requires_grad_()
        with torch.enable_grad():
            energy = self.energy(z).sum()
            if self.way == "backward":
                energy.backward(create_graph=True)
                force = z.grad
            elif self.way == "inputs":
                torch.autograd.backward(energy, inputs=[z], create_graph=True)
                force = z.grad
            else:
                (force,) = torch.autograd.grad(energy, z, create_graph=True)
            if self.way == "laplacian":
                rows = [torch.autograd.grad(force[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(6)]
                force = force + sum(rows)[:, None]  # type: ignore[index, operator]
        out: Tensor = self.head(force)
        return out


@pytest.mark.parametrize("way", ["backward", "inputs"])
def test_gradients_taken_inside_by_backward_are_no_part_of_ours(way: str) -> None:
    right, risk = risk_of(Force("grad")), risk_of(Force(way))
    torch.testing.assert_close(risk.gradient(), right.gradient(), rtol=1e-12, atol=1e-14)
    found, expected = (worst_case_sharpness(one, rho=0.3, seed=0) for one in (risk, right))
    assert found.rise == pytest.approx(expected.rise, rel=1e-10)
    v = torch.randn(risk.num_params, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if way == "inputs":
        torch.testing.assert_close(HessianOperator(risk).matvec(v), HessianOperator(right).matvec(v))


@pytest.mark.parametrize("budget", [2**30, 0])
def test_a_loss_of_second_derivatives_has_curvature(budget: int) -> None:
    risk = risk_of(Force("laplacian"))
    operator = HessianOperator(risk, graph_budget=budget)
    v = torch.randn(risk.num_params, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v, theta, step = v / v.norm(), risk.theta, 1e-5
    numeric = (risk.gradient(theta + step * v) - risk.gradient(theta - step * v)) / (2 * step)
    torch.testing.assert_close(operator.matvec(v), numeric, rtol=1e-5, atol=1e-8)


def test_forward_derivatives_inside_are_measured_without_kept_graphs() -> None:
    class Tangent(Net):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            out: Tensor = self.second(torch.func.jvp(torch.tanh, (hidden,), (torch.ones_like(hidden),))[1])
            return out

    risk = risk_of(Tangent(torch.tanh))
    v = torch.ones(risk.num_params, dtype=torch.float64)
    torch.testing.assert_close(
        HessianOperator(risk).matvec(v), HessianOperator(risk, graph_budget=0).matvec(v), rtol=1e-12, atol=1e-14
    )


def test_compiled_models_have_torchs_own_second_derivatives() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 3)).double()
    compiled = torch.compile(copy.deepcopy(plain), backend="eager")
    found, right = (lanczos(HessianOperator(risk_of(m), check=False), k=1, seed=0) for m in (compiled, plain))
    torch.testing.assert_close(found.eigenvalues, right.eigenvalues, rtol=1e-6, atol=0)


def test_biases_of_two_axes_are_added_as_torch_does() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.weight, self.bias = nn.Parameter(torch.randn(3, 64) / 8), nn.Parameter(torch.randn(1, 3))
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x.tanh(), self.weight, self.bias)

    x = torch.randn(300, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    risk = EmpiricalRisk(Wide(), [(x, torch.arange(300) % 3)])
    v = torch.ones(risk.num_params, dtype=torch.float64)
    numeric = (risk.gradient(risk.theta + 1e-5 * v) - risk.gradient(risk.theta - 1e-5 * v)) / 2e-5
    torch.testing.assert_close(HessianOperator(risk).matvec(v), numeric, rtol=1e-6, atol=1e-9)


def test_a_cache_of_parametrisations_hides_no_weights() -> None:
    class Symmetric(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return w.triu() + w.triu(1).T

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 3)).double()
    parametrize.register_parametrization(model[0], "weight", Symmetric())
    risk = risk_of(model)
    theta = risk.theta
    right = risk.loss(theta), risk.loss(theta + 1), float(risk.gradient(theta).norm())
    with parametrize.cached():
        model(X)
        assert (risk.loss(theta), risk.loss(theta + 1), float(risk.gradient(theta).norm())) == right
        assert parametrize._cache_enabled == 1


def test_threads_take_turns() -> None:
    torch.manual_seed(0)
    one, two = (nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.GELU(), nn.Linear(8, 3)).double() for _ in range(2))
    risks = [risk_of(one), risk_of(two)]
    operator = HessianOperator(risks[0])
    vectors = [torch.randn(risks[0].num_params, dtype=torch.float64) for _ in range(2)]
    right = [operator.matvec(v) for v in vectors]
    gradients = [risk.gradient() for risk in risks]
    wrong: list[int] = []

    def work(k: int) -> None:
        for _ in range(30):
            product, gradient = operator.matvec(vectors[k]), risks[k].gradient()
            if not (torch.allclose(product, right[k], rtol=1e-12) and torch.equal(gradient, gradients[k])):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert one.training and two.training
    assert torch.backends.mha.get_fastpath_enabled()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
