"""Numbers and texts of the tables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analyses.records import is_rise, records_frame
from analyses.records.derive import eigenvalues_by_sign
from reports.claims import claims_table
from reports.page import write_report
from reports.style import mean_interval
from reports.tables import (
    agreement_table,
    cost_table,
    difference_table,
    interval,
    main_table,
    pyhessian_table,
    quantity,
    significant,
    write_tables,
)
from tests.reports.conftest import RHO, SHARPNESS, made_up_records, write_study

pytestmark = pytest.mark.usefixtures("svg_alone")


def test_main_table_has_a_row_a_method_with_mean_and_half_width(records: pd.DataFrame) -> None:
    shown, plain = main_table(records, rho=RHO)
    assert plain["method"].tolist() == list(SHARPNESS)
    rises = records[(records["measure"] == "worst_case_rise") & (records["method"] == "sam")]
    own = rises[(rises["subspace"] == "lora") & np.isclose(rises["rho"], RHO)]["value"]
    mean, half = mean_interval(own)
    sam = plain.set_index("method").loc["sam"]
    assert sam["rise, LoRA (rho=0.1) mean"] == pytest.approx(mean)
    assert sam["rise, LoRA (rho=0.1) half-width"] == pytest.approx(half)
    assert shown.set_index("method").loc["SAM", "rise, LoRA (rho=0.1)"] == f"{mean:.3f} ± {half:.3f}"
    assert plain["test accuracy (%) mean"].between(87, 91).all()


def test_the_best_is_bold_where_the_seeds_can_tell(tmp_path: Path) -> None:
    def rows(method: str, shift: float) -> list[dict[str, Any]]:
        noise = [0.00, 0.02, -0.01, 0.01]
        fixed = {"study": "s", "method": method, "train_size": 100, "run": "r"}
        values = {"train_loss": 0.1, "test_loss": 0.5 - shift, "test_accuracy": 0.8 + shift}
        return [
            fixed | {"seed": seed, "measure": name, "value": value + noise[seed] * (1 + shift)}
            for name, value in values.items()
            for seed in range(4)
        ]

    shown, _ = main_table(records_frame([*rows("lora", 0.0), *rows("sam", 0.1), *rows("bilora", 0.001)]), rho=RHO)
    shown = shown.set_index("method")
    assert shown.loc["SAM", "test accuracy (%)"].startswith("**90.6 ±") and shown.loc["SAM", "test loss"].endswith("**")
    assert not shown.drop("SAM").map(lambda text: "**" in text).any().any()
    assert "*" not in shown.loc["SAM", "train loss"]
    write_tables({"main": (shown.reset_index(), shown)}, tmp_path)
    assert r"\textbf{90.6 $\pm$" in (tmp_path / "main.tex").read_text()
    assert "**90.6 ± " in (tmp_path / "main.md").read_text()


def test_one_seed_has_a_mean_and_no_interval() -> None:
    shown, _ = main_table(made_up_records(("bilora",), num_seeds=1), rho=RHO)
    assert str(shown.loc[0, "test loss"]).endswith("± –")
    elsewhere, _ = main_table(made_up_records(("bilora",), num_seeds=1), rho=0.3)
    assert elsewhere.loc[0, "rise, full (rho=0.3)"] == "–"


def test_costs_are_relative_to_lora(records: pd.DataFrame) -> None:
    shown, plain = cost_table(records)
    ratios = plain.set_index("method")["step_over_lora"]
    assert ratios["lora"] == 1
    assert ratios["lora_sam"] == pytest.approx(2, rel=0.05)
    assert shown.set_index("method").loc["SAM", "gradient passes"] == "2"
    part = records.assign(value=records["value"].where(records["measure"] != "gradient_passes", 1.28))
    assert set(cost_table(part)[0]["gradient passes"]) == {"1.28"}  # a pass on a part of the batch
    without, _ = cost_table(records[records["method"] == "bilora"])
    assert without.loc[0, "over LoRA"] == "–"


def test_agreement_measures_the_distance_from_lanczos(records: pd.DataFrame) -> None:
    shown, plain = agreement_table(records)
    rows = plain.set_index("algorithm")
    assert rows["eigenpairs"].to_dict() == {"lanczos": 225, "power_iteration": 225, "pyhessian": 5}
    difference = rows["largest relative difference from Lanczos"]
    assert difference["lanczos"] == 0
    assert difference["power_iteration"] == pytest.approx(1e-5, rel=1e-6)
    assert difference["pyhessian"] == pytest.approx(2e-4, rel=1e-6)
    assert shown["residual at most 0.05"].tolist() == ["100.0 %"] * 3


def test_an_unresolved_pair_is_counted_and_not_compared(records: pd.DataFrame) -> None:
    records = records.copy()
    pair = (records["algorithm"] == "power_iteration") & (records["method"] == "sam") & (records["seed"] == 0)
    pair &= records["index"] == 5
    records.loc[pair & (records["measure"] == "hessian_eigenvalue"), "value"] *= -1
    records.loc[pair & (records["measure"] == "hessian_residual"), "value"] = 1.7
    row = agreement_table(records)[1].set_index("algorithm").loc["power_iteration"]
    assert row["largest relative difference from Lanczos"] == pytest.approx(1e-5, rel=1e-6)
    assert row["largest residual"] == 1.7
    assert row["residual at most 0.05"] == pytest.approx(224 / 225)


def test_agreement_without_lanczos_or_residuals(records: pd.DataFrame) -> None:
    power = records[(records["algorithm"] == "power_iteration") & (records["measure"] == "hessian_eigenvalue")]
    shown, _ = agreement_table(power)
    assert shown.loc[0, "largest relative difference from Lanczos"] == "–"
    assert shown.loc[0, "largest residual"] == "–"
    assert agreement_table(records.iloc[:0])[0].empty


def test_pyhessian_cell_is_shown_eigenvalue_by_eigenvalue(records: pd.DataFrame) -> None:
    shown, plain = pyhessian_table(records)
    assert plain["index"].tolist() == [1, 2, 3, 4, 5]
    assert set(plain["method"]) == {"bilora"}
    np.testing.assert_allclose(plain["relative_difference"], 2e-4, rtol=1e-6)
    assert shown.loc[0, "run"] == "Bi-LoRA, seed 0, 100 examples"
    assert pyhessian_table(records[records["algorithm"] != "pyhessian"])[0].empty
    assert pyhessian_table(records.iloc[:0])[0].empty


def test_claims_table_copes_with_undefined_numbers(claims: dict[str, Any]) -> None:
    shown, plain = claims_table(claims["claims"])
    assert shown["claim"].tolist() == plain["number"].astype(str).tolist() == ["1", "2", "3", "4", "5"]
    assert shown["effect"].tolist() == ["-0.1 nats", "0.1 nats", "0.5 nats", "–", "1 nats"]
    assert shown["95 % interval"].tolist() == ["[-0.2, -0.05]", "[0.05, 0.2]", "unbounded", "–", "counted"]
    assert shown["adjusted p"].tolist()[-1] == "–"


def test_texts_of_numbers() -> None:
    assert [significant(value) for value in (None, math.nan, math.inf, 0.012345)] == ["–", "–", "unbounded", "0.0123"]
    assert interval(-math.inf, 1.0) == "unbounded"
    assert interval(0.1, 0.25) == "[0.1, 0.25]"
    assert [quantity(value, "nats") for value in (None, math.inf, 2.0)] == ["–", "unbounded", "2 nats"]


def test_written_files_keep_numbers_and_escape_markup(tmp_path: Path) -> None:
    plain = pd.DataFrame({"method": ["a_b"], "value": [1 / 3]})
    shown = pd.DataFrame({"method": [r"a_b & {50 %} $x^2$ \n"], "value|unit": ["0.3 ± 0.1"]})
    write_tables({"one": (shown, plain), "none": (pd.DataFrame(), pd.DataFrame())}, tmp_path)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "one.csv"), plain)
    latex = (tmp_path / "one.tex").read_text()
    assert r"a\_b \& \{50 \%\} \$x\textasciicircum{}2\$ \textbackslash{}n & 0.3 $\pm$ 0.1 \\" in latex
    assert latex.startswith("\\begin{tabular}{lr}\n\\toprule\n")
    assert (tmp_path / "one.md").read_text().splitlines()[0] == r"| method | value\|unit |"
    assert {path.name for path in tmp_path.iterdir()} == {"one.md", "one.tex", "one.csv"}
    write_tables({"one": (pd.DataFrame(), pd.DataFrame())}, tmp_path)
    assert list(tmp_path.iterdir()) == []  # what has no rows any more leaves nothing behind


def test_differences_are_paired_by_seed() -> None:
    rows = []
    for seed, level in enumerate((0.5, 0.7, 0.6)):
        for method, gain in (("lora", 0.0), ("bilora", 0.02)):
            base = {"study": "s", "method": method, "seed": seed, "train_size": 10}
            rows.append(
                base | {"measure": "test_accuracy", "value": level + gain + 0.001 * seed * (method == "bilora")}
            )
    shown, plain = difference_table(records_frame(rows), rho=0.1)
    assert list(shown["method"]) == ["Bi-LoRA"]
    assert shown["test accuracy (points)"][0] == "2.1 ± 0.2"
    assert plain["test accuracy (points) pairs"][0] == 3
    assert shown["rise, full (rho=0.1)"][0] == "–"


def test_differences_in_a_study_of_ranks_are_to_lora_of_the_same_rank(records: pd.DataFrame) -> None:
    few = records[records["method"].isin(["lora", "bilora"])]
    ranks = [few.assign(method=few["method"] + f"_r{rank}", value=few["value"] * rank) for rank in (1, 2)]
    _, plain = difference_table(pd.concat(ranks), rho=RHO)
    assert plain["method"].tolist() == ["bilora_r1", "bilora_r2"]
    ratios = plain["rise, full (rho=0.1) ratio"]
    assert ratios[1] == pytest.approx(ratios[0]) and ratios[0] < 1


def test_sam_over_all_weights_is_compared_with_full_fine_tuning(records: pd.DataFrame) -> None:
    shown, plain = difference_table(records, rho=RHO)
    of = plain.set_index("method")
    assert of.loc["sam", "baseline"] == "full" and of.loc["lora_sam_full", "baseline"] == "lora"
    rises = records[is_rise(records, "full", RHO)].pivot_table(index="seed", columns="method", values="value")
    logs = np.log(rises["sam"] / rises["full"])
    mean, half = mean_interval(logs)
    row = of.loc["sam", [f"rise, full (rho=0.1) {name}" for name in ("ratio", "low", "high")]]
    assert row.tolist() == pytest.approx([math.exp(value) for value in (mean, mean - half, mean + half)])
    assert " × [" in shown.set_index("method").loc["SAM", "rise, full (rho=0.1)"]


def test_a_seed_counts_once_whatever_the_number_of_sizes(records: pd.DataFrame) -> None:
    few = records[records["method"].isin(["lora", "bilora"])]
    once, twice = (
        difference_table(pd.concat([few.assign(train_size=size) for size in sizes]), rho=RHO)[1]
        for sizes in ([100], [50, 100])
    )
    name = "rise, full (rho=0.1)"
    assert once[f"{name} low"].tolist() == pytest.approx(twice[f"{name} low"].tolist())


def test_the_largest_eigenvalue_is_not_the_one_of_largest_magnitude() -> None:
    """-5, 4 in one run and 6, -1 in another: their largest eigenvalues are 4 and 6, not -5 and 6."""
    rows = [
        {"method": "lora", "seed": seed, "train_size": 9, "measure": "hessian_eigenvalue", "algorithm": "lanczos",
         "index": index, "value": value}
        for seed, values in enumerate([(-5.0, 4.0), (6.0, -1.0)]) for index, value in enumerate(values, 1)
    ]  # fmt: skip
    rows += [{"method": "lora", "seed": 0, "train_size": 9, "measure": "train_loss", "value": 1.0}]
    ranked = eigenvalues_by_sign(records_frame(rows))
    assert ranked["component"].tolist() == ["negative", "positive", "positive", "negative"]
    assert ranked["index"].tolist() == [1, 1, 1, 1]
    assert main_table(records_frame(rows), rho=RHO)[1]["largest eigenvalue mean"].tolist() == [5.0]


def test_main_table_has_a_row_a_size_when_there_are_several(records: pd.DataFrame) -> None:
    few = records[records["method"].isin(["lora", "bilora"])]
    smaller = few.assign(train_size=20, value=few["value"] / 2)
    shown, plain = main_table(pd.concat([few, smaller]), rho=RHO)
    assert list(zip(shown["method"], shown["examples"], strict=True)) == [
        ("LoRA", 20),
        ("Bi-LoRA", 20),
        ("LoRA", 100),
        ("Bi-LoRA", 100),
    ]
    rises = plain["rise, full (rho=0.1) mean"]
    assert rises[0] == pytest.approx(rises[2] / 2)


def test_columns_of_what_a_study_does_not_measure_are_left_out(tmp_path: Path, claims: dict[str, Any]) -> None:
    records = made_up_records(("lora", "bilora"), num_seeds=2)
    folder = write_study(tmp_path, records[records["subspace"].fillna("full") != "lora"], claims, [])
    write_report(folder)
    main = pd.read_csv(folder / "tables" / "main.csv")
    assert "rise, full (rho=0.1) mean" in main and not any("LoRA" in name for name in main)
    assert "rise, LoRA" not in (folder / "tables" / "main.md").read_text()
