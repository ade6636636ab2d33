"""Average-case sharpness against traces, and m-sharpness against chunks written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from landscape import EmpiricalRisk, average_sharpness, losses_at, m_sharpness
from tests.landscape.conftest import ENCODER, Quadratic, tiny_vit
from tests.reference import dense_hessian


def quadratic_risk(eigenvalues: list[float], slope: float = 1.0) -> tuple[EmpiricalRisk, Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = len(eigenvalues)
    rotation, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    hessian = rotation @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ rotation.T
    gradient = slope * torch.randn(size, generator=generator, dtype=torch.float64)
    batches = [(torch.zeros(3, 1, dtype=torch.float64), torch.zeros(3))]
    return EmpiricalRisk(Quadratic(gradient, hessian), batches, loss=lambda out, _: out), hessian


MIXED = [9.0, 3.0, 1.0, 0.5, -1.0, -4.0]


def test_a_quadratic_rises_by_half_its_trace_and_the_error_bars_cover_it() -> None:
    risk, hessian = quadratic_risk(MIXED)
    exact = 0.5 * 0.3**2 * float(hessian.trace())
    large = average_sharpness(risk, 0.3, num_samples=1000)
    assert abs(large.rise - exact) < 4 * large.stderr
    # A sample is ½ sigma² zᵀHz, whose variance is ½ sigma⁴ ‖H‖².
    assert large.stderr == pytest.approx(0.3**2 * float(hessian.norm()) / math.sqrt(2 * 1000), rel=0.15)
    runs = [average_sharpness(risk, 0.3, num_samples=30, seed=seed) for seed in range(200)]
    covered = sum(abs(run.rise - exact) < 2 * run.stderr for run in runs)
    assert 0.88 * 200 <= covered <= 0.99 * 200  # two standard errors: 94.5 % with 30 normal samples


def test_the_gradient_cancels_in_every_pair() -> None:
    flat, _ = quadratic_risk(MIXED, slope=0.0)
    steep, _ = quadratic_risk(MIXED, slope=1e3)
    ours = average_sharpness(steep, 0.1, num_samples=5, seed=3)
    torch.testing.assert_close(ours.samples, average_sharpness(flat, 0.1, num_samples=5, seed=3).samples)
    assert ours.samples.shape == (5,) and ours.num_passes == 11
    assert ours.rise == pytest.approx(float(ours.samples.mean()))


def test_inside_a_subspace_it_is_the_trace_of_the_restricted_hessian() -> None:
    risk, hessian = quadratic_risk(MIXED)
    basis, _ = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64))
    result = average_sharpness(risk, 1.0, num_samples=1000, subspace=basis)
    assert abs(result.rise - 0.5 * float((basis.T @ hessian @ basis).trace())) < 4 * result.stderr


class Norms(nn.Module):
    """Loss ½‖kernel‖² + ½‖W‖² + 500‖b‖² for every example."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(2, 3, 2, 2, dtype=torch.float64))
        self.weight = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 10.0]], dtype=torch.float64))
        self.bias = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        squares = [parameter.square().sum() for parameter in (self.kernel, self.weight, self.bias)]
        return (0.5 * squares[0] + 0.5 * squares[1] + 500 * squares[2]).expand(len(inputs))


def test_filter_noise_follows_the_size_of_each_row_and_spares_biases() -> None:
    model = Norms()
    risk = EmpiricalRisk(model, [(torch.zeros(2, 1), torch.zeros(2))], loss=lambda out, _: out)
    kernel, weight = model.kernel.detach(), model.weight.detach()
    exact = 0.5 * 0.2**2 * float(kernel.square().sum() + weight.square().sum())
    result = average_sharpness(risk, 0.2, num_samples=2000, scale="filter")
    assert abs(result.rise - exact) < 4 * result.stderr
    assert result.stderr < 0.05 * exact
    # The variance of ½ sigma² ‖w‖² z²/d, summed over the d entries of a row w and over rows, is ½ sigma⁴ Σ‖w‖⁴/d.
    fourth = kernel.flatten(1).square().sum(1).square().sum() / 12 + (25.0**2 + 100.0**2) / 2
    assert result.stderr == pytest.approx(0.2**2 * math.sqrt(float(fourth) / 2 / 2000), rel=0.15)


def test_on_a_transformer_small_noise_sees_the_trace(digit_batches: list[dict[str, Tensor]]) -> None:
    model = tiny_vit()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    risk = EmpiricalRisk(model, digit_batches, params=r"layers\.1\..*v_proj\.weight$", dtype=torch.float64)

    def mean_loss(theta: Tensor) -> Tensor:
        parameters = risk.layout.split(theta)
        return torch.cat([risk.batch_losses(batch, parameters) for batch in risk.batches]).mean()

    trace = float(dense_hessian(mean_loss, risk.theta).trace())
    result = average_sharpness(risk, 1e-3, num_samples=100)
    assert abs(result.rise - 0.5e-6 * trace) < 4 * result.stderr
    assert result.loss == pytest.approx(risk.loss())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert average_sharpness(risk, 0.1, seed=1).rise == average_sharpness(risk, 0.1, seed=1).rise
    still = average_sharpness(risk, 0.0)
    assert still.rise == 0 and still.stderr == 0


def test_bad_noise() -> None:
    risk, _ = quadratic_risk(MIXED)
    for sigma in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="sigma: expected a finite"):
            average_sharpness(risk, sigma)
    with pytest.raises(ValueError, match="num_samples"):
        average_sharpness(risk, 0.1, num_samples=1)
    with pytest.raises(ValueError, match="scale"):
        average_sharpness(risk, 0.1, scale="layer")  # type: ignore[arg-type]
    nothing = [(torch.full((2, 1), math.nan), torch.zeros(2))]
    broken = EmpiricalRisk(nn.Linear(1, 1), nothing, lambda out, _: out[:, 0], check=False)
    with pytest.raises(FloatingPointError, match="without noise"):
        average_sharpness(broken, 0.1)


