"""Settings of what is measured at every minimum."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, field_validator, model_validator

from analyses.study.base import Count, Positive, Settings

BallName = Literal["l2", "relative", "elementwise", "filter"]
L2: BallName = "l2"
Radii = Annotated[list[Positive], Field(min_length=1)]
Seeds = Annotated[int, Field(ge=0)]
"""How many of a study's seeds."""


class WorstCaseSettings(Settings):
    """Balls, radii and effort of the two searches for the worst case, the same for every method.

    ``balls`` names the sets around a minimum: ``l2`` measures radii in the weights' own units, ``relative`` in units of
    their norm, ``elementwise`` and ``filter`` (adaptive) in units of each weight's size and of its row's. A list gives
    all of them ``radii``; a mapping gives others than ``l2`` radii of their own. Searches inside the adapters'
    subspaces run in the l2 ball, at ``subspace_radii`` (null: at all of its radii). The effort is as in
    `landscape.worst_case_sharpness`.
    """

    radii: Radii
    balls: dict[BallName, Radii] | list[BallName] = Field(default=[L2])
    subspace_radii: Radii | None = None
    steps: Count = 20
    restarts: Count = 7
    screened: Count = 128
    agreement: Annotated[FiniteFloat, Field(ge=0, lt=1)] = 0.05
    max_passes: Count = 1000
    average_samples: Annotated[int, Field(ge=2)] = 10

    @field_validator("radii", "subspace_radii")
    @classmethod
    def _in_order(cls, radii: list[float] | None) -> list[float] | None:
        return radii if radii is None else sorted(set(radii))

    @model_validator(mode="after")
    def _l2_has_the_radii(self) -> WorstCaseSettings:
        if isinstance(self.balls, list) and L2 not in self.balls:
            raise ValueError(f"balls: {self.balls} leaves out l2, in which claims are judged; add it")
        if isinstance(self.balls, dict) and sorted(set(self.balls.get(L2, self.radii))) != self.radii:
            raise ValueError(f"balls.l2: {self.balls[L2]} are not `radii` {self.radii}; leave l2 out of the mapping")
        return self

    @property
    def radii_by_ball(self) -> dict[BallName, list[float]]:
        """Radii of each ball, ascending, l2 first."""
        others = self.balls if isinstance(self.balls, dict) else dict.fromkeys(self.balls, self.radii)
        return {L2: self.radii} | {ball: sorted(set(radii)) for ball, radii in others.items() if ball != L2}

    @property
    def inside_radii(self) -> list[float]:
        """Radii of the searches inside subspaces."""
        return self.subspace_radii or self.radii


class CurvatureSettings(Settings):
    """Eigenpairs: how many, the relative residual asked for, and the products allowed."""

    k: Count = 5
    lanczos_tol: Positive = 1e-4
    power_tol: Positive = 1e-2
    power_matvecs: Count = 400


class SurfaceSettings(Settings):
    """Pictures of the loss around the first seed's minima, and along the ways to them.

    ``reach`` is in units of the claims' radius, the others are points: of a line, of a side of a plane around a minimum
    and of one of a way, which is smoother, and of a path between two minima.
    """

    reach: Positive = 3.0
    line_points: Annotated[int, Field(ge=3)] = 25
    grid_points: Annotated[int, Field(ge=3)] = 13
    trajectory_points: Annotated[int, Field(ge=3)] = 13
    path_points: Annotated[int, Field(ge=3)] = 9


class SpectrumSettings(Settings):
    """Trace and density of the Hessian's spectrum, measured where ``measures.seeds`` names ``spectrum``.

    The trace is estimated until its relative standard error is ``trace_tol`` or ``trace_matvecs`` products are used,
    the density with ``density_probes`` random vectors of ``density_steps`` products each.
    """

    trace_tol: Positive = 0.02
    trace_matvecs: Annotated[int, Field(ge=30)] = 300
    density_steps: Count = 50
    density_probes: Annotated[int, Field(ge=2)] = 4


class AlignmentSettings(Settings):
    """Random subspaces drawn for z-scores and p-values; whether to look at the Gauss-Newton matrix's eigenvectors."""

    null_samples: Annotated[int, Field(ge=2)] = 200
    gauss_newton: bool = True


class DynamicsSettings(Settings):
    """What is kept along training: snapshots of the factors, and notes on the perturbation against the gradient."""

    snapshots: Count = 24
    notes: Count = 48


class MeasureSettings(Settings):
    """What is measured at every minimum.

    ``seeds`` says at how many of the study's seeds a measure runs, by its name; what is not named runs at all of them,
    pictures at the first; 0 leaves it out. A mapping says it by method, and methods that it does not name do without.
    ``own`` holds measures of the user's, by their place
    ``package.module:NAME``, with settings of their own. ``surface`` may be null: no pictures and no barriers.
    ``third_opinion`` has PyHessian compute the eigenvalues of one cell too. ``dynamics`` is null unless training is to
    be followed. ``graph_gib`` is the memory for the graphs of curvature products: time, not numbers, depend on it.
    """

    worst_case: WorstCaseSettings
    seeds: dict[str, Seeds | dict[str, Seeds]] = Field(default_factory=dict)
    own: dict[str, dict[str, Any]] = Field(default_factory=dict)
    curvature: CurvatureSettings = CurvatureSettings()
    spectrum: SpectrumSettings = SpectrumSettings()
    alignment: AlignmentSettings = AlignmentSettings()
    surface: SurfaceSettings | None = SurfaceSettings()
    dynamics: DynamicsSettings | None = None
    cost_rounds: Count = 7
    third_opinion: bool = True
    graph_gib: Positive = 1.0
