"""The whole spectrum of the Hessian in two estimates: its trace and its density."""

from __future__ import annotations

from analyses.measures.base import Measure
from analyses.measures.minima import Progress, Rows, Subject
from landscape import HessianOperator, estimate_trace, spectral_density

_POINTS = 300


def spectrum(subject: Subject, progress: Progress) -> Rows:
    """Trace by Hutch++ with its standard error, and density by stochastic Lanczos quadrature with its own.

    A density's ``alpha`` is the eigenvalue at which it stands, its unit one over that of eigenvalues.
    """
    settings, seed = subject.plan.measures.spectrum, subject.cell.seed
    operator = HessianOperator(subject.risk(), graph_budget=subject.graph_budget)
    found = estimate_trace(operator, tol=settings.trace_tol, max_matvecs=settings.trace_matvecs, seed=seed)
    cost = {"algorithm": found.method, "num_passes": found.num_matvecs}
    yield {"measure": "hessian_trace", "value": found.trace, "stderr": found.stderr, **cost}
    progress(1, 2)
    density = spectral_density(
        operator,
        num_steps=settings.density_steps,
        num_probes=settings.density_probes,
        num_points=_POINTS,
        seed=seed,
    )
    for value, height, error in zip(
        density.grid.tolist(), density.density.tolist(), density.stderr.tolist(), strict=True
    ):
        yield {"measure": "spectral_density", "alpha": value, "value": height, "stderr": error}
    yield {"measure": "spectral_width", "value": density.width, "num_passes": density.num_matvecs}
    progress(2, 2)


SPECTRUM = Measure("spectrum", spectrum, lambda plan: plan.measures.spectrum.model_dump(), default_seeds=0)
