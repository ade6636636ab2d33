"""A small study through the real command line: resumed, extended, broken, refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from analyses.records import read_records
from tests.analyses.mini import MINI, landscape, landscape_apart, written

pytestmark = pytest.mark.usefixtures("svg_alone")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    done = landscape_apart("audit", "--config", written(folder), "--out", folder / "out")
    assert done.returncode == 0, done.stderr
    assert "undecided" in done.stdout and "report.html" in done.stdout
    return folder


BALL = ["method", "seed", "ball", "rho", "subspace"]


def expected_of_each_ball(records: pd.DataFrame) -> set[tuple[object, ...]]:
    return set(records[BALL].itertuples(index=False, name=None))


def test_audit_leaves_what_it_promises(finished: Path) -> None:
    out = finished / "out"
    for name in (
        "records.parquet",
        "records.csv",
        "study.yaml",
        "claims.json",
        "report.html",
        "environment.json",
    ):
        assert (out / name).is_file(), name
    assert len(list((out / "runs").iterdir())) == 4
    assert {path.suffix for path in (out / "figures").iterdir()} == {".pdf", ".png", ".svg", ".csv"}
    assert {path.suffix for path in (out / "tables").iterdir()} == {".tex", ".md", ".csv"}
    records = pd.read_parquet(out / "records.parquet")
    expected = {"train_loss", "test_accuracy", "worst_case_rise", "one_step_rise", "hessian_eigenvalue"}
    assert expected | {"hessian_residual", "captured_energy", "step_seconds", "peak_memory_bytes"} <= set(
        records["measure"]
    )
    every_ball = records[records["measure"] == "worst_case_rise"]
    others = every_ball[every_ball["ball"] == "filter"]
    assert set(others["rho"]) == {0.2} and set(others["subspace"]) == {"full"} and len(others) == 4
    assert expected_of_each_ball(every_ball) == expected_of_each_ball(records[records["measure"] == "worst_case_gap"])
    rises = every_ball[every_ball["ball"] == "l2"]
    found = records[records["measure"] == "worst_case_search_rise"].groupby(BALL)["value"].max()
    assert (rises.set_index(BALL)["value"] >= found.reindex(rises.set_index(BALL).index) * (1 - 1e-9)).all()
    assert {method: set(own["subspace"]) for method, own in rises.groupby("method")} == {
        "lora": {"full", "lora"}, "bilora": {"full", "lora", "auxiliary", "random"},
    }  # fmt: skip
    assert len(rises) == 2 * ((2 + 1) + (2 + 3)) and (rises["value"] >= 0).all()
    inside = rises.pivot_table(index=["method", "seed", "rho"], columns="subspace", values="value").dropna()
    assert (inside[["auxiliary", "random"]].max(axis=1) <= 1.05 * inside["full"]).all()
    pictures = records[records["measure"].isin(["loss_surface", "loss_profile", "quadratic_rise"])]
    assert set(pictures["seed"]) == {0} and set(pictures["method"]) == {"lora", "bilora"}
    centre = pictures[(pictures["measure"] == "loss_surface") & (pictures["alpha"] == 0) & (pictures["beta"] == 0)]
    losses = records[(records["measure"] == "train_loss") & (records["seed"] == 0)].set_index("method")["value"]
    for method, value in zip(centre["method"], centre["value"], strict=True):
        assert value == pytest.approx(losses[method], rel=1e-4)
    barriers = records[records["measure"] == "loss_barrier"]
    assert [set(pair) for pair in barriers[["method", "other"]].to_numpy()] == [{"lora", "bilora"}]


def test_another_radius_repeats_no_search(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "out", tmp_path / "out")
    before = {path: path.read_bytes() for path in tmp_path.glob("out/measurements/*/worst_case-*.safetensors")}
    for path in before:
        path.chmod(0o444)
        os.utime(path, (0, 0))
    measures = MINI["measures"]
    more = measures["worst_case"] | {"radii": [0.1, 0.3, 0.5]}
    config = written(tmp_path, measures=measures | {"worst_case": more})
    done = landscape("audit", "--config", config, "--out", tmp_path / "out", "--jobs", 1, "--methods", "lora")
    assert done.returncode == 0, done.stderr
    after = set(tmp_path.glob("out/measurements/*/worst_case-*.safetensors"))
    assert all(path.stat().st_mtime == 0 and path.read_bytes() == content for path, content in before.items())
    new = after - set(before)
    assert len(new) == 2 and all("-l2-full-" in path.name for path in new)  # one a cell


def test_the_quadratic_model_is_right_at_small_radii(finished: Path) -> None:
    records = pd.read_parquet(finished / "out" / "records.parquet")
    at = records[records["rho"] == 0.1].pivot_table(index=["method", "seed"], columns="measure", values="value")
    at = at.dropna(subset=["quadratic_rise"])
    assert len(at) == 2
    assert (at["quadratic_rise"] / at["quadratic_realised_rise"]).between(0.5, 2).all()
    assert (at["quadratic_rise"] >= 0).all()


def test_alignment_of_every_space_with_every_direction(finished: Path) -> None:
    records = pd.read_parquet(finished / "out" / "records.parquet")
    pooled = records[records["layer"] == "all"]
    keys = ["method", "seed", "index"]
    for method, own in (("bilora", "auxiliary"), ("lora", "primary")):
        mine = pooled[pooled["method"] == method]
        spaces = mine[mine["measure"] == "alignment"]
        assert set(spaces["component"]) == {own, "primary", "gradient"}
        assert set(zip(spaces["subspace"], spaces["index"], strict=True)) == {
            (kind, k) for kind in ("column", "row", "core", "tangent") for k in (0, 1, 2)
        }
        best = mine[mine["measure"] == "alignment_optimum"]
        both = spaces.merge(best, on=[*keys, "component", "subspace"])
        assert len(both) == len(spaces) and (both["value_x"] <= both["value_y"] + 1e-9).all()
        column = spaces[(spaces["component"] == own) & (spaces["subspace"] == "column")].set_index(keys)["value"]
        headline = mine[mine["measure"] == "captured_energy"].set_index(keys)["value"]
        pd.testing.assert_series_equal(headline, column.loc[headline.index])
        p_values = mine[mine["measure"] == "alignment_p_value"]
        assert len(p_values) == 2 * 4 and p_values["value"].between(1 / 201, 1).all()
    seen = records[records["measure"] == "restricted_eigenvalue_ratio"]
    assert len(seen) == 2 * 2 * 2 and seen["value"].between(0, 1.01).all()


def test_alignment_along_training_ends_at_the_minimums(finished: Path) -> None:
    records = pd.read_parquet(finished / "out" / "records.parquet")
    keys = ["method", "seed", "component"]
    steps = records[records["measure"] == "alignment_along_training"]
    assert set(zip(steps["method"], steps["component"], strict=True)) == {
        ("lora", "primary"), ("bilora", "primary"), ("bilora", "auxiliary"),
    }  # fmt: skip
    assert set(steps["step"]) == {0, 2, 4}
    assert (steps.loc[steps["step"] == 0, "value"] == 0).all()  # B starts at zero
    last = steps[steps["step"] == 4].set_index(keys)["value"]
    at_minimum = records[(records["measure"] == "alignment_weighted") & (records["subspace"] == "column")]
    expected = at_minimum.set_index(keys)["value"].reindex(last.index)
    pd.testing.assert_series_equal(last, expected, rtol=1e-3)  # float16 snapshots


def test_gauss_newton_eigenpairs_are_positive_and_resolved(finished: Path) -> None:
    records = pd.read_parquet(finished / "out" / "records.parquet")
    values, residuals = (records[records["measure"] == f"gauss_newton_{name}"] for name in ("eigenvalue", "residual"))
    assert len(values) == len(residuals) == 2 * 2 * 2
    assert (values["value"] > 0).all() and (residuals["value"] < 0.01).all()
    captured = records[records["measure"] == "gauss_newton_weighted"]
    assert {method: set(own["component"]) for method, own in captured.groupby("method")} == {
        "lora": {"primary", "gradient"}, "bilora": {"primary", "auxiliary", "gradient"},
    }  # fmt: skip
    assert captured["value"].between(0, 1).all()


def test_measure_only_what_is_asked_for(finished: Path) -> None:
    run = next((finished / "out" / "runs").glob("lora-seed1*"))
    done = landscape("measure", run, "--what", "sharpness,generalization", "surface")
    assert done.returncode == 0, done.stderr
    assert "worst_case_rise" in done.stdout and "loss_surface" in done.stdout and "hessian" not in done.stdout
    wrong = landscape("measure", run, "--what", "shape")
    assert wrong.returncode == 2 and "--what: expected some of" in wrong.stderr


def test_solvers_agree_within_their_residuals(finished: Path) -> None:
    records = pd.read_parquet(finished / "out" / "records.parquet")
    chosen = records[records["measure"].str.startswith("hessian")]
    wide = chosen.pivot_table(index=["method", "seed", "index"], columns=["measure", "algorithm"], values="value")
    values, residuals = wide["hessian_eigenvalue"], wide["hessian_residual"]
    gap = (values["lanczos"] - values["power_iteration"]).abs() / values["lanczos"].abs()
    assert (gap <= residuals["lanczos"] + residuals["power_iteration"] + 1e-5).all()
    third = (values["pyhessian"] / values["lanczos"] - 1).dropna()
    assert len(third) == 2 and (third.abs() < 0.02).all()


def test_second_run_computes_nothing(finished: Path) -> None:
    out = finished / "out"
    before = {path: path.stat().st_mtime_ns for path in (out / "measurements").rglob("*.parquet")}
    again = landscape("audit", "--config", finished / "study_input.yaml", "--out", out)
    assert again.returncode == 0 and "done already" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (out / "measurements").rglob("*.parquet")}


def test_measure_and_compare_print_a_run(finished: Path) -> None:
    runs = sorted((finished / "out" / "runs").iterdir())
    measured = landscape("measure", runs[0])
    assert measured.returncode == 0 and "worst_case_rise" in measured.stdout
    options = ("--radii", "0.1", "--what", "fit", "curvature", "paths", "--out", finished / "compared")
    compared = landscape("compare", *runs[:2], *options)
    assert compared.returncode == 0 and runs[1].name in compared.stdout
    before = read_records(finished / "out" / "records.parquet")
    after = read_records(finished / "compared" / "records.parquet")
    for run in runs[:2]:  # the same numbers as in the study, in the same space
        for measure in ("train_loss", "test_accuracy", "gradient_norm", "hessian_eigenvalue"):
            values = [_values(frame, run.name, measure) for frame in (before, after)]
            assert values[1] == pytest.approx(values[0], rel=1e-3) and values[0], measure


def _values(records: pd.DataFrame, run: str, measure: str) -> list[float]:
    """Of one run over all measured weights, by Lanczos where there are several solvers; the first of a ranking."""
    chosen = records[(records["run"] == run) & (records["measure"] == measure)]
    for column, wanted in {"subspace": "full", "algorithm": "lanczos", "index": 1}.items():
        chosen = chosen[chosen[column].fillna(wanted) == wanted]
    return [float(value) for value in chosen["value"]]


def test_another_studys_folder_is_refused(finished: Path, tmp_path: Path) -> None:
    done = landscape("audit", "--config", written(tmp_path, name="other"), "--out", finished / "out")
    assert done.returncode == 2 and "holds the study 'mini'" in done.stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    done = landscape("audit", "--config", written(tmp_path), "--out", tmp_path / "full")
    assert done.returncode == 2 and "not a study's folder" in done.stderr
