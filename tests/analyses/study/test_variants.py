"""Columns of a study that are variants of a method, and the presets that use them."""

from __future__ import annotations

import pytest
import yaml

from analyses.running.audit import check
from analyses.study import Cell, Study, StudyError, load_preset, parse_study
from analyses.training.runs import method_config

SWEEPS = ["digits-ablation", "digits-lowdata", "digits-rank"]


@pytest.mark.parametrize("name", SWEEPS)
def test_sweeps_fit_their_task_and_every_cell_has_a_name_of_its_own(name: str) -> None:
    study = load_preset(name)
    check(study)
    cells = list(study.cells())
    assert len({study.run_name(cell) for cell in cells}) == len(cells)
    configs = {name: method_config(study, name) for name in study.methods}
    assert len({config.model_dump_json() for config in configs.values()}) == len(configs)


def test_a_variant_differs_from_its_method_where_it_says_so() -> None:
    ablation, rank = load_preset("digits-ablation"), load_preset("digits-rank")
    plain = method_config(ablation, "bilora")
    assert method_config(ablation, "bilora_noclip") == plain.model_copy(update={"clip": "none"})
    assert method_config(ablation, "bilora_share_a") == plain.model_copy(update={"share": "A"})
    small, large = method_config(rank, "bilora_r1"), method_config(rank, "bilora_r16")
    assert (small.r, large.r, small.alpha / small.r, large.alpha / large.r) == (1, 16, 2.0, 2.0)
    assert plain == method_config(load_preset("digits"), "bilora")


def test_the_unit_of_a_tasks_losses_is_a_word_and_no_setting_of_a_run() -> None:
    named, silent = (
        parse_study(yaml.safe_dump(load_preset("digits").model_dump(mode="json") | {"task": task}), source="test")
        for task in ({"name": "mine.tasks:Counts", "unit": "square metres"}, {"name": "mine.tasks:Counts"})
    )
    assert named.base_name() == silent.base_name() and named.cost_name() == silent.cost_name()
    assert [named.run_name(cell) for cell in named.cells()] == [silent.run_name(cell) for cell in silent.cells()]


def test_sizes_of_the_low_data_sweep_take_the_same_number_of_steps() -> None:
    study = load_preset("digits-lowdata")
    assert {study.training.num_steps(size) for size in study.train_sizes} == {240}
    assert load_preset("digits").training.num_steps(100) == 240


def test_new_settings_leave_the_names_of_old_runs_alone() -> None:
    study = load_preset("digits")
    cell = Cell("bilora", 0, 100)
    text = study.model_dump(mode="json", exclude_none=True)
    assert parse_study(yaml.safe_dump(text), source="again").run_name(cell) == study.run_name(cell)
    settings = study.methods["bilora"].model_copy(update={"share": "A"})
    changed = study.model_copy(update={"methods": study.methods | {"bilora": settings}})
    assert changed.run_name(cell) != study.run_name(cell)


@pytest.mark.parametrize(
    ("methods", "message"),
    [({"mine": {}}, "under `method`"), ({"mine": {"method": "nope"}}, "unknown method 'nope'"), ({"a b": {}}, "a b")],
)
def test_a_column_needs_a_method_and_a_plain_name(methods: dict, message: str) -> None:
    text = load_preset("digits-rank").model_dump(mode="json", exclude_none=True)
    text["methods"] = {name: {"learning_rate": 0.1} | settings for name, settings in methods.items()}
    with pytest.raises(StudyError, match=message):
        parse_study(yaml.safe_dump(text), source="study")


def test_the_fit_to_match_is_that_of_a_tuned_method() -> None:
    study = load_preset("digits-ladder").model_dump(mode="json")
    design = {
        "seeds": [1],
        "design": {"learning_rate": [0.001, 0.1], "rho": [0.01, 1.0], "auxiliary_lr_ratio": [0.1, 1.0]},
    }
    assert Study.model_validate(study | {"tuning": design | {"fit_like": "lora"}}).tuning.fit_like == "lora"
    for tuning in (design, study["tuning"]):
        with pytest.raises(ValueError, match=r"tuning\.fit_like: expected one of the methods that are tuned"):
            Study.model_validate(study | {"tuning": tuning | {"fit_like": "nothing"}})
