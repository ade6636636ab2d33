"""Where a study runs."""

from __future__ import annotations

import os

import pytest
import torch
import yaml

from analyses.cli import BAD_USAGE, main
from analyses.running.audit import check
from analyses.study import Cell, StudyError, load_preset, parse_study
from analyses.training.devices import WORKER, check_device, take_device


def test_the_device_is_a_setting_that_renames_nothing() -> None:
    study = load_preset("digits")
    assert study.device == "auto"
    cell = Cell("bilora", 0, 100)
    moved = parse_study(yaml.safe_dump(study.model_dump(mode="json") | {"device": "cuda:1"}), source="study")
    assert moved.device == "cuda:1" and moved.run_name(cell) == study.run_name(cell)
    with pytest.raises(StudyError, match="device"):
        parse_study(yaml.safe_dump(study.model_dump(mode="json") | {"device": "gpu"}), source="study")


@pytest.mark.parametrize(
    ("name", "given", "local_rank", "worker", "seen"),
    [
        ("auto", None, None, None, "0"),
        ("cuda:1", None, None, "0", "1"),
        ("auto", None, None, "5", "2"),  # of three GPUs: the sixth worker shares the last one
        ("cuda", None, "1", None, "1"),
        ("auto", "7,3", None, "3", "3"),  # of those that the user lets this process see
        ("cuda:1", "7,3", None, None, "3"),
        ("auto", "4", None, "1", "4"),  # a cluster has chosen
    ],
)
def test_a_process_sees_the_one_gpu_that_it_uses(
    name: str,
    given: str | None,
    local_rank: str | None,
    worker: str | None,
    seen: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key, value in (("CUDA_VISIBLE_DEVICES", given), ("LOCAL_RANK", local_rank), (WORKER, worker)):
        monkeypatch.setenv(key, value or "")
        if value is None:
            monkeypatch.delenv(key)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [take_device(name) for _ in range(2)] == 2 * [torch.device("cuda", 0)]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_any_work(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    assert take_device("auto") == take_device("cpu") == torch.device("cpu")
    check_device("auto")
    with pytest.raises(StudyError, match="expected auto, cpu or one of 0 CUDA devices, got 'cuda:1'"):
        check(load_preset("digits").model_copy(update={"device": "cuda:1"}))
    out = tmp_path / "out"
    assert main(["audit", "--preset", "digits", "--device", "cuda", "--out", str(out)]) == BAD_USAGE
    assert "got 'cuda'" in capsys.readouterr().err
    assert not out.exists()
