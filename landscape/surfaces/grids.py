"""The loss along a line and over a plane in weight space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from landscape.asking import expect_callable, expect_floating, expect_risk, expect_vector
from landscape.risk import EmpiricalRisk
from landscape.showing import Shown, axes_or_new
from landscape.surfaces.points import BatchNormMode, PointLosses

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class LossLine(Shown):
    r"""Losses along :math:`\theta+\alpha d`.

    Attributes:
        alphas: (a,) float64, in units of the direction.
        losses: (a,) float64; inf where the loss overflows or is not a number.
    """

    table: ClassVar[tuple[str, ...]] = ("alphas", "losses")
    curve: ClassVar[tuple[str, str] | None] = ("alphas", "losses")

    alphas: Tensor
    losses: Tensor


@dataclass(frozen=True, repr=False)
class LossSurface(Shown):
    r"""Losses over :math:`\theta+\alpha d_a+\beta d_b`.

    Attributes:
        alphas: (a,) float64, in units of the first direction.
        betas: (b,) float64, in units of the second.
        losses: (a, b) float64, a row per alpha; inf where the loss overflows or is not a number.
    """

    alphas: Tensor
    betas: Tensor
    losses: Tensor

    def plot(self, ax: Axes | None = None) -> Axes:
        """Filled contours of the loss."""
        if 1 in self.losses.shape:
            raise ValueError(
                f"a grid of {tuple(self.losses.shape)} has no contours; see to_frame(), or loss_line for one row"
            )
        ax = axes_or_new(ax)
        drawn = ax.contourf(self.alphas.tolist(), self.betas.tolist(), self.losses.T.tolist(), levels=20)
        ax.figure.colorbar(drawn, ax=ax, label="loss")
        ax.set_xlabel("alpha")
        ax.set_ylabel("beta")
        return ax

    def _columns(self) -> dict[str, list[float]]:
        alphas, betas = torch.meshgrid(self.alphas, self.betas, indexing="ij")
        parts = {"alpha": alphas, "beta": betas, "loss": self.losses}
        return {name: part.flatten().tolist() for name, part in parts.items()}


def loss_line(
    risk: EmpiricalRisk,
    direction: Tensor,
    alphas: Tensor | Sequence[float],
    *,
    centre: Tensor | None = None,
    batch_norm: BatchNormMode = "frozen",
    chunk: int | None = None,
) -> LossLine:
    r"""Loss :math:`L(\theta+\alpha d)` at every alpha (Goodfellow et al. 2015, arXiv 1412.6544).

    Args:
        risk: The mean loss over the data; its model is not written to.
        direction: d (n,), see `landscape.surfaces.directions`.
        alphas: (a,).
        centre: θ (n,); default the model's own weights.
        batch_norm: Whether batch statistics are ``frozen`` or ``recomputed`` at every point.
        chunk: Points evaluated together; see `landscape.surfaces.points.losses_at`.

    Returns:
        The losses; at alpha 0 that of the centre.

    Raises:
        ValueError: A vector is not finite or not of shape (n,), or an option is out of range.

    >>> model = torch.nn.Linear(1, 2, bias=False)
    >>> risk = EmpiricalRisk(model, [(torch.ones(1, 1), torch.tensor([0]))])
    >>> line = loss_line(risk, torch.tensor([1.0, -1.0]), [0.0, 1.0], centre=torch.zeros(2))
    >>> line.losses  # log 2 and log(1 + exp(-2))
    tensor([0.6931, 0.1269], dtype=torch.float64)
    """
    steps = _coordinates("alphas", alphas)
    losses = torch.full((len(steps), 1), torch.nan, dtype=torch.float64)
    plane = _Plane(risk, {"direction": direction}, centre)
    plane.fill(losses, steps[:, None], None, chunk, batch_norm)
    return LossLine(steps, losses[:, 0])


def loss_surface(
    risk: EmpiricalRisk,
    direction_a: Tensor,
    direction_b: Tensor,
    alphas: Tensor | Sequence[float],
    betas: Tensor | Sequence[float],
    *,
    centre: Tensor | None = None,
    partial: Tensor | None = None,
    on_chunk: Callable[[Tensor], None] | None = None,
    batch_norm: BatchNormMode = "frozen",
    chunk: int | None = None,
) -> LossSurface:
    r"""Loss :math:`L(\theta+\alpha d_a+\beta d_b)` on a grid (Li et al. 2018, arXiv 1712.09913, section 3).

    An interrupted grid goes on where it stopped: ``on_chunk`` hands out what is there so far, and ``partial`` takes it
    back. A finished point, an infinite one included, is not computed again.

    Args:
        risk: The mean loss over the data; its model is not written to.
        direction_a: (n,), see `landscape.surfaces.directions`.
        direction_b: (n,).
        alphas: (a,).
        betas: (b,).
        centre: θ (n,); default the model's own weights.
        partial: Losses (a, b) of an earlier call on the same grid, NaN where they are missing.
        on_chunk: Called with a copy of the losses (a, b), NaN where missing, after every chunk.
        batch_norm: Whether batch statistics are ``frozen`` or ``recomputed`` at every point.
        chunk: Points evaluated together; see `landscape.surfaces.points.losses_at`.

    Returns:
        The losses; at alpha = beta = 0 that of the centre.

    Raises:
        ValueError: A vector is not finite or not of shape (n,), ``partial`` is not of the grid's shape, or an
            option is out of range.

    >>> model = torch.nn.Linear(1, 2, bias=False)
    >>> risk = EmpiricalRisk(model, [(torch.ones(1, 1), torch.tensor([0]))])
    >>> up, down = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    >>> loss_surface(risk, up, down, [0.0], [0.0, 1.0], centre=torch.zeros(2)).losses  # log 2 and log(1 + e)
    tensor([[0.6931, 1.3133]], dtype=torch.float64)
    """
    rows, columns = _coordinates("alphas", alphas), _coordinates("betas", betas)
    expect_callable("on_chunk", on_chunk)
    shape = (len(rows), len(columns))
    if partial is not None:
        expect_floating("partial", partial)
        if partial.shape != shape:
            raise ValueError(f"partial: expected the grid's shape {shape}, got {tuple(partial.shape)}; start afresh")
    plane = _Plane(risk, {"direction_a": direction_a, "direction_b": direction_b}, centre)
    if partial is None:
        losses = torch.full(shape, torch.nan, dtype=torch.float64)
    else:
        losses = partial.detach().cpu().to(torch.float64, copy=True)
    plane.fill(losses, torch.cartesian_prod(rows, columns), on_chunk, chunk, batch_norm)
    return LossSurface(rows, columns, losses)


class _Plane:
    """A centre and one or two directions."""

    def __init__(self, risk: EmpiricalRisk, directions: dict[str, Tensor], centre: Tensor | None) -> None:
        expect_risk(risk)
        self.risk = risk
        self.centre = risk.theta if centre is None else _vector("centre", centre, risk)
        self.directions = torch.stack([_vector(name, vector, risk) for name, vector in directions.items()])

    def fill(
        self,
        losses: Tensor,
        coordinates: Tensor,
        on_chunk: Callable[[Tensor], None] | None,
        chunk: int | None,
        batch_norm: BatchNormMode,
    ) -> None:
        """Replace every NaN in ``losses`` by the loss at its row of ``coordinates`` (points, directions)."""
        flat = losses.view(-1)
        missing = flat.isnan().nonzero()[:, 0]
        if len(missing) == 0:
            return
        evaluate = PointLosses(self.risk, chunk=chunk, batch_norm=batch_norm)
        for indices in missing.split(evaluate.chunk):
            offsets = coordinates[indices].to(self.centre) @ self.directions
            flat[indices] = evaluate(self.centre + offsets)
            if on_chunk is not None:
                on_chunk(losses.clone())


def _vector(name: str, vector: Tensor, risk: EmpiricalRisk) -> Tensor:
    expect_vector(name, vector, risk.num_params)
    if not bool(torch.isfinite(vector).all()):
        raise ValueError(f"{name}: expected finite entries, got inf or nan")
    return vector.detach().to(risk.device, risk.dtype)


def _coordinates(name: str, values: Tensor | Sequence[float]) -> Tensor:
    try:
        tensor = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: expected a non-empty list of finite numbers, got {values!r}") from error
    if tensor.dim() != 1 or len(tensor) == 0 or not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name}: expected a non-empty list of finite numbers, got {values!r}")
    return tensor.clone()