def linear_risk(inputs: Tensor, sizes: list[int]) -> EmpiricalRisk:
    """Loss xᵀw of each example: the rise of a chunk is rho times the norm of its mean input."""
    model = nn.Linear(inputs.shape[1], 1, bias=False, dtype=torch.float64)
    batches = [(part, torch.zeros(len(part))) for part in inputs.split(sizes)]
    return EmpiricalRisk(model, batches, loss=lambda out, _: out[:, 0])


def test_chunks_of_a_linear_loss_rise_by_the_norm_of_their_mean() -> None:
    inputs = torch.randn(7, 3, dtype=torch.float64)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(5))
    expected = torch.stack([0.2 * chunk.mean(0).norm() for chunk in inputs[order].split(3)])
    result = m_sharpness(linear_risk(inputs, [4, 3]), 0.2, m=3, seed=5)
    torch.testing.assert_close(result.rises, expected)
    assert result.chunk_sizes == (3, 3, 1)
    assert result.rise == pytest.approx(float(3 * expected[0] + 3 * expected[1] + expected[2]) / 7)
    pairs = m_sharpness(linear_risk(inputs[:6], [6]), 0.2, m=2)
    assert pairs.stderr == pytest.approx(float(pairs.rises.std()) / math.sqrt(3))
    rises = [m_sharpness(linear_risk(inputs[:4], [4]), 0.2, m=m).rise for m in (1, 2, 4)]
    assert rises == sorted(rises, reverse=True)  # the mean of norms is at least the norm of the mean


def test_batch_sizes_do_not_matter() -> None:
    inputs = torch.randn(9, 3, dtype=torch.float64)
    torch.manual_seed(1)
    whole = linear_risk(inputs, [9])
    torch.manual_seed(1)
    split = linear_risk(inputs, [2, 6, 1])
    torch.testing.assert_close(m_sharpness(whole, 0.1, m=4).rises, m_sharpness(split, 0.1, m=4).rises)


def step_along_the_gradient(risk: EmpiricalRisk, rho: float = 0.05) -> float:
    gradient = risk.gradient()
    return float(losses_at(risk, (risk.theta + rho * gradient / gradient.norm())[None])[0]) - risk.loss()


def test_on_a_transformer_from_one_example_to_the_whole_set(digit_batches: list[dict[str, Tensor]]) -> None:
    model = tiny_vit()
    risk = EmpiricalRisk(model, digit_batches, params=ENCODER)
    whole = m_sharpness(risk, 0.05, m=30)
    assert whole.rise == pytest.approx(step_along_the_gradient(risk), rel=1e-3)
    assert math.isnan(whole.stderr)
    by_hand = []
    for batch in digit_batches:
        for index in range(len(batch["labels"])):
            one = EmpiricalRisk(model, [{key: part[index : index + 1] for key, part in batch.items()}], params=ENCODER)
            by_hand.append(step_along_the_gradient(one))
    single = m_sharpness(risk, 0.05, m=1)
    assert single.rise == pytest.approx(sum(by_hand) / 30, rel=1e-4)
    assert single.rise > whole.rise
    assert m_sharpness(risk, 0.0, m=8).rise == 0


class MeanToken(nn.Module):
    """Loss: the mean of an embedding over the valid tokens of each example."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(10, dtype=torch.float64))

    def forward(self, tokens: Tensor, mask: Tensor, scale: float) -> Tensor:
        return scale * (self.embedding[tokens] * mask).sum(1) / mask.sum(1)


def test_batches_padded_to_different_lengths_share_chunks() -> None:
    short = {"tokens": torch.tensor([[1, 2], [3, 0]]), "mask": torch.tensor([[1, 1], [1, 0]])}
    long = {"tokens": torch.tensor([[4, 5, 6]]), "mask": torch.tensor([[1, 1, 1]])}
    batches = [{**batch, "scale": 3.0, "labels": torch.zeros(len(batch["mask"]))} for batch in (short, long)]
    risk = EmpiricalRisk(MeanToken(), batches, loss=lambda out, _: out)
    whole = m_sharpness(risk, 0.1, m=3)
    gradient = torch.zeros(10, dtype=torch.float64)
    gradient[1:7] = torch.tensor([0.5, 0.5, 1, 1 / 3, 1 / 3, 1 / 3])  # scale 3 over 3 examples
    assert whole.rise == pytest.approx(0.1 * float(gradient.norm()))
    single = m_sharpness(risk, 0.1, m=1)
    assert single.rise == pytest.approx(0.1 * (math.sqrt(0.5) + 1 + math.sqrt(1 / 3)))


def test_bad_chunks() -> None:
    risk = linear_risk(torch.randn(4, 3, dtype=torch.float64), [4])
    for m in (0, 5):
        with pytest.raises(ValueError, match="m: expected 1 <= m <= N = 4"):
            m_sharpness(risk, 0.1, m=m)
    for rho in (-1.0, math.nan):
        with pytest.raises(ValueError, match="rho: expected a finite radius"):
            m_sharpness(risk, rho, m=2)
    shared = {"tokens": torch.zeros(2, 3, dtype=torch.long), "mask": torch.ones(1, 3), "scale": 1.0}
    ragged = EmpiricalRisk(MeanToken(), [shared | {"labels": torch.zeros(2)}], loss=lambda out, _: out)
    with pytest.raises(ValueError, match="batches: expected 2 rows"):
        m_sharpness(ragged, 0.1, m=1)
