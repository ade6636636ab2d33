"""What settings change, which of them are refused, and cells that fail, through the real command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analyses.cli import main
from analyses.measures.registry import MEASURES
from analyses.running.tuning import best_settings
from analyses.study import Study, load_preset, preset_names
from tests.analyses.mini import MINI, landscape, written

pytestmark = pytest.mark.usefixtures("svg_alone")


def test_pictures_and_the_third_opinion_can_be_left_out(tmp_path: Path) -> None:
    skipped = dict.fromkeys(("gauss_newton", "alignment_along_training", "angles", "dynamics", "recovery"), 0)
    changed = {"surface": None, "third_opinion": False, "seeds": skipped}
    config = written(tmp_path, seeds=1, measures=MINI["measures"] | changed)
    done = landscape("audit", "--config", config, "--out", tmp_path / "out", "--jobs", 1)
    assert done.returncode == 0, done.stderr
    records = pd.read_parquet(tmp_path / "out" / "records.parquet")
    assert not set(records["measure"]) & {"loss_surface", "loss_profile", "loss_barrier", "quadratic_rise"}
    assert set(records["algorithm"].dropna()) >= {"lanczos", "power_iteration"}
    assert "pyhessian" not in set(records["algorithm"])


def worst_case(**changes: object) -> dict[str, Any]:
    return {"measures": MINI["measures"] | {"worst_case": MINI["measures"]["worst_case"] | changes}}


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, ["--preset", "nope"], "--preset: expected one of"),
        ({"methods": {"bilor": {"learning_rate": 0.1}}}, [], "unknown method 'bilor'"),
        ({"methods": {"sam": {"learning_rate": 0.1, "rho": -1}}}, [], "methods.sam.rho"),
        ({"task": {"name": "letters"}}, [], "task: "),
        ({"colour": "blue"}, [], "colour: there is no such key; docs/study.md has them all"),
        ({"adapters": {"r": 65, "target_modules": ["q_proj"]}}, [], "rank 65 exceeds"),
        ({"adapters": {"r": 2, "target_modules": ["nothing"]}}, [], "matches no linear layer"),
        ({"claims": {"rho": 0.3}}, [], "0.3 is not among measures.worst_case.radii"),
        (worst_case(radii=[]), [], "measures.worst_case.radii"),
        (worst_case(balls=["cube"]), [], "measures.worst_case.balls"),
        (worst_case(balls=["filter"]), [], "leaves out l2"),
        (worst_case(balls={"l2": [0.2]}), [], "leave l2 out of the mapping"),
        (worst_case(subspace_radii=[0.5]), [], "0.1 is not among measures.worst_case.subspace_radii"),
        (worst_case(agreement=1.5), [], "measures.worst_case.agreement"),
        (worst_case(halving=True), [], "measures.worst_case.halving"),
        ({"train_sizes": [900]}, [], "train_sizes"),
        ({}, ["--seeds", "0"], "--seeds"),
        ({}, ["--jobs", "0"], "--jobs"),
    ],
)
def test_bad_input_ends_before_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict, arguments: list[str], message: str
) -> None:
    source = [] if "--preset" in arguments else ["--config", str(written(tmp_path, **changes))]
    assert main(["audit", *source, "--out", str(tmp_path / "out"), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert not (tmp_path / "out" / "base").exists()


def test_more_seeds_compute_only_the_new_ones() -> None:
    study = load_preset("digits")
    more = study.model_copy(update={"seeds": 8})
    names = [study.run_name(cell) for cell in study.cells()]
    assert set(names) < {more.run_name(cell) for cell in more.cells()}
    assert study.cost_name() == more.cost_name()


def changed(study: Study, part: str, **values: object) -> Study:
    settings = getattr(study.measures, part).model_copy(update=values)
    return study.model_copy(update={"measures": study.measures.model_copy(update={part: settings})})


@pytest.mark.parametrize(
    ("part", "values", "measured_again"),
    [
        ("worst_case", {"radii": [0.1, 0.2]}, {"sharpness", "recovery", "alignment", "surface"}),
        ("worst_case", {"average_samples": 20}, {"sharpness"}),
        ("curvature", {"power_tol": 0.1}, {"power_iteration"}),
        ("curvature", {"lanczos_tol": 0.1},
         {"curvature", "gauss_newton", "alignment", "angles", "alignment_along_training", "surface"}),
        ("dynamics", {"notes": 12}, {"dynamics", "alignment_along_training", "trajectory"}),
        ("alignment", {"null_samples": 20}, {"alignment"}),
        ("surface", {"line_points": 5}, {"surface"}),
    ],
)  # fmt: skip
def test_a_changed_setting_measures_again_what_depends_on_it_alone(
    part: str, values: dict[str, Any], measured_again: set[str]
) -> None:
    study = load_preset("digits")
    other = changed(study, part, **values)
    cell = next(iter(study.cells()))
    assert other.run_name(cell) == study.run_name(cell)
    assert {m.name for m in MEASURES if m.key(other) != m.key(study)} == measured_again


@pytest.mark.parametrize("name", [name for name in preset_names() if load_preset(name).tuning])
def test_the_presets_settings_are_the_grids_best(name: str) -> None:
    study = load_preset(name)
    table = pd.read_csv(Path(__file__).parents[2] / "analyses" / "presets" / f"{name}_tuning.csv")
    assert study.tuning is not None
    best = best_settings(table, study.tuning, study.methods)
    tuned = {name: s.model_dump() for name, s in study.methods.items() if name in study.tuning.learning_rate}
    assert {name: s.model_dump() for name, s in best.items()} == tuned


@pytest.mark.parametrize(
    "command", ["init", "audit", "train", "measure", "compare", "tune", "report", "presets", "methods"]
)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and len(said) > 100
    assert "type:" not in said and "null" not in said and "lambda" not in said  # for users of the shell, not of Python


def test_a_reader_who_stops_early_ends_the_command_without_a_word() -> None:
    code = (
        "import sys, time; time.sleep(1); sys.argv = ['landscape', 'methods']\n"
        "from analyses.launch import main; sys.exit(main())"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 141 and said == b""
