"""Comparing minima in memory: what is measured, and that the comparison adds nothing of its own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from analyses import compare
from analyses.comparing import Comparison
from analyses.study import StudyError
from bilora import BiLoraConfig, attach
from landscape import EmpiricalRisk
from tests.analyses.comparing.nets import QUICK, examples, minimum_of

pytestmark = pytest.mark.usefixtures("svg_alone")


@pytest.fixture(scope="module")
def three() -> Comparison:
    return compare({name: minimum_of(seed) for seed, name in enumerate("abc")}, examples(), examples()[:1], **QUICK)


def value(found: Comparison, **where: Any) -> float:
    chosen = found.records
    for column, wanted in where.items():
        chosen = chosen[chosen[column] == wanted]
    (only,) = chosen["value"]
    return float(only)


def dense_hessian(model: nn.Module) -> torch.Tensor:
    """Of the mean cross-entropy, in float64, by torch.func alone."""
    parameters = {name: weight.detach().double() for name, weight in model.named_parameters()}
    inputs = torch.cat([x for x, _ in examples()]).double()
    targets = torch.cat([y for _, y in examples()])
    sizes = [weight.numel() for weight in parameters.values()]

    def loss(theta: torch.Tensor) -> torch.Tensor:
        parts = dict(zip(parameters, theta.split(sizes), strict=True))
        shaped = {name: part.view_as(parameters[name]) for name, part in parts.items()}
        return nn.functional.cross_entropy(functional_call(model, shaped, (inputs,)), targets)

    return torch.func.hessian(loss)(torch.cat([weight.flatten() for weight in parameters.values()]))


def test_numbers_are_those_of_a_dense_hessian_and_of_torchs_own_loss(three: Comparison) -> None:
    model = minimum_of(1)
    inputs, targets = (torch.cat(parts) for parts in zip(*examples(), strict=True))
    with torch.no_grad():
        logits = model(inputs)
    assert value(three, method="b", measure="train_loss") == pytest.approx(
        float(nn.functional.cross_entropy(logits, targets)), rel=1e-5
    )
    accuracy = float((logits.argmax(1) == targets).double().mean())
    assert value(three, method="b", measure="train_accuracy") == pytest.approx(accuracy)
    eigenvalues = torch.linalg.eigvalsh(dense_hessian(model))
    largest = eigenvalues[eigenvalues.abs().argmax()]
    assert value(three, method="b", measure="hessian_eigenvalue") == pytest.approx(float(largest), rel=1e-3)
    trace = three.records.query("method == 'b' and measure == 'hessian_trace'").iloc[0]
    assert abs(trace["value"] - float(eigenvalues.sum())) < 5 * trace["stderr"] + 1e-6
    distance = math.sqrt(
        sum(
            float((p.detach().double() - q.detach().double()).square().sum())
            for p, q in zip(minimum_of(0).parameters(), minimum_of(1).parameters(), strict=True)
        )
    )
    assert value(three, method="a", other="b", measure="distance") == pytest.approx(distance)


def test_balls_of_other_shapes_are_as_large_for_a_random_perturbation(three: Comparison) -> None:
    rises = three.records.query("measure == 'worst_case_rise'").drop_duplicates("ball").set_index("ball")["rho"]
    norms = [math.sqrt(sum(float(p.detach().square().sum()) for p in minimum_of(s).parameters())) for s in range(3)]
    mean = math.prod(norms) ** (1 / 3)
    size = sum(p.numel() for p in minimum_of(0).parameters())
    assert rises["l2"] == 0.1
    assert rises["relative"] == pytest.approx(0.1 / mean, rel=5e-3)
    assert rises["elementwise"] == pytest.approx(0.1 * math.sqrt(size) / mean, rel=5e-3)


def test_a_path_begins_and_ends_at_the_minima_and_its_barrier_is_above_the_chord(three: Comparison) -> None:
    for kind in ("straight line", "curve"):
        path = three.records.query("measure == 'path_loss' and method == 'a' and other == 'c' and subspace == @kind")
        losses = path.sort_values("alpha")["value"].to_numpy(float)
        assert losses[0] == pytest.approx(value(three, method="a", measure="train_loss"), rel=1e-5)
        assert losses[-1] == pytest.approx(value(three, method="c", measure="train_loss"), rel=1e-5)
        barrier = value(three, method="a", other="c", measure="loss_barrier", subspace=kind)
        assert barrier == pytest.approx(max(0.0, losses[1] - (losses[0] + losses[-1]) / 2), abs=1e-9)


def test_the_plane_holds_three_minima_at_their_losses(three: Comparison) -> None:
    places = three.records.query("measure == 'plane_minimum'").set_index("method")[["alpha", "beta"]].astype(float)
    apart = {("a", "b"), ("a", "c"), ("b", "c")}
    for one, other in apart:
        expected = value(three, method=one, other=other, measure="distance")
        assert math.dist(places.loc[one], places.loc[other]) == pytest.approx(expected, rel=1e-4)
    assert three.records.query("measure == 'plane_variance'")["value"].sum() == pytest.approx(1)
    finer = {**QUICK, "what": ["plane"], "plane_points": 41}
    found = compare({name: minimum_of(seed) for seed, name in enumerate("abc")}, examples(), **finer)
    grid = found.records.query("measure == 'plane_loss'")[["alpha", "beta", "value"]].astype(float)
    for name in "abc":  # the nearest point of the grid
        squares = (grid[["alpha", "beta"]] - places.loc[name]).pow(2).sum(axis=1)
        at = grid.loc[squares.idxmin()]
        assert at["value"] == pytest.approx(value(three, method=name, measure="train_loss"), abs=0.05)


def test_a_minimum_and_itself_differ_by_exactly_nothing() -> None:
    found = compare({"a": minimum_of(0), "again": minimum_of(0)}, examples(), **QUICK)
    wide = found.table
    assert (wide["a"] - wide["again"]).abs().max() == 0
    pair = found.pairs.iloc[0]
    assert pair["distance"] == 0 and pair["barrier, straight line"] == 0 and pair["barrier, curve"] == 0


def test_another_order_of_the_minima_is_another_order_of_the_columns(three: Comparison) -> None:
    other = compare({name: minimum_of(ord(name) - 97) for name in "cab"}, examples(), examples()[:1], **QUICK)
    assert list(other.table.columns) == ["c", "a", "b"]
    pd.testing.assert_frame_equal(other.table[["a", "b", "c"]], three.table, check_exact=True)
    pd.testing.assert_frame_equal(other.pairs, three.pairs, check_exact=True)
    plane = [one.records.query("measure == 'plane_loss'")["value"].tolist() for one in (three, other)]
    assert plane[0] == plane[1]


def test_models_and_modes_are_left_as_they_were() -> None:
    model = minimum_of(0).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compare({"a": model}, examples(), **QUICK)
    assert model.training and all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_adapters_are_measured_in_their_layers_and_aligned() -> None:
    models = {}
    for seed in (0, 1):
        models[f"run {seed}"] = attach(minimum_of(3), BiLoraConfig(r=2, target_modules=["0", "2"]), seed=seed)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in models[f"run {seed}"].parameters():
                parameter.add_(0.3 * torch.randn_like(parameter) * parameter.requires_grad)
    found = compare(models, examples(), **QUICK | {"balls": ["l2"]})
    assert not found.failures
    rises = found.records.query("measure == 'worst_case_rise' and method == 'run 0'")
    assert set(rises["subspace"]) == {"full", "lora", "auxiliary", "random"}
    assert "dominant curvature in the primary's columns (%)" in found.table.index
    plain = {name: model.merge_and_unload(adapter_names=["primary"]) for name, model in models.items()}
    merged = compare(plain, examples(), **QUICK | {"balls": ["l2"], "params": r"\d\.weight", "what": ["sharpness"]})
    for name in models:
        assert value(merged, method=name, measure="worst_case_rise") == value(
            found, method=name, measure="worst_case_rise", subspace="full"
        )


def test_a_damaged_file_is_measured_again(tmp_path: Path) -> None:
    minima, options = {"a": minimum_of(0)}, QUICK | {"what": ["fit", "sharpness"]}
    first = compare(minima, examples(), out=tmp_path / "out", **options)
    for kind in ("sharpness-*.parquet", "worst_case-*.safetensors"):
        path = next(iter(tmp_path.glob(f"out/measurements/a-*/{kind}")))
        path.write_bytes(path.read_bytes()[:-50])
    again = compare(minima, examples(), out=tmp_path / "out", **options)
    assert not again.failures
    pd.testing.assert_frame_equal(first.records.drop(columns="seconds"), again.records.drop(columns="seconds"))


def test_what_is_there_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minima = {"a": minimum_of(0), "b": minimum_of(1)}
    options = QUICK | {"what": ["fit", "curvature", "paths"]}
    first = compare(minima, examples(), out=tmp_path / "out", **options)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("analyses.measures.curvature.lanczos", refuse)
    monkeypatch.setattr("analyses.comparing.between.linear_path", refuse)
    again = compare(minima, examples(), out=tmp_path / "out", **options)
    assert not again.failures
    pd.testing.assert_frame_equal(first.records, again.records)
    moved = compare(minima | {"b": minimum_of(2)}, examples(), out=tmp_path / "out", **options)
    assert set(moved.failures) == {"b: curvature", "a and b: path"}  # other weights are another minimum


def test_what_is_there_is_not_taken_for_minima_of_other_names(tmp_path: Path) -> None:
    options = QUICK | {"what": ["paths"]}
    compare({"a": minimum_of(0), "b": minimum_of(1)}, examples(), out=tmp_path / "out", **options)
    renamed = compare({"a": minimum_of(0), "c": minimum_of(1)}, examples(), out=tmp_path / "out", **options)
    assert renamed.pairs[["a", "b"]].to_numpy().tolist() == [["a", "c"]]


def test_three_minima_of_which_two_are_one_have_no_plane() -> None:
    minima = {"a": minimum_of(0), "again": minimum_of(0), "b": minimum_of(1)}
    found = compare(minima, examples(), **QUICK | {"what": ["plane"]})
    assert not found.failures and found.records.empty


def test_one_measurement_that_breaks_takes_no_other_down(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*args: object, **kwargs: object) -> None:
        raise ArithmeticError("no such number")

    monkeypatch.setattr("analyses.measures.spectrum.estimate_trace", breaks)
    found = compare({"a": minimum_of(0)}, examples(), **QUICK)
    assert list(found.failures) == ["a: spectrum"] and "no such number" in found.failures["a: spectrum"]
    assert value(found, measure="hessian_eigenvalue") != 0


def test_the_page_the_tables_and_the_notebook_show_names_as_text(tmp_path: Path) -> None:
    names = {"<script>alert(1)</script>": minimum_of(0), "b|c": minimum_of(1)}
    found = compare(names, examples(), out=tmp_path / "out", **QUICK | {"balls": ["l2"]})
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert "<script>" not in found._repr_html_() and r"b\|c" in found.to_markdown()
    drawn = {path.stem for path in (tmp_path / "out" / "figures").glob("*.png")}
    assert drawn == {"rises", "eigenvalues", "spectral_density", "paths"}
    assert (tmp_path / "out" / "tables" / "summary.csv").exists()


def test_a_result_prints_briefly_and_draws_itself(three: Comparison) -> None:
    assert len(repr(three)) < 100 and "a, b, c" in repr(three)
    backend = mpl.get_backend()
    axes = three.plot()
    assert [line.get_label() for line in axes.get_lines()] == ["a", "b", "c"]
    assert mpl.get_backend() == backend and three.frame is three.records


def test_different_fits_scales_and_searches_are_said() -> None:
    trained, large = minimum_of(0), minimum_of(0)
    risk = EmpiricalRisk(trained, examples())
    with torch.no_grad():
        for parameter, part in zip(
            trained.parameters(), risk.layout.split(-2.0 * risk.gradient()).values(), strict=True
        ):
            parameter.add_(part)
        for parameter in large.parameters():
            parameter.mul_(3)
    text = " ".join(compare({"fit": trained, "large": large}, examples(), **QUICK).caveats)
    assert "fit the data differently" in text and "mislead across scales" in text and "not stationary" in text


def test_batch_statistics_of_their_own_are_renewed_between_minima() -> None:
    def normed(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
        with torch.no_grad():
            model(5 + torch.randn(50, 4))
        return model.eval()

    found = compare({"a": normed(0), "b": normed(1)}, examples(), **QUICK | {"what": ["paths"], "curve_steps": 0})
    assert "batch statistics" in found.caveats[0]
    ends = found.records.query("measure == 'path_loss'").sort_values("alpha")["value"].to_numpy(float)[[0, -1]]
    for model, loss in zip((normed(0), normed(1)), ends, strict=True):
        inputs, targets = (torch.cat(parts) for parts in zip(*examples(), strict=True))
        model[1].train()  # one batch of all the data
        expected = nn.functional.cross_entropy(model(inputs), targets)
        assert loss == pytest.approx(float(expected), rel=0.1)


@pytest.mark.parametrize(
    ("minima", "changes", "message"),
    [
        ({}, {}, "at least one"),
        ({"a": "nowhere"}, {}, "nowhere does not exist"),
        ({"a": 3}, {}, "got int"),
        ({"a": minimum_of(0), "b": nn.Linear(4, 3)}, {}, "one architecture; 0.weight is (6, 4) in 'a' and none in 'b'"),
        ({"a": minimum_of(0)}, {"radii": [0.0]}, "radii.0: Input should be greater than 0"),
        ({"a": minimum_of(0)}, {"radii": "wide"}, "radii.0: Input should be a valid number"),
        ({"a": minimum_of(0)}, {"rho": 0.1}, "rho: there is no such option; did you mean 'radii'?"),
        (
            {"a": minimum_of(0)},
            {"params": lambda name: True},
            "params: expected a regular expression or a list of names",
        ),
        ([minimum_of(0)], {}, "minima: expected models by name, got a list"),
        ({"a": minimum_of(0)}, {"radius": 0.1}, "radius: there is no such option; did you mean 'radii'?"),
        ({"a": minimum_of(0)}, {"balls": ["relative"]}, "l2 among the balls"),
        ({"a": minimum_of(0)}, {"balls": ["l2", "l3"]}, "balls.1: Input should be 'l2', 'relative'"),
        ({"a": minimum_of(0)}, {"what": ["everything"]}, "what.0: Input should be 'fit'"),
        ({"a": minimum_of(0)}, {"params": "nothing"}, "params"),
        ({"a": minimum_of(0)}, {"worst_case": {"radii": [1.0]}}, "the effort of the searches alone, got radii"),
        ({"a": minimum_of(0)}, {"worst_case": {"stpes": 1}}, "stpes"),
        ({"a": minimum_of(0)}, {"device": "tpu"}, "device"),
        ({"a": nn.Linear(5, 3)}, {}, "the model and the batches do not fit"),
    ],
)
def test_wrong_calls_are_refused_before_any_work(minima: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError) as refused:
        compare(minima, examples(), **QUICK | changes)
    assert message in str(refused.value)


def test_wrong_batches_and_weights_are_refused() -> None:
    with pytest.raises(StudyError, match="train examples: batches: expected an iterable of batches"):
        compare({"a": minimum_of(0)}, examples()[0][0])
    with pytest.raises(StudyError, match="got a pair of tensors; put it into a list"):
        compare({"a": minimum_of(0)}, examples()[0])
    dropping = DataLoader(TensorDataset(*examples()[0]), batch_size=2, drop_last=True)
    with pytest.raises(StudyError, match=r"test examples: .*use drop_last=False"):
        compare({"a": minimum_of(0)}, examples(), dropping)
    broken = minimum_of(0)
    with torch.no_grad():
        broken[0].bias[1] = math.nan
    with pytest.raises(StudyError, match=r"0\.bias holds numbers that are not finite"):
        compare({"a": broken}, examples())


def test_somebody_elses_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StudyError, match="not a comparison's folder"):
        compare({"a": minimum_of(0)}, examples(), out=tmp_path, **QUICK)


def test_what_was_asked_for_and_does_not_apply_is_said() -> None:
    asked = {**QUICK, "what": ["alignment", "plane", "paths"]}
    found = compare({"a": minimum_of(0), "b": minimum_of(1)}, examples(), **asked)
    said = "\n".join(found.caveats)
    assert "plane: expected three minima or more" in said and "alignment: none of the minima has" in said
    assert "paths:" not in said
    assert "paths: expected two minima" in "\n".join(compare({"a": minimum_of(0)}, examples(), **asked).caveats)
    default = {key: value for key, value in QUICK.items() if key != "what"}
    assert "expected" not in "\n".join(compare({"a": minimum_of(0)}, examples(), **default).caveats)
    with pytest.raises(ValueError, match="plot: the comparison measured no worst-case rises"):
        found.plot()


def test_single_values_are_lists_of_one() -> None:
    one = compare({"a": minimum_of(0)}, examples(), **{**QUICK, "radii": 0.1, "what": "fit"})
    assert {"train_loss", "train_accuracy"} <= set(one.records["measure"])


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(), nn.functional.cross_entropy, nn.CrossEntropyLoss(torch.ones(3))]
)
def test_the_default_loss_given_by_name_keeps_accuracies(loss: Any) -> None:
    plain, named = (
        compare({"a": minimum_of(0)}, examples(), loss=given, **{**QUICK, "what": ["fit"]}) for given in (None, loss)
    )
    assert value(named, measure="train_accuracy") == value(plain, measure="train_accuracy")
