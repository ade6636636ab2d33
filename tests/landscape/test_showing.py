"""Results print in a line, tabulate as plain numbers and draw into given axes."""

from __future__ import annotations

import html
import sys
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

from bilora import BiLoraConfig, attach, minimum
from landscape import (
    EmpiricalRisk,
    HessianOperator,
    LowRankSubspace,
    alignment,
    average_sharpness,
    bezier_path,
    estimate_trace,
    lanczos,
    linear_path,
    loss_line,
    loss_surface,
    m_sharpness,
    orthonormal_basis,
    restricted_curvature,
    spectral_density,
    trajectory_plane,
    trust_region_maximum,
    worst_case_sharpness,
)


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """One of every kind, of a network with enough weights that none could be printed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 20), nn.Tanh(), nn.Linear(20, 3))
    risk = EmpiricalRisk(model, [(torch.randn(9, 8), torch.arange(9) % 3)], params=[r"0.weight", "2.weight"])
    operator, theta = HessianOperator(risk), risk.theta
    noise = torch.randn(3, risk.num_params)
    shapes = dict(zip(risk.layout.names, risk.layout.shapes, strict=True))
    columns, rows = (
        {name: orthonormal_basis(torch.randn(shape[side], 2)) for name, shape in shapes.items()} for side in (0, 1)
    )
    space = LowRankSubspace(risk.layout, columns, rows, "column")
    eigen = lanczos(operator, 3)
    worst = worst_case_sharpness(risk, 0.1, steps=3, restarts=1, screened=2, max_passes=1)
    grid = [-0.1, 0.0, 0.1]
    found = {
        "eigen": eigen,
        "trace": estimate_trace(operator),
        "density": spectral_density(operator, num_steps=5, num_probes=2),
        "worst": worst,
        "own": worst.own,
        "average": average_sharpness(risk, 0.01, num_samples=2, seed=0),
        "chunks": m_sharpness(risk, 0.1, m=3),
        "model": trust_region_maximum(operator, risk.gradient(), 0.1),
        "restricted": restricted_curvature(operator, space, eigen.eigenvalues[:1]),
        "alignment": alignment(eigen.eigenvectors[:, 0], space),
        "line": loss_line(risk, noise[0], grid),
        "surface": loss_surface(risk, noise[0], noise[1], grid, grid),
        "path": linear_path(risk, theta, theta + 0.1 * noise[0], num_points=3),
        "curve": bezier_path(risk, theta, theta + 0.1 * noise[0], steps=2, num_points=3),
        "plane": trajectory_plane(torch.stack([theta, *(theta + noise)])),
        "risk": risk,
        "operator": operator,
        "minimum": minimum(attach(model, BiLoraConfig(r=2, target_modules=["0", "2"]))),
    }
    return found


def test_every_kind_prints_in_a_line(results: dict[str, Any]) -> None:
    for name, result in results.items():
        text = repr(result)
        assert text.startswith(type(result).__name__) and len(text) < 400 and "\n" not in text, name
        assert "tensor([" not in text, name
    assert repr(results["risk"]).startswith("EmpiricalRisk(Sequential: 220 weights in 2 tensors; 9 examples in 1 batch")
    assert repr(results["operator"]) == "HessianOperator(220 × 220, float32 on cpu)"


@pytest.mark.parametrize(
    ("name", "rows", "column"),
    [
        ("eigen", 3, "eigenvalues"), ("trace", 1, "trace"), ("worst", 1, "rise"), ("own", 4, "rises"),
        ("average", 1, "stderr"), ("chunks", 3, "rises"), ("model", 1, "predicted_rise"), ("restricted", 1, "ratios"),
        ("alignment", 3, "captured"), ("line", 3, "losses"), ("surface", 9, "loss"), ("path", 3, "losses"),
        ("curve", 3, "losses"),
    ],
)  # fmt: skip
def test_a_table_has_plain_numbers(results: dict[str, Any], name: str, rows: int, column: str) -> None:
    frame = results[name].to_frame()
    assert len(frame) == rows and frame[column].notna().all()
    assert html.escape(column) in results[name]._repr_html_()


def test_tables_hold_the_results_own_numbers(results: dict[str, Any]) -> None:
    eigen, surface, worst = (results[name] for name in ("eigen", "surface", "worst"))
    assert eigen.to_frame()["eigenvalues"].tolist() == eigen.eigenvalues.tolist()
    at = surface.to_frame().set_index(["alpha", "beta"])["loss"]
    assert at.loc[(-0.1, 0.1)] == float(surface.losses[0, 2])
    assert worst.to_frame().loc[0, "rise"] == worst.rise


@pytest.mark.parametrize("name", ["eigen", "density", "worst", "alignment", "line", "surface", "path", "curve"])
def test_a_picture_goes_into_the_axes_that_are_given(results: dict[str, Any], name: str) -> None:
    figure, ax = plt.subplots()
    assert results[name].plot(ax) is ax and ax.get_xlabel() + ax.get_ylabel()
    assert ax.lines or ax.collections
    new = results[name].plot()
    assert new is not ax
    plt.close(figure)
    plt.close(new.figure)


def test_what_has_no_axis_says_so_and_a_missing_package_is_named(
    results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="TraceResult has no curve to draw"):
        results["trace"].plot()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="this needs pandas, which is not installed: pip install pandas"):
        results["trace"].to_frame()
    assert "trace" in results["trace"]._repr_html_()  # needs none
