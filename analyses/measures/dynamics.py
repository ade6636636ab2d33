"""How adapters moved along training: from a run's snapshots and from what its recorder noted."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from analyses.measures.base import Measure
from analyses.measures.minima import Progress, Rows, Subject
from analyses.training.recording import load_recorded_snapshots, read_notes
from landscape import orthonormal_basis, principal_angles

WITHIN = math.radians(10)
"""A space has settled when its angle to the final one stays below this."""

_MEASURES = {
    "ascent": "ascent",
    "ascent_before_clip": "ascent_before_clip",
    "gain": "ascent_gain",
    "gain_optimum": "ascent_gain_optimum",
    "gain_ky_fan": "ascent_gain_ky_fan",
    "cosine": "cos_auxiliary_gradient",
    "auxiliary_norm": "auxiliary_norm",
    "gradient_norm": "merged_gradient_norm",
    "formula_error": "formula_error",
    "formula_share": "formula_share",
}


def dynamics(subject: Subject, progress: Progress) -> Rows:
    """What the recorder noted, by step, and the angles of each adapter's spaces to where they end."""
    for row in read_notes(subject.run.recording):
        for key, measure in _MEASURES.items():
            if key in row:
                yield {"measure": measure, "step": int(row["step"]), "value": row[key]}
    snapshots = load_recorded_snapshots(subject.run.recording)
    if snapshots:
        for adapter in dict.fromkeys(key.split("/")[0] for key in snapshots[0]):
            for space, factor in (("column", "B"), ("row", "A")):
                angles = angles_to_final(snapshots, f"{adapter}/", f"/{factor}")
                common = {"component": adapter, "subspace": space}
                for step, angle in angles.items():
                    yield common | {"measure": "angle_to_final", "step": step, "value": math.degrees(angle)}
                yield common | {"measure": "settled_at", "value": settled_at(angles)}
    progress(1, 1)


def angles_to_final(snapshots: Mapping[int, Mapping[str, Tensor]], prefix: str, suffix: str) -> dict[int, float]:
    """Mean over layers of the largest principal angle between a factor's space and its final one, by step.

    B's space is its column space, A's its row space. A factor of lower rank than the final one, such as B = 0 at the
    start, has not found the missing directions: they count as 90°.

    Returns:
        Radians by step.
    """
    last = snapshots[max(snapshots)]
    names = [name for name in last if name.startswith(prefix) and name.endswith(suffix)]
    final = {name: _space(last[name]) for name in names}
    return {
        step: sum(_largest_angle(_space(tensors[name]), final[name]) for name in names) / len(names)
        for step, tensors in sorted(snapshots.items())
    }


def settled_at(angles: Mapping[int, float]) -> float:
    """Share of training after which the angle stays below 10°, at the resolution of the snapshots.

    >>> settled_at({0: 1.5, 10: 0.5, 20: 0.1, 30: 0.05, 40: 0.0})
    0.5
    """
    steps = sorted(angles)
    outside = [step for step in steps if angles[step] >= WITHIN]
    if not outside:
        return 0.0
    settled = [step for step in steps if step > outside[-1]]
    return (settled[0] if settled else steps[-1]) / steps[-1]


def _space(factor: Tensor) -> Tensor:
    tall = factor.double() if factor.shape[0] >= factor.shape[1] else factor.double().T
    return orthonormal_basis(tall, tol=torch.finfo(torch.float16).eps)  # the precision of the snapshots


def _largest_angle(space: Tensor, final: Tensor) -> float:
    if space.shape[1] < final.shape[1]:
        return math.pi / 2
    return float(principal_angles(space, final)[-1]) if final.shape[1] else 0.0


DYNAMICS = Measure("dynamics", dynamics, recorded=True)
