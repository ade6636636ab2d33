"""The update rule as a setting: of the study, of one column, of a class from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_optimizer
import torch

from analyses.running.preparing import check, prepare
from analyses.study import Cell, Study, StudyError, StudyFolder, parse_study
from analyses.training.runs import load_minimum, read_run, study_task, train_cell
from bilora.optimizers import over_groups
from tests.analyses.mini import QUICK

FULL: dict[str, Any] = {"learning_rate": 0.05, "method": "full"}
PLAIN = {"epochs": 1, "max_steps": 2, "batch_size": 40, "warmup_ratio": 0.0, "schedule": "constant"}


class Moody(torch.optim.SGD):
    """A rule of the user's that fails in a way of its own."""

    def __init__(self, params: Any, **options: Any) -> None:
        raise RuntimeError("not today")


def study_of(column: dict[str, Any], **training: Any) -> Study:
    return Study.model_validate(QUICK | {"methods": {"one": column}, "training": PLAIN | training})


def trained(study: Study, root: Path) -> dict[str, torch.Tensor]:
    folder, cell = StudyFolder(root), Cell("one", 0, 40)
    prepare(study, folder)
    train_cell(study, cell, folder, lambda step, total: None)
    return load_minimum(study, cell, folder).model.state_dict()


def test_steps_are_torchs_own_on_the_whole_batch(tmp_path: Path) -> None:
    optimizer = {"name": "SGD", "options": {"momentum": 0.9, "nesterov": True}}
    study = study_of(FULL | {"optimizer": optimizer, "weight_decay": 0.1})
    found = trained(study, tmp_path)
    task = study_task(study, Cell("one", 0, 40))
    model = task.load_base(StudyFolder(tmp_path).base(study)).train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others}]
    by_hand = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
    for _ in range(2):
        by_hand.zero_grad()
        model(**task.collate(task.dataset("train"))).loss.backward()
        by_hand.step()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-6)


def test_a_column_overrides_the_studys_training(tmp_path: Path) -> None:
    study = study_of(FULL | {"batch_size": 10}, max_steps=None, optimizer={"name": "Adam"})
    assert study.training_of("one").batch_size == 10 and study.training.batch_size == 40
    trained(study, tmp_path)
    assert len(read_run(StudyFolder(tmp_path).run(study, Cell("one", 0, 40)))["history"]["loss"]) == 4


def test_an_auxiliary_ascends_by_the_same_rule(tmp_path: Path) -> None:
    column = {"learning_rate": 0.05, "method": "bilora", "rho": 0.05, "optimizer": {"name": "SGD"}}
    study = study_of(column)
    trained(study, tmp_path)
    factors = load_minimum(study, Cell("one", 0, 40), StudyFolder(tmp_path)).factors["auxiliary"]
    assert any(bool(b.any()) for _, b in factors.values())


def test_names_of_runs_change_with_the_rule_alone() -> None:
    cell = Cell("one", 0, 40)
    plain = study_of(FULL).run_name(cell)
    changed = [
        study_of(FULL, optimizer={"name": "SGD"}),
        study_of(FULL | {"optimizer": {"name": "SGD", "options": {"momentum": 0.9}}}),
        study_of(FULL, schedule="cosine"),
        study_of(FULL, weight_decay=0.1),
    ]
    assert len({plain, *(study.run_name(cell) for study in changed)}) == 5
    without = parse_study(study_of(FULL).model_dump_json(exclude_none=True), source="test")
    assert without.run_name(cell) == plain


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"name": "SDG"}, "cannot import 'SDG'.*did you mean 'SGD'"),
        ({"name": "nowhere:Lion"}, "cannot import 'nowhere:Lion'"),
        ({"name": "torch.nn:Linear"}, r"is no torch\.optim\.Optimizer"),
        ({"name": "SGD", "options": {"momentun": 0.9}}, "SGD refuses"),
        ({"name": "SGD", "options": {"momentum": -1.0}}, "Invalid momentum value"),
        ({"name": "tests.analyses.study.test_optimizers:Moody"}, "Moody refuses {}: not today"),
    ],
)
def test_a_rule_that_is_none_is_refused_before_any_work(optimizer: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        check(study_of(FULL | {"optimizer": optimizer}))


def test_muon_moves_matrices_by_itself_and_vectors_by_its_adamw(tmp_path: Path) -> None:
    rule = {"name": "pytorch_optimizer:Muon", "options": {"adamw_lr": 1e-3}}
    study = study_of(FULL | {"optimizer": rule}, max_steps=1)
    check(study)
    found = trained(study, tmp_path)
    task = study_task(study, Cell("one", 0, 40))
    model = task.load_base(StudyFolder(tmp_path).base(study)).train()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "use_muon": True},
        {"params": [p for p in model.parameters() if p.ndim < 2], "use_muon": False},
    ]
    by_hand = pytorch_optimizer.Muon(groups, lr=0.05, adamw_lr=1e-3)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model(**task.collate(task.dataset("train"))).loss.backward()
    by_hand.step()
    for name, weight in model.state_dict().items():
        if name.endswith("k_proj.bias"):  # has no gradient but rounding: attention does not see it
            continue
        # The directions in which a gradient is hardly more than rounding become as long as the others.
        off = 0.02 if weight.ndim < 2 else 0.2
        assert float((found[name] - weight).norm()) <= off * float((weight - before[name]).norm())


@pytest.mark.parametrize("method", ["lora", "bilora"])
def test_torchs_own_muon_trains_adapters_which_are_matrices(tmp_path: Path, method: str) -> None:
    column = {"learning_rate": 0.01, "method": method, "optimizer": {"name": "Muon"}}
    study = study_of(column | ({"rho": 0.05} if method == "bilora" else {}))
    check(study)
    trained(study, tmp_path)
    factors = load_minimum(study, Cell("one", 0, 40), StudyFolder(tmp_path)).factors["primary"]
    assert all(bool(b.any()) for _, b in factors.values())


def test_torchs_own_muon_is_refused_where_vectors_are_trained() -> None:
    study = study_of(FULL | {"optimizer": {"name": "Muon"}})
    with pytest.raises(StudyError, match=r"moves matrices alone.*pytorch_optimizer:Muon"):
        check(study)
    vector = [torch.nn.Parameter(torch.zeros(3))]
    with pytest.raises(ValueError, match="moves matrices alone, got 1 other"):
        over_groups(torch.optim.Muon, [{"params": vector}], {"lr": 0.1})
