"""Settings of a comparison, and what they ask of the measures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, field_validator

from analyses.measures.radii import RISES, radii_of_rises
from analyses.study import StudyError
from analyses.study.base import Positive, Settings, keys_at, near
from analyses.study.measure_settings import (
    L2,
    AlignmentSettings,
    BallName,
    CurvatureSettings,
    MeasureSettings,
    SpectrumSettings,
)
from landscape import EmpiricalRisk
from landscape.sharpness.balls import weight_scale

What = Literal["fit", "sharpness", "curvature", "spectrum", "alignment", "paths", "plane"]
WHAT: tuple[What, ...] = get_args(What)


class ComparisonSettings(Settings):
    """What is compared, and with what effort.

    Attributes:
        radii: Of the l2 balls, in the weights' units; tables and figures look at the largest. Default: the geometric
            means over the minima of the radii at which a short climb finds rises of 0.001 and 0.1 nats.
        balls: Shapes. Those besides ``l2`` get radii at which, on the geometric mean over the minima, a random
            perturbation of the ball has the l2 radius as its root-mean-square length.
        what: ``fit`` (losses, accuracies, norms), ``sharpness``, ``curvature`` (top eigenpairs), ``spectrum`` (trace
            and density), ``alignment`` (where there are low-rank factors), ``paths`` (distances, barriers, curves)
            and ``plane`` (the loss over the plane of three minima or more).
        params: Regular expression for the names of the measured weights, or a list of names. Default: the layers that
            adapters adapted, all weights where there are none.
        worst_case: Effort of the searches: keys of a study's ``measures.worst_case`` other than radii and balls.
        curvature: As a study's.
        spectrum: As a study's.
        alignment: As a study's; Gauss-Newton eigenvectors are left out.
        own: Measures of the user's by place, ``package.module:NAME``, with the settings of each; a row of the table
            for each number that they record.
        path_points: Evaluated along a path, both ends included.
        curve_steps: Passes with which each curve is trained; 0 for none.
        plane_points: Evaluated along either side of the plane.
        graph_gib: Memory for the graphs of curvature products.
        seed: Of all that is drawn.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    radii: Annotated[list[Positive], Field(min_length=1)] | None = None
    balls: Annotated[list[BallName], Field(min_length=1)] = Field(default=[L2, "relative", "elementwise"])
    what: Annotated[list[What], Field(min_length=1)] = Field(default=list(WHAT))
    params: str | list[str] | None = None
    worst_case: dict[str, Any] = Field(default_factory=dict)
    curvature: CurvatureSettings = CurvatureSettings()
    spectrum: SpectrumSettings = SpectrumSettings()
    alignment: AlignmentSettings = AlignmentSettings(gauss_newton=False)
    own: dict[str, dict[str, Any]] = Field(default_factory=dict)
    path_points: Annotated[int, Field(ge=3)] = 13
    curve_steps: Annotated[int, Field(ge=0)] = 60
    plane_points: Annotated[int, Field(ge=3)] = 17
    graph_gib: Positive = 1.0
    seed: int = 0
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"

    @field_validator("balls")
    @classmethod
    def _l2_is_there(cls, balls: list[BallName]) -> list[BallName]:
        if L2 not in balls:
            raise ValueError(f"expected l2 among the balls, beside which the others are read; got {', '.join(balls)}")
        return balls

    @field_validator("worst_case")
    @classmethod
    def _effort_only(cls, effort: dict[str, Any]) -> dict[str, Any]:
        MeasureSettings.model_validate({"worst_case": effort | {"radii": [1.0]}})
        if taken := effort.keys() & {"radii", "balls", "subspace_radii"}:
            raise ValueError(f"expected the effort of the searches alone, got {', '.join(sorted(taken))}")
        return effort


@dataclass(frozen=True)
class ComparisonPlan:
    """What the measures read; see `analyses.study.plan.Plan`."""

    measures: MeasureSettings
    rho: float


def comparison_settings(options: Mapping[str, Any]) -> ComparisonSettings:
    """Settings from options by name.

    Raises:
        StudyError: An option is unknown or out of range.
    """
    try:
        return ComparisonSettings.model_validate(_as_lists(options))
    except ValidationError as error:
        first = error.errors()[0]
        # The effort is checked as a study's, where it stands under the same name.
        effort = first["loc"][:2] == ("worst_case", "worst_case")
        kind, loc = (MeasureSettings, first["loc"][1:]) if effort else (ComparisonSettings, first["loc"])
        place = ".".join(map(str, loc))
        if first["type"] == "extra_forbidden":
            known = sorted(keys_at(kind, loc[:-1]))
            meant = "; did you mean 'radii'?" if loc[-1] in ("rho", "rhos", "radius") else near(str(loc[-1]), known)
            raise StudyError(f"{place}: there is no such option{meant}; expected some of {', '.join(known)}") from None
        raise StudyError(f"{place}: {first['msg']} (got {first['input']!r})") from None


def _as_lists(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with single values where lists are meant, and names that a predicate would have to choose refused."""
    given = dict(options)
    if callable(given.get("params")):
        raise StudyError(
            "params: expected a regular expression or a list of names, got a function; pass the names that it accepts"
        )
    for name in ("radii", "balls", "what"):
        value: Any = given.get(name)
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            given[name] = [value]
        elif hasattr(value, "tolist"):
            given[name] = value.tolist()
    return given


def plan_of(settings: ComparisonSettings, risks: Sequence[EmpiricalRisk]) -> ComparisonPlan:
    """The measures' settings, with radii from the minima where none are given."""
    radii = sorted(set(settings.radii or _suggested(risks)))
    balls = {ball: [_rounded(radius / _length(ball, risks), 3) for radius in radii] for ball in settings.balls}
    balls[L2] = radii
    measures = MeasureSettings.model_validate(
        {
            "worst_case": settings.worst_case | {"radii": radii, "balls": balls, "subspace_radii": radii[-1:]},
            "curvature": settings.curvature,
            "spectrum": settings.spectrum,
            "alignment": settings.alignment,
            "surface": None,
            "graph_gib": settings.graph_gib,
        }
    )
    return ComparisonPlan(measures, radii[-1])


def _suggested(risks: Sequence[EmpiricalRisk]) -> list[float]:
    found = [radii_of_rises(risk) for risk in risks]
    rises = [rise for rise in RISES[:2] if all(rise in radii for radii in found)]
    if not rises:  # a loss that saturates: as far as each could be followed
        return [_rounded(_geometric_mean([max(radii.values()) for radii in found]), 2)]
    return [_rounded(_geometric_mean([radii[rise] for radii in found]), 2) for rise in rises]


def _length(ball: BallName, risks: Sequence[EmpiricalRisk]) -> float:
    """Root-mean-square length of a random point on the surface of the ball of radius 1, over the minima."""
    if ball == L2:
        return 1.0
    lengths = []
    for risk in risks:
        theta = risk.theta
        if ball == "relative":
            lengths.append(float(theta.double().norm()))
        else:
            scale = weight_scale(theta, risk.layout, by_filter=ball == "filter").double()
            lengths.append(float(scale.square().mean().sqrt()))
    return _geometric_mean(lengths)


def _geometric_mean(values: Sequence[float]) -> float:
    if min(values) <= 0:
        raise StudyError("balls: a minimum whose measured weights are all zero has no relative ball; use balls l2")
    return math.exp(math.fsum(math.log(value) for value in values) / len(values))


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")
