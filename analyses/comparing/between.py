"""What lies between minima: distances, the straight line, a curve of low loss, and the plane through all of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from analyses.measures.minima import Rows
from landscape import EmpiricalRisk, LossPath, bezier_path, linear_path, loss_surface, trajectory_plane
from landscape.surfaces.points import BatchNormMode

_MARGIN = 0.25
"""Of the plane around the minima, as a share of their spread."""
_CURVE_RATE = 0.02
"""Adam's learning rate for a curve, as a share of the minima's root-mean-square distance in one weight."""


@dataclass(frozen=True)
class Between:
    """Minima as points of one space, the weights in which any two of them differ.

    Attributes:
        risk: Loss over those weights.
        points: (n,) by name.
        batch_norm: What becomes of batch statistics at points between minima.
        seed: Of what is drawn.
    """

    risk: EmpiricalRisk
    points: Mapping[str, Tensor]
    batch_norm: BatchNormMode
    seed: int

    def pairs(self) -> Iterator[tuple[str, str]]:
        """All pairs, in an order that does not depend on that of the names."""
        yield from itertools.combinations(sorted(self.points), 2)

    def pair(self, a: str, b: str, *, num_points: int, curve_steps: int) -> Rows:
        """Distance, the losses along the straight line and along a trained curve, and the barriers on both.

        Barriers are lower bounds: the largest over evenly spaced points.
        """
        first, second = self.points[a], self.points[b]
        fixed: dict[str, Any] = {"method": a, "other": b}
        distance = float((second.double() - first.double()).norm())
        norms = math.sqrt(float(first.double().norm()) * float(second.double().norm()))
        yield fixed | {"measure": "distance", "value": distance}
        yield fixed | {"measure": "relative_distance", "value": distance / norms if norms else math.nan}
        for name, path in self._paths(first, second, distance, num_points, curve_steps).items():
            along = fixed | {"subspace": name}
            yield along | {"measure": "loss_barrier", "value": path.barrier}
            for t, loss in zip(path.positions.tolist(), path.losses.tolist(), strict=True):
                yield along | {"measure": "path_loss", "alpha": t, "value": loss}

    def _paths(
        self, first: Tensor, second: Tensor, distance: float, num_points: int, curve_steps: int
    ) -> dict[str, LossPath]:
        if distance == 0:  # all points are one, and rounding would make a barrier of it
            here = LossPath(
                torch.linspace(0, 1, num_points, dtype=torch.float64),
                torch.full((num_points,), self.risk.loss(first), dtype=torch.float64),
                0.0,
            )
            return {"straight line": here} | ({"curve": here} if curve_steps else {})
        options: dict[str, Any] = {"num_points": num_points, "batch_norm": self.batch_norm}
        paths = {"straight line": linear_path(self.risk, first, second, **options)}
        if curve_steps:
            rate = _CURVE_RATE * distance / math.sqrt(len(first))
            curve = bezier_path(
                self.risk, first, second, steps=curve_steps, learning_rate=rate, seed=self.seed, **options
            )
            paths["curve"] = curve.path
        return paths

    def plane(self, num_points: int) -> Rows:
        """The plane of the minima's first two principal components, with the loss on it; coordinates around their mean.

        Raises:
            ValueError: The minima do not span a plane.
        """
        names = sorted(self.points)
        stacked = torch.stack([self.points[name] for name in names])
        plane = trajectory_plane(stacked)
        middle = plane.coordinates.mean(dim=0)
        coordinates = plane.coordinates - middle
        for name, (alpha, beta) in zip(names, coordinates.tolist(), strict=True):
            yield {"measure": "plane_minimum", "method": name, "alpha": alpha, "beta": beta}
        for number, share in enumerate(plane.explained_variance.tolist(), 1):
            yield {"measure": "plane_variance", "index": number, "value": share}
        low, high = coordinates.min(dim=0).values, coordinates.max(dim=0).values
        reach = float((high - low).max()) * (0.5 + _MARGIN)
        alphas, betas = (
            torch.linspace(float(centre - reach), float(centre + reach), num_points) for centre in (low + high) / 2
        )
        centre = stacked[-1] + plane.basis @ middle.to(stacked)
        found = loss_surface(
            self.risk, plane.basis[:, 0], plane.basis[:, 1], alphas, betas, centre=centre, batch_norm=self.batch_norm
        )
        for (i, alpha), (j, beta) in itertools.product(enumerate(alphas.tolist()), enumerate(betas.tolist())):
            yield {"measure": "plane_loss", "alpha": alpha, "beta": beta, "value": float(found.losses[i, j])}
