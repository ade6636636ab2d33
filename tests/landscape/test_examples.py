"""Examples taken out of batches of every form, and each one's own gradient against autograd on it alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from landscape import EmpiricalRisk, m_sharpness, worst_case_sharpness
from landscape.examples import can_take_examples, own_gradients, take_examples

X = torch.linspace(-1, 1, 7 * 3, dtype=torch.float64).view(7, 3).sin()
Y = torch.tensor([0, 1, 2, 0, 1, 2, 0])


class Net(nn.Module):
    """Takes a tensor, or the same as the mapping's entry ``x``."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(3, 3, dtype=torch.float64, generator=generator))

    def forward(self, *inputs: Tensor, x: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        return (inputs[0] if x is None else x).tanh() @ self.w


class Refused(Net):
    """Reads a value out of a tensor, which vmap refuses."""

    def forward(self, *inputs: Tensor, x: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        scale = 2.0 if float(self.w.detach().sum()) > 1e9 else 1.0
        return scale * super().forward(*inputs, x=x, labels=labels)


def risk_of(form: Callable[[Tensor, Tensor], Any], model: nn.Module | None = None) -> EmpiricalRisk:
    """Batches of 4 and 3 in one of the forms that a risk takes."""
    return EmpiricalRisk(model or Net(), [form(x, y) for x, y in zip(X.split(4), Y.split(4), strict=True)])


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "pair": lambda x, y: (x, y),
    "mapping": lambda x, y: {"x": x, "labels": y},
    "mapping and targets": lambda x, y: ({"x": x}, y),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_taken_examples_have_their_losses_in_batches_no_larger_than_before(form: Callable[..., Any]) -> None:
    risk, chosen = risk_of(form), torch.tensor([6, 0, 3, 4, 5])
    assert can_take_examples(risk)
    taken = risk.on(take_examples(risk, chosen))
    assert max(taken.batch_sizes) <= 4 and taken.num_examples == 5
    whole = risk.per_example_losses()
    torch.testing.assert_close(taken.per_example_losses().sort().values, whole[chosen].sort().values)


@pytest.mark.parametrize("model", [Net, Refused])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_own_gradients_are_autograds_on_one_example(form: Callable[..., Any], model: type[nn.Module]) -> None:
    risk, chosen = risk_of(form, model()), torch.tensor([5, 1, 6])
    points = risk.theta + 0.1 * torch.arange(3, dtype=torch.float64)[:, None]
    seen = []
    for places, gradient_at in own_gradients(risk, chosen):
        losses, gradients = gradient_at(points[places])
        for place, loss, gradient in zip(places.tolist(), losses, gradients, strict=True):
            w = points[place].view(3, 3).clone().requires_grad_()
            i = int(chosen[place])
            expected = nn.functional.cross_entropy(X[i : i + 1].tanh() @ w, Y[i : i + 1])
            torch.testing.assert_close(loss, expected.detach())
            torch.testing.assert_close(gradient, torch.autograd.grad(expected, w)[0].flatten())
            seen.append(place)
    assert sorted(seen) == [0, 1, 2]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_sharpness_does_not_depend_on_the_form_of_the_batches(form: Callable[..., Any]) -> None:
    plain, other = risk_of(FORMS["pair"]), risk_of(form)
    assert m_sharpness(other, 0.1, m=2).rise == pytest.approx(m_sharpness(plain, 0.1, m=2).rise)
    found, expected = (worst_case_sharpness(risk, 0.3, restarts=2) for risk in (other, plain))
    assert found.rise == pytest.approx(expected.rise) and found.own.mean == pytest.approx(expected.own.mean)


def test_padding_of_other_lengths_stays_apart() -> None:
    """Rows of batches padded to 3 and to 5 columns cannot be put together."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.w * inputs.sum(dim=1)

    batches = [(torch.ones(4, 3), torch.zeros(4)), (torch.ones(2, 5), torch.zeros(2))]
    risk = EmpiricalRisk(Sum(), batches, loss=lambda out, _: out)
    taken = risk.on(take_examples(risk, torch.tensor([5, 0, 1, 4])))
    assert sorted(taken.per_example_losses().tolist()) == [3.0, 3.0, 5.0, 5.0]


def test_a_tensor_without_a_row_per_example_is_refused() -> None:
    risk = EmpiricalRisk(Net(), [(X, torch.zeros(2))], loss=lambda out, _: out[:, 0])
    assert not can_take_examples(risk)
    with pytest.raises(ValueError, match="one per example"):
        take_examples(risk, torch.tensor([0]))
