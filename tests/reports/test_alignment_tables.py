"""Tables of subspace alignment, on made-up shares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest

from analyses.records import records_frame
from reports.alignment_tables import alignment_table, angle_table, inside_table, module_table

OWN = {"lora": "primary", "bilora": "auxiliary"}


def _records(rows: Iterator[dict[str, Any]]) -> pd.DataFrame:
    return records_frame([{"study": "made-up", "train_size": 10} | row for row in rows])


def _runs() -> Iterator[tuple[str, dict[str, Any]]]:
    for seed in range(3):
        for method in OWN:
            yield method, {"method": method, "seed": seed}


def test_alignment_is_of_the_own_space_and_weighted() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for method, run in _runs():
            column = run | {"subspace": "column"}
            for other, value in {OWN[method]: 0.4, "primary": 0.3, "gradient": 0.7}.items():
                pooled = column | {"layer": "all", "component": other}
                yield pooled | {"measure": "alignment_weighted", "value": value}
                # k = 0 is the worst-case perturbation, which is no eigenvector.
                for k in (0, 1, 2):
                    yield pooled | {"measure": "alignment_expected", "index": k, "value": 0.1 * (k > 0)}
            exchanged = column | {"layer": "16", "component": OWN[method]}
            yield exchanged | {"measure": "pairing_expected", "value": 0.15}
            yield exchanged | {"measure": "pairing_p_value", "value": 0.01 * (1 + run["seed"])}

    shown, plain = alignment_table(_records(rows()))
    table = plain.set_index("method")
    assert table.loc["bilora", "own space"] == pytest.approx(40) and table.loc["bilora", "primary"] == pytest.approx(30)
    assert table.loc["lora", "own space"] == pytest.approx(30)
    assert table.loc["bilora", "chance"] == pytest.approx(10)
    assert table.loc["bilora", "of other layers"] == pytest.approx(15)
    assert table.loc["bilora", "p, layers"] == pytest.approx(0.02)
    assert shown["optimum"].tolist() == ["–", "–"]


def test_what_is_inside_is_a_share_of_the_full_at_the_same_run_and_radius() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for method, run in _runs():
            eigenvalue = run | {"measure": "restricted_eigenvalue_ratio", "component": OWN[method], "index": 1}
            yield eigenvalue | {"subspace": "column", "value": 0.25}
            yield eigenvalue | {"subspace": "tangent", "value": 0.5}
            for rho, scale in ((0.1, 1.0), (0.2, 100.0)):
                full = scale * (1 + run["seed"])
                rises = {"full": full} | ({"auxiliary": 0.6 * full, "random": 0.2 * full} if method == "bilora" else {})
                for subspace, value in rises.items():
                    yield run | {"measure": "worst_case_rise", "rho": rho, "subspace": subspace, "value": value}

    shown, plain = inside_table(_records(rows()), rho=0.1)
    table = plain.set_index("method").loc["bilora"]
    assert table.tolist() == pytest.approx([25, 50, 60, 20])
    assert shown.set_index("method").loc["Bi-LoRA", "rise, tangent space (rho=0.1)"] == "60.0 ± 0.0"
    assert shown.set_index("method").loc["LoRA", "rise, tangent space (rho=0.1)"] == "–"


def test_modules_are_averaged_over_blocks_and_shown_beside_chance() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for _, run in _runs():
            for layer, share in (("0.query", 0.2), ("1.query", 0.4), ("0.up", 0.1), ("all", 0.9)):
                common = run | {"subspace": "column", "layer": layer, "index": 1}
                yield common | {"measure": "captured_energy", "value": share}
                yield common | {"measure": "captured_energy_null", "value": 0.06}

    shown, plain = module_table(_records(rows()))
    assert list(shown.columns) == ["method", "query", "up"]
    assert shown.loc[0, "query"] == "30.0 ± 0.0 (6.0)"
    assert plain.loc[1, "up"] == pytest.approx(10) and plain.loc[1, "up, chance"] == pytest.approx(6)


def test_angles_are_those_of_the_own_space_or_of_none() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for method, run in _runs():
            for layer, angle in (("0.query", 40.0), ("1.query", 60.0)):
                common = run | {"subspace": "column", "layer": layer, "measure": "principal_angle_smallest"}
                yield common | {"component": "primary", "value": angle}
                yield common | {"component": OWN[method], "value": angle}
            # An auxiliary at zero has captured shares of 0 and no angles.
            ended = run | {"method": "bilora_cosine", "subspace": "column"}
            yield ended | {"component": "auxiliary", "layer": "all", "index": 1, "measure": "alignment", "value": 0.0}
            yield ended | {"component": "primary", "layer": "0", "measure": "principal_angle_smallest", "value": 1.0}

    shown, plain = angle_table(_records(rows()))
    assert plain["smallest angle (°)"].tolist()[:2] == [50, 50]
    assert shown.set_index("method").loc["Bi-LoRA, rho by cosine", "smallest angle (°)"] == "–"
