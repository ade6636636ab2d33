"""Average-case sharpness: the mean loss rise under random noise, and SAM's rise on small chunks of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar, Literal

import torch
from torch import Tensor

from landscape.asking import expect_count, expect_number, expect_risk, expect_seed, seeded
from landscape.evaluation import expect_gradients
from landscape.examples import can_take_examples, has_rows, take_examples
from landscape.params import Layout
from landscape.risk import EmpiricalRisk
from landscape.showing import Shown
from landscape.subspaces import Subspace, space_of

Scale = Literal["isotropic", "filter"]


@dataclass(frozen=True, repr=False)
class AverageSharpnessResult(Shown):
    r"""Estimate of :math:`\mathbb{E}\,L(\theta+\epsilon) - L(\theta)` under Gaussian noise.

    Attributes:
        sigma: Size of the noise; per weight (``isotropic``) or relative to the weights (``filter``).
        loss: :math:`L(\theta)`.
        rise: Mean of ``samples``.
        stderr: Standard error of ``rise``, from the spread of ``samples``, and the rounding of the loss, which all of
            them share; infinite where the loss overflows in one.
        samples: (num_samples,) float64, each the mean rise of one pair of opposite perturbations.
        num_passes: Forward passes over the data.
    """

    sigma: float
    loss: float
    rise: float
    stderr: float
    samples: Tensor
    num_passes: int


@dataclass(frozen=True, repr=False)
class MSharpnessResult(Shown):
    """Mean one-step rise over chunks of the data.

    Attributes:
        rho: Radius of the step.
        m: Examples in a chunk; the last one may be smaller.
        rise: Mean of ``rises``, each weighted as its examples are in the mean loss.
        stderr: Standard error of ``rise``, from the spread over chunks, and the rounding of the loss; NaN for a single
            chunk, infinite where a loss overflows.
        rises: (chunks,) float64, the rise of each chunk's own loss.
        chunk_sizes: Examples in each chunk; one none of whose labels counts is left out.
    """

    table: ClassVar[tuple[str, ...]] = ("rises", "chunk_sizes")

    rho: float
    m: int
    rise: float
    stderr: float
    rises: Tensor
    chunk_sizes: tuple[int, ...]


def average_sharpness(
    risk: EmpiricalRisk,
    sigma: float,
    *,
    num_samples: int = 20,
    scale: Scale = "isotropic",
    subspace: Subspace | Tensor | None = None,
    seed: int = 0,
) -> AverageSharpnessResult:
    r"""Estimate :math:`\mathbb{E}_z\,L(\theta+\sigma z) - L(\theta)` with z standard normal.

    One sample is the mean over the pair (z, −z), in which every odd order cancels: the gradient adds no variance, and
    for a quadratic loss a sample is :math:`\frac{\sigma^2}{2}z^\top Hz` with mean
    :math:`\frac{\sigma^2}{2}\mathrm{tr}\,H`, the Gaussian trace estimator (Avron and Toledo 2011, J. ACM 58(2)).
    The pair counts once in the standard error.

    Args:
        risk: The mean loss over the data.
        sigma: Standard deviation of the noise, at least 0. With ``isotropic`` per weight and in its units, so
            :math:`\mathbb{E}\|\epsilon\|^2=\sigma^2 n`; with ``filter`` a share of the weights' own size.
        num_samples: Pairs, at least 2; each costs two forward passes.
        scale: ``filter`` gives row w of a tensor (all but the first axis flattened) the standard deviation
            :math:`\sigma\|w\|/\sqrt{\dim w}`, so :math:`\mathbb{E}\|\epsilon_w\|^2=\sigma^2\|w\|^2` (after Li et al.
            2018, section 4); tensors with fewer than two axes (biases, norms) get no noise.
        subspace: Directions allowed: an orthonormal basis (n, k) or an object with ``project``, applied to the scaled
            noise. Default: all.
        seed: Seed of the noise.

    Returns:
        The mean rise, which may be negative, with its standard error.

    Raises:
        ValueError: sigma is negative or not finite, there are fewer than 2 samples, or the scale is unknown.
        FloatingPointError: The loss is not finite without noise, or not a number with it.

    >>> model = torch.nn.Linear(3, 1)
    >>> batches = [(torch.ones(4, 3), torch.zeros(4))]
    >>> square = EmpiricalRisk(model, batches, loss=lambda outputs, batch: outputs[:, 0] ** 2)
    >>> result = average_sharpness(square, 0.1, num_samples=200)
    >>> abs(result.rise - 0.01 * 4) < 4 * result.stderr  # H = 2aaᵀ with a = (1, 1, 1, 1)
    True
    """
    expect_risk(risk)
    expect_number("sigma", sigma)
    if not (sigma >= 0 and math.isfinite(sigma)):
        raise ValueError(f"sigma: expected a finite standard deviation >= 0, got {sigma}")
    expect_count("num_samples", num_samples, least=2)  # for a standard error
    expect_seed(seed)
    if scale not in ("isotropic", "filter"):
        raise ValueError(f"scale: expected 'isotropic' or 'filter', got {scale!r}")
    theta, loss = risk.theta, risk.loss()
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss without noise is {loss}: nothing to compare")
    space = None if subspace is None else space_of(subspace)
    unit = torch.ones_like(theta) if scale == "isotropic" else _filter_scale(theta, risk.layout)
    generator = seeded(seed)
    rises = []
    for _ in range(num_samples):
        z = torch.randn(risk.num_params, dtype=torch.float64, generator=generator).to(theta)
        epsilon = sigma * unit * z
        epsilon = epsilon if space is None else space.project(epsilon)
        rises.append((risk.loss(theta + epsilon) + risk.loss(theta - epsilon)) / 2 - loss)
    samples = _numbers("sample", rises)
    stderr = float(samples.std()) / math.sqrt(num_samples) if bool(samples.isfinite().all()) else math.inf
    stderr += _rounding(risk, loss) if sigma > 0 else 0.0
    return AverageSharpnessResult(sigma, loss, float(samples.mean()), stderr, samples, 1 + 2 * num_samples)


def m_sharpness(risk: EmpiricalRisk, rho: float, *, m: int, seed: int = 0) -> MSharpnessResult:
    r"""Mean over chunks C of m examples of SAM's rise :math:`L_C(\theta+\rho\,g_C/\|g_C\|) - L_C(\theta)`.

    Each chunk steps along the gradient of its own loss (Foret et al. 2021, section 4.1; Andriushchenko and Flammarion
    2022, arXiv 2206.06232): at m = N the one-step rise of the whole loss, at m = 1 that of each example.

    Args:
        risk: The mean loss over the data; its examples are shuffled into chunks, its batch sizes do not matter.
        rho: Radius, in the units of the weights, at least 0.
        m: Examples in a chunk, between 1 and N; over all ranks of a process group, as N is.
        seed: Seed of the shuffle.

    Returns:
        The mean rise, chunks weighted as their examples are in the mean loss, with its standard error over chunks.

    Raises:
        ValueError: rho is negative or not finite, m is not between 1 and N, or a tensor of a batch does not have
            one row per example.
        FloatingPointError: A loss is not a number.

    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> batches = [(torch.tensor([[3.0, 4.0], [-3.0, -4.0]]), torch.zeros(2))]
    >>> linear = EmpiricalRisk(model, batches, loss=lambda outputs, batch: outputs[:, 0])
    >>> round(m_sharpness(linear, 0.1, m=1).rise, 6), round(m_sharpness(linear, 0.1, m=2).rise, 6)
    (0.5, 0.0)
    """
    expect_risk(risk)
    expect_gradients()
    expect_number("rho", rho)
    if not (rho >= 0 and math.isfinite(rho)):
        raise ValueError(f"rho: expected a finite radius >= 0, got {rho}")
    counts = risk.ranks.counts(risk.num_examples)
    if not isinstance(m, Integral) or isinstance(m, bool) or not 1 <= m <= sum(counts):
        raise ValueError(f"m: expected 1 <= m <= N = {sum(counts)} examples, got {m}")
    if has_rows(risk) and not can_take_examples(risk):
        raise ValueError(
            "batches: expected examples on the first axis of every tensor, whose losses do not depend on the rows "
            "beside them, so that chunks can be formed; two of them have other losses alone"
        )
    theta = risk.theta
    order = torch.randperm(sum(counts), generator=seeded(seed))
    first = sum(counts[: risk.ranks.number])
    rises, sizes, weights, centre = [], [], [], 0.0
    for chosen in order.split(int(m)):
        mine = chosen[(chosen >= first) & (chosen < first + risk.num_examples)] - first
        weight = float(risk.ranks.all_sum(risk.example_weights[mine.to(risk.device)].double().sum()))
        if not weight > 0:
            continue  # none of its labels counts
        chunk = risk.on(take_examples(risk, mine), check=False)
        chunk.expect_used = False  # its examples may use other weights, another expert's say
        gradient = chunk.gradient(theta)
        norm = float(gradient.double().norm())
        epsilon = gradient * (rho / norm) if norm > 0 else torch.zeros_like(gradient)
        loss = chunk.loss(theta)
        rises.append(chunk.loss(theta + epsilon) - loss)
        sizes.append(len(chosen))
        weights.append(weight)
        centre = max(centre, abs(loss))
    per_chunk = _numbers("chunk", rises)
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    rise = float(shares @ per_chunk)
    count = len(sizes)
    # With equal shares this is the standard deviation over the square root of the number of chunks.
    spread = float((shares * (per_chunk - rise)).square().sum()) if math.isfinite(rise) else math.inf
    stderr = math.sqrt(spread * count / (count - 1)) + _rounding(risk, centre) * (rho > 0) if count > 1 else math.nan
    return MSharpnessResult(rho, m, rise, stderr, per_chunk, tuple(sizes))


def _rounding(risk: EmpiricalRisk, loss: float) -> float:
    """What the rounding of a loss of this size may add to a difference of two, however many samples are averaged."""
    return torch.finfo(risk.dtype).eps * abs(loss)


def _numbers(what: str, rises: Sequence[float]) -> Tensor:
    """The rises (m,) float64, infinite ones among them.

    Raises:
        FloatingPointError: One is not a number.
    """
    for index, rise in enumerate(rises):
        if math.isnan(rise):
            raise FloatingPointError(f"the rise of {what} {index} is not a number: the loss is not one there")
    return torch.tensor(rises, dtype=torch.float64)


def _filter_scale(theta: Tensor, layout: Layout) -> Tensor:
    """Root mean square of each weight's filter (n,); 0 for tensors with fewer than two axes."""
    scales = layout.split(torch.zeros_like(theta))
    for name, norms in layout.filter_norms(theta).items():
        if norms.numel():
            scales[name] = (norms / math.sqrt(norms.numel() / layout.num_filters(name))).to(theta.dtype)
    return layout.join(scales)
