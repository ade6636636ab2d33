"""A small study through the real command line: resumed, extended, broken, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from analyses.study import load_preset, preset_names
from analyses.tuning import best_settings

MINI = {
    "name": "mini",
    "task": {"name": "digits", "pretrain_epochs": 1},
    "train_sizes": [40],
    "seeds": 2,
    "training": {"epochs": 2, "batch_size": 20},
    "adapters": {"r": 2, "alpha": 4, "target_modules": ["q_proj", "fc1"]},
    "methods": {
        "lora": {"learning_rate": 0.003},
        "bilora": {"learning_rate": 0.003, "rho": 0.05},
    },
    "measures": {
        "worst_case": {"radii": [0.1, 0.5], "steps": 3},
        "curvature": {"k": 2, "lanczos_tol": 0.001, "power_tol": 0.1},
        "surface": {"line_points": 3, "grid_points": 3, "path_points": 3},
        "dynamics": {"snapshots": 2, "notes": 2},
        "cost_rounds": 2,
    },
    "claims": {"rho": 0.1},
}
TIMINGS = ["seconds"]


def landscape(*arguments: object, wait: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "analyses.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


def written(folder: Path, **changes: object) -> Path:
    path = folder / "study_input.yaml"
    path.write_text(yaml.safe_dump(MINI | changes))
    return path


def numbers(out: Path) -> pd.DataFrame:
    records = pd.read_parquet(out / "records.parquet")
    timed = records["measure"].str.contains("seconds")
    return records[~timed].drop(columns=TIMINGS).reset_index(drop=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    done = landscape("audit", "--config", written(folder), "--out", folder / "out")
    assert done.returncode == 0, done.stderr
    assert "undecided" in done.stdout and "report.html" in done.stdout
    return folder


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
    assert {path.suffix for path in (out / "figures").iterdir()} == {".pdf", ".png", ".csv"}
    assert {path.suffix for path in (out / "tables").iterdir()} == {".tex", ".md", ".csv"}
    records = pd.read_parquet(out / "records.parquet")
    expected = {"train_loss", "test_accuracy", "worst_case_rise", "one_step_rise", "hessian_eigenvalue"}
    assert expected | {"hessian_residual", "captured_energy", "step_seconds", "peak_memory_bytes"} <= set(
        records["measure"]
    )
    rises = records[records["measure"] == "worst_case_rise"]
    assert {method: set(own["subspace"]) for method, own in rises.groupby("method")} == {
        "lora": {"full", "lora"}, "bilora": {"full", "lora", "auxiliary", "random"},
    }  # fmt: skip
    assert len(rises) == 2 * 2 * (2 + 4) and (rises["value"] >= 0).all()
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
    keys = ["method", "seed", "k"]
    for method, own in (("bilora", "auxiliary"), ("lora", "primary")):
        mine = pooled[pooled["method"] == method]
        spaces = mine[mine["measure"] == "alignment"]
        assert set(spaces["other"]) == {own, "primary", "gradient"}
        assert set(zip(spaces["subspace"], spaces["k"], strict=True)) == {
            (kind, k) for kind in ("column", "row", "core", "tangent") for k in (0, 1, 2)
        }
        best = mine[mine["measure"] == "alignment_optimum"]
        both = spaces.merge(best, on=[*keys, "other", "subspace"])
        assert len(both) == len(spaces) and (both["value_x"] <= both["value_y"] + 1e-9).all()
        column = spaces[(spaces["other"] == own) & (spaces["subspace"] == "column")].set_index(keys)["value"]
        headline = mine[mine["measure"] == "captured_energy"].set_index(keys)["value"]
        pd.testing.assert_series_equal(headline, column.loc[headline.index])
        p_values = mine[mine["measure"] == "alignment_p_value"]
        assert len(p_values) == 2 * 4 and p_values["value"].between(1 / 201, 1).all()
    seen = records[records["measure"] == "restricted_eigenvalue_ratio"]
    assert len(seen) == 2 * 2 * 2 and seen["value"].between(0, 1.01).all()


def test_alignment_along_training_ends_at_the_minimums(finished: Path) -> None:
    records = pd.read_parquet(finished / "out" / "records.parquet")
    keys = ["method", "seed", "other"]
    steps = records[records["measure"] == "alignment_along_training"]
    assert set(zip(steps["method"], steps["other"], strict=True)) == {
        ("lora", "primary"), ("bilora", "primary"), ("bilora", "auxiliary"),
    }  # fmt: skip
    assert set(steps["k"]) == {0, 2, 4}
    assert (steps.loc[steps["k"] == 0, "value"] == 0).all()  # B starts at zero
    last = steps[steps["k"] == 4].set_index(keys)["value"]
    at_minimum = records[(records["measure"] == "alignment_weighted") & (records["subspace"] == "column")]
    expected = at_minimum.set_index(keys)["value"].reindex(last.index)
    pd.testing.assert_series_equal(last, expected, rtol=1e-3)  # float16 snapshots


def test_gauss_newton_eigenpairs_are_positive_and_resolved(finished: Path) -> None:
    records = pd.read_parquet(finished / "out" / "records.parquet")
    values, residuals = (records[records["measure"] == f"gauss_newton_{name}"] for name in ("eigenvalue", "residual"))
    assert len(values) == len(residuals) == 2 * 2 * 2
    assert (values["value"] > 0).all() and (residuals["value"] < 0.01).all()
    captured = records[records["measure"] == "gauss_newton_weighted"]
    assert {method: set(own["other"]) for method, own in captured.groupby("method")} == {
        "lora": {"primary", "gradient"}, "bilora": {"primary", "auxiliary", "gradient"},
    }  # fmt: skip
    assert captured["value"].between(0, 1).all()


def test_measure_only_what_is_asked_for(finished: Path) -> None:
    run = next((finished / "out" / "runs").glob("lora-seed1*"))
    done = landscape("measure", run, "--what", "sharpness,surface")
    assert done.returncode == 0, done.stderr
    assert "worst_case_rise" in done.stdout and "loss_surface" in done.stdout and "test_accuracy" not in done.stdout
    wrong = landscape("measure", run, "--what", "shape")
    assert wrong.returncode == 2 and "--what: expected some of" in wrong.stderr


def test_solvers_agree_within_their_residuals(finished: Path) -> None:
    records = pd.read_parquet(finished / "out" / "records.parquet")
    chosen = records[records["measure"].str.startswith("hessian")]
    wide = chosen.pivot_table(index=["method", "seed", "k"], columns=["measure", "algorithm"], values="value")
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


def test_killed_and_resumed_equals_uninterrupted(finished: Path, tmp_path: Path) -> None:
    config, out = written(tmp_path), tmp_path / "out"
    command = [sys.executable, "-m", "analyses.cli", "audit", "--config", str(config), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((out / "runs").glob("[!.]*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "records.parquet").exists()
    resumed = landscape("audit", "--config", config, "--out", out)
    assert resumed.returncode == 0, resumed.stderr
    pd.testing.assert_frame_equal(numbers(out), numbers(finished / "out"), check_exact=True)
    for run in (out / "runs").iterdir():
        for weights in run.rglob("*.safetensors"):
            twin = finished / "out" / "runs" / run.name / weights.relative_to(run)
            assert weights.read_bytes() == twin.read_bytes()


def test_a_failing_cell_is_recorded_and_the_others_finish(tmp_path: Path) -> None:
    methods = {"lora": {"learning_rate": 0.003}, "bilora": {"learning_rate": 1e30, "rho": 0.05}}
    config = written(tmp_path, methods=methods, seeds=1)
    done = landscape("audit", "--config", config, "--out", tmp_path / "out")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    failures = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert len(failures) == 1 and failures[0]["cell"].startswith("bilora") and "nan" in failures[0]["reason"]
    records = pd.read_parquet(tmp_path / "out" / "records.parquet")
    assert "lora" in set(records.loc[records["measure"] == "worst_case_rise", "method"])
    assert "bilora-seed0" in (tmp_path / "out" / "report.html").read_text()


def test_pictures_and_the_third_opinion_can_be_left_out(tmp_path: Path) -> None:
    config = written(tmp_path, seeds=1, measures=MINI["measures"] | {"surface": None, "third_opinion": False})
    done = landscape("audit", "--config", config, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    records = pd.read_parquet(tmp_path / "out" / "records.parquet")
    assert not set(records["measure"]) & {"loss_surface", "loss_profile", "loss_barrier", "quadratic_rise"}
    assert set(records["algorithm"].dropna()) >= {"lanczos", "power_iteration"}
    assert "pyhessian" not in set(records["algorithm"])


def test_measure_and_compare_print_a_run(finished: Path) -> None:
    runs = sorted((finished / "out" / "runs").iterdir())
    measured = landscape("measure", runs[0])
    assert measured.returncode == 0 and "worst_case_rise" in measured.stdout
    compared = landscape("compare", *runs[:2])
    assert compared.returncode == 0 and runs[1].name in compared.stdout and "top hessian_eigenvalue" in compared.stdout


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, ["--preset", "nope"], "--preset: expected one of"),
        ({"methods": {"bilor": {"learning_rate": 0.1}}}, [], "unknown method 'bilor'"),
        ({"methods": {"sam": {"learning_rate": 0.1, "rho": -1}}}, [], "methods.sam.rho"),
        ({"task": {"name": "letters"}}, [], "task: "),
        ({"colour": "blue"}, [], "colour: Extra inputs are not permitted"),
        ({"adapters": {"r": 65, "target_modules": ["q_proj"]}}, [], "rank 65 exceeds"),
        ({"adapters": {"r": 2, "target_modules": ["nothing"]}}, [], "matches no linear layer"),
        ({"claims": {"rho": 0.3}}, [], "0.3 is not among measures.worst_case.radii"),
        ({"train_sizes": [900]}, [], "train_sizes"),
        ({}, ["--seeds", "0"], "--seeds"),
        ({}, ["--jobs", "0"], "--jobs"),
    ],
)
def test_bad_input_ends_before_work(tmp_path: Path, changes: dict, arguments: list[str], message: str) -> None:
    source = [] if "--preset" in arguments else ["--config", written(tmp_path, **changes)]
    done = landscape("audit", *source, "--out", tmp_path / "out", *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "base").exists()


def test_another_studys_folder_is_refused(finished: Path, tmp_path: Path) -> None:
    done = landscape("audit", "--config", written(tmp_path, name="other"), "--out", finished / "out")
    assert done.returncode == 2 and "holds the study 'mini'" in done.stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    done = landscape("audit", "--config", written(tmp_path), "--out", tmp_path / "full")
    assert done.returncode == 2 and "not a study's folder" in done.stderr


def test_more_seeds_compute_only_the_new_ones(tmp_path: Path, finished: Path) -> None:
    study = load_preset("digits")
    more = study.model_copy(update={"seeds": 8})
    names = [study.run_name(cell) for cell in study.cells()]
    assert set(names) < {more.run_name(cell) for cell in more.cells()}
    assert study.cost_name() == more.cost_name()


def test_changed_settings_recompute_what_depends_on_them() -> None:
    study = load_preset("digits")
    cell = next(iter(study.cells()))
    radii = study.measures.worst_case.model_copy(update={"radii": [0.1]})
    changed = study.model_copy(update={"measures": study.measures.model_copy(update={"worst_case": radii})})
    assert changed.run_name(cell) == study.run_name(cell)
    assert changed.measurement_name("sharpness") != study.measurement_name("sharpness")
    assert changed.measurement_name("curvature") == study.measurement_name("curvature")


@pytest.mark.parametrize("name", [name for name in preset_names() if load_preset(name).tuning])
def test_the_presets_settings_are_the_grids_best(name: str) -> None:
    study = load_preset(name)
    table = pd.read_csv(Path(__file__).parents[2] / "analyses" / "presets" / f"{name}_tuning.csv")
    assert study.tuning is not None
    assert {name: s.model_dump() for name, s in best_settings(table, study.tuning).items()} == {
        name: s.model_dump() for name, s in study.methods.items()
    }


@pytest.mark.parametrize("command", ["audit", "train", "measure", "compare", "tune", "report", "presets", "methods"])
def test_every_command_explains_itself(command: str) -> None:
    done = landscape(command, "--help")
    assert done.returncode == 0 and len(done.stdout) > 100
