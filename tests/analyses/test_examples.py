"""The committed examples are those of the bundled presets, and their verdicts follow from their records."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analyses.judging.claims import claims_document
from analyses.records import read_json, read_records
from analyses.running.stopping import LOOKS, recorded_looks
from analyses.study import load_preset, load_study, preset_names
from reports.charts.fit import fit_chart

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", preset_names())
def test_an_example_has_its_presets_settings_and_whole_records(name: str) -> None:
    study, preset = load_study(EXAMPLES / name / "study.yaml"), load_preset(name)
    if name == "digits":  # a longer run of the preset, described at more seeds, more sharply and in finer pictures
        less = {key: getattr(preset.measures, key) for key in ("seeds", "cost_rounds", "curvature", "surface")}
        study = study.model_copy(update={"seeds": preset.seeds, "measures": study.measures.model_copy(update=less)})
    assert study == preset
    records = read_records(EXAMPLES / name / "records.parquet")
    runs = records[records["measure"] == "train_loss"][["method", "seed", "train_size"]]
    cells = {(cell.method, cell.seed, cell.train_size) for cell in load_study(EXAMPLES / name / "study.yaml").cells()}
    assert set(runs.itertuples(index=False, name=None)) == cells
    assert read_json(EXAMPLES / name / "failures.json") == []


@pytest.mark.parametrize("name", [*preset_names(), "flat-lora"])
def test_the_verdicts_follow_from_the_records(name: str) -> None:
    study, folder = load_study(EXAMPLES / name / "study.yaml"), EXAMPLES / name
    looks = recorded_looks(folder / LOOKS, study.claims)
    document = claims_document(read_records(folder / "records.parquet"), study.claims, looks)
    kept: dict[str, Any] = read_json(folder / "claims.json")
    assert document["sentence"] == kept["sentence"] and document["design"] == kept["design"]
    assert document["not_judged"] == kept["not_judged"]
    for key in ("name", "verdict", "statement", "procedure", "comparison", "n"):
        assert [one[key] for one in document["claims"]] == [one[key] for one in kept["claims"]]
    assert [one["effect"] for one in document["claims"]] == pytest.approx([one["effect"] for one in kept["claims"]])


def test_a_claim_at_several_ranks_is_said_once() -> None:
    document: dict[str, Any] = read_json(EXAMPLES / "digits-ladder-rank" / "claims.json")
    same = [one for one in document["claims"] if one["name"].startswith("learned_ascent_costs_flatness@")]
    low, high = (f"{choose(one['effect'] for one in same):.2f}" for choose in (min, max))
    supported = sum(one["verdict"] == "supported" for one in same)
    assert len(same) == 5 and 0 < supported < 5
    assert document["sentence"].startswith(
        f"Bi-LoRA's minima are {low} to {high} × as sharp as those of full-space SAM cut to a rank: undecided at "
        f"{5 - supported} of 5, supported at {supported}; the fresh auxiliary's minima are "
    )
    assert "_r16" not in document["sentence"] and len(document["sentence"]) < 600


def test_the_readme_states_the_adjusted_p_values_of_its_example() -> None:
    readme = (EXAMPLES.parent / "README.md").read_text()
    stated = re.findall(r"^\| (\d+)\. .*\| ([\d.]+) \| (\w+) \|$", readme, flags=re.MULTILINE)
    claims = read_json(EXAMPLES / "digits" / "claims.json")["claims"]
    judged = [claim for claim in claims if claim["family"] in ("outcome", "controls")]
    assert [(int(number), verdict) for number, _, verdict in stated] == [
        (claim["number"], claim["verdict"]) for claim in judged
    ]
    for (_, p_value, _), claim in zip(stated, judged, strict=True):
        digits = len(p_value.split(".")[1])
        assert round(claim["p_adjusted"], digits) == float(p_value)


@pytest.mark.parametrize("name", [*preset_names(), "flat-lora"])
def test_tables_are_those_of_the_claims(name: str) -> None:
    claims = read_json(EXAMPLES / name / "claims.json")["claims"]
    table = pd.read_csv(EXAMPLES / name / "tables" / "claims.csv")
    assert table["name"].tolist() == [claim["name"] for claim in claims]


def test_the_two_searches_of_the_digits_study_agree() -> None:
    """At radii up to 0.2: a median gap below 2 %, and below 5 % in at least 95 % of the balls."""
    records = read_records(EXAMPLES / "digits" / "records.parquet")
    gaps = records[(records["measure"] == "worst_case_gap") & (records["rho"] <= 0.2)]
    for _, of_space in gaps.groupby("subspace"):
        assert of_space["value"].median() < 0.02
        assert (of_space["value"] < 0.05).mean() >= 0.95


def test_the_digits_study_decides_claims_with_a_search_error_below_the_spread() -> None:
    claims = read_json(EXAMPLES / "digits" / "claims.json")["claims"]
    judged = [claim for claim in claims if claim["family"] in ("outcome", "controls")]
    decided = [claim for claim in judged if claim["verdict"] != "undecided" and claim["search_error"] is not None]
    assert sum(claim["search_error"] < 0.25 * claim["spread"] for claim in decided) >= 5


def test_the_page_of_digits_has_the_fronts_of_every_setting_tried() -> None:
    """The table is that of digits-front, a study of the same task and training."""
    table = EXAMPLES / "digits" / "tuning.csv"
    assert table.read_bytes() == (EXAMPLES / "digits-front" / "tuning.csv").read_bytes()
    chart = fit_chart(read_records(EXAMPLES / "digits" / "records.parquet"), pd.read_csv(table), rho=0.1)
    assert chart is not None and len(chart.plots) == 3
    fronts = [trace for trace in chart.plots[2]["data"] if trace["mode"] == "lines"]
    assert len(fronts) == 4 and all(len(trace["x"]) >= 2 for trace in fronts)
