"""What the search for the worst case returns: the largest rise, how far two searches differ, and who carries it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from landscape.showing import Shown, axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class OwnWorstCases(Shown):
    r"""Worst cases of single examples, each in the ball for itself: sharpness that no few examples can carry alone.

    Their mean is m-sharpness at m = 1 (Foret et al. 2021, section 4.1) with an ascent in place of one step. Examples
    none of whose labels count are left out.

    Attributes:
        examples: (m,) numbers of the examples in the sample, ascending.
        rises: (m,) float64, largest rise of each one's own loss that was met, in nats; lower bounds.
        weights: (m,) float64, weights of the examples in the mean loss.
    """

    table: ClassVar[tuple[str, ...]] = ("examples", "rises", "weights")

    examples: Tensor
    rises: Tensor
    weights: Tensor

    @property
    def mean(self) -> float:
        """Weighted mean over the sample; NaN for an empty one."""
        return _sum(self.weights * self.rises) / _sum(self.weights) if _sum(self.weights) > 0 else math.nan

    @property
    def stderr(self) -> float:
        """Standard error of the mean, from the spread over the sample; NaN for fewer than two examples."""
        count = len(self.rises)
        if count < 2:
            return math.nan
        shares = self.weights / _sum(self.weights)
        return math.sqrt(_sum((shares * (self.rises - self.mean)).square()) * count / (count - 1))


@dataclass(frozen=True, repr=False)
class SharpnessResult(Shown):
    r"""Largest loss found in a ball by two independent searches; a lower bound of the true maximum.

    Attributes:
        rho: Radius of the ball, in the units of the weights (of the weights' own sizes for an adaptive ball).
        loss: :math:`L(\theta)`.
        worst_loss: Largest :math:`L(\theta+\epsilon)` that was met; infinite if a loss overflowed.
        epsilon: (n,) where it was met.
        search_losses: Largest loss that each of the two searches met.
        agreement: Gap up to which the searches count as agreeing.
        winner: Name of the start from which it was reached; ``centre`` if no start rose above the centre.
        one_step_loss: Loss at SAM's point, where the linearised loss is largest in the ball.
        start_losses: Largest loss reached from each start, by name.
        example_rises: (N,) float64 :math:`\ell_i(\theta+\epsilon)-\ell_i(\theta)` of all examples, those of other
            processes included.
        example_weights: (N,) float64, their weights in the mean; they sum to 1.
        own: Worst cases of single examples that the searches' screens met.
        num_passes: Forward-backward passes over the data, both searches together; one over a part of the data counts as
            its share, a forward pass as a third. Rounded up.
    """

    rho: float
    loss: float
    worst_loss: float
    epsilon: Tensor
    search_losses: tuple[float, float]
    agreement: float
    winner: str
    one_step_loss: float
    start_losses: Mapping[str, float]
    example_rises: Tensor
    example_weights: Tensor
    own: OwnWorstCases
    num_passes: int

    @property
    def rise(self) -> float:
        """Worst-case loss rise, at least 0: the centre belongs to the ball."""
        return self.worst_loss - self.loss

    @property
    def search_rises(self) -> tuple[float, float]:
        """Rise that each of the two searches found."""
        first, second = self.search_losses
        return first - self.loss, second - self.loss

    @property
    def gap(self) -> float:
        """How far the poorer search fell behind the best rise known, as a share of it: the search error, 0 to 1."""
        return search_gap(self.search_rises, self.rise)

    @property
    def converged(self) -> bool:
        """Whether both searches came within ``agreement`` of the best rise known."""
        return self.gap <= self.agreement

    @property
    def one_step_rise(self) -> float:
        """Rise at SAM's one-step point; may be negative."""
        return self.one_step_loss - self.loss

    @property
    def contributions(self) -> Tensor:
        """(N,) float64 part of the rise that each example contributes; they sum to the rise."""
        return self.example_weights * self.example_rises

    @property
    def effective_examples(self) -> float:
        r"""Participation ratio :math:`(\sum c_i)^2/\sum c_i^2` of the contributions: 1 if one example carries the rise.

        NaN without a finite rise.
        """
        squares = _sum(self.contributions.square())
        return self.rise**2 / squares if 0 < squares < math.inf else math.nan

    def carried_by(self, count: int) -> float:
        """Share of the rise that the ``count`` most affected examples carry; NaN without a finite rise.

        It exceeds 1 where the loss of other examples falls.
        """
        if not 0 < self.rise < math.inf:
            return math.nan
        return _sum(self.contributions.topk(min(count, len(self.contributions))).values) / self.rise

    def plot(self, ax: Axes | None = None) -> Axes:
        """What the most affected examples contribute to the rise, running total over their rank."""
        ax = axes_or_new(ax)
        total = self.contributions.sort(descending=True).values.cumsum(0)
        ax.plot(range(1, len(total) + 1), total.tolist())
        ax.axhline(self.rise, ls=":", color="0.5")
        ax.set_xlabel("examples, the most affected first")
        ax.set_ylabel("rise that they carry")
        return ax

    def _columns(self) -> dict[str, list[float | int | str]]:
        numbers: dict[str, float | int | str] = {
            "rho": self.rho,
            "loss": self.loss,
            "rise": self.rise,
            "gap": self.gap,
            "converged": self.converged,
            "effective_examples": self.effective_examples,
            "one_step_rise": self.one_step_rise,
            "num_passes": self.num_passes,
            "winner": self.winner,
        }
        return {name: [value] for name, value in numbers.items()}

    def __repr__(self) -> str:
        state = "agree" if self.converged else "DISAGREE"
        return (
            f"SharpnessResult(rho={self.rho:g}, rise={self.rise:.4g}, searches {state} to {self.gap:.1%}, "
            f"effective_examples={self.effective_examples:.3g}, num_passes={self.num_passes})"
        )


def _sum(values: Tensor) -> float:
    """The exact sum, rounded once: a sum of torch's depends on where in memory the numbers lie."""
    return math.fsum(values.tolist())


def search_gap(rises: tuple[float, float], best: float) -> float:
    """How far the smaller of two rises lies below the best one known, as a share of it."""
    poorer = min(rises)
    if best <= 0 or poorer == best:
        return 0.0
    return 1.0 if math.isinf(best) else 1 - max(poorer, 0.0) / best
