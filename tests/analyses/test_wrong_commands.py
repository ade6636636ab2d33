"""Commands that people get wrong: exit code 2 and one message that names the option or key and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from analyses.cli import main
from tests.analyses.mini import QUICK

STUDIES: dict[str, dict[str, Any]] = {
    "ok": {},
    "key": {"measure": {}},
    "deep_key": {"methods": {"lora": {"learning_rate": 0.1, "learning_rat": 0.1}}},
    "method": {"methods": {"bilroa": {"learning_rate": 0.1}}},
    "task": {"task": {"name": "digit"}},
    "target": {"adapters": {"r": 2, "target_modules": ["q_prj"]}},
    "measure": {"measures": QUICK["measures"] | {"seeds": {"sharpnes": 1}}},
    "radius": {"claims": {"rho": 0.3}},
    "device": {"device": "gpu"},
    "rank": {"adapters": {"r": 999, "target_modules": ["q_proj"]}},
    "size": {"train_sizes": [99999]},
}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("studies")
    for name, changes in STUDIES.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(QUICK | changes))
    (root / "latin.yaml").write_bytes("name: café\n".encode("latin-1"))
    (root / "broken.yaml").write_text("name: [a\n")
    (root / "list.yaml").write_text("- 1\n")
    (root / "code.yaml").write_text("name: !!python/object/apply:os.getcwd []\n")
    return root


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("audit", "give either --preset NAME or --config FILE"),
        ("audit --preset digit", "got 'digit'; did you mean 'digits'?"),
        ("audit --config nothing.yaml", "--config: cannot read nothing.yaml: No such file"),
        ("audit --config latin.yaml", "latin.yaml is not in UTF-8 (byte 9); save it so"),
        ("audit --config broken.yaml", "broken.yaml: not valid YAML"),
        ("audit --config list.yaml", "list.yaml: study: Input should be a valid dictionary"),
        ("audit --config code.yaml", "could not determine a constructor"),
        (
            "audit --config key.yaml",
            "measure: there is no such key; did you mean 'measures'? docs/study.md has them all",
        ),
        (
            "audit --config deep_key.yaml",
            "methods.lora.learning_rat: there is no such key; did you mean 'learning_rate'?",
        ),
        ("audit --config method.yaml", "unknown method 'bilroa'; did you mean 'bilora'?"),
        ("audit --config task.yaml", "task: expected as name digits, minilm_sentiment, text_classification"),
        ("audit --config target.yaml", "adapters.target_modules: ['q_prj'] matches no linear layer; the model has"),
        ("audit --config measure.yaml", "got 'sharpnes'; did you mean 'sharpness'?"),
        ("audit --config radius.yaml", "claims.rho: 0.3 is not among measures.worst_case.radii [0.1]; add it there"),
        ("audit --config device.yaml", "device: String should match pattern"),
        ("audit --config rank.yaml", "adapters.r: rank 999 exceeds the dimensions of vit.layers.0"),
        ("audit --config size.yaml", "train_sizes"),
        (
            "audit --config ok.yaml --methods bilorra",
            "the study has bilora, lora; got 'bilorra'; did you mean 'bilora'?",
        ),
        ("audit --config ok.yaml --jobs 0", "--jobs: expected at least 1, got 0"),
        ("audit --config ok.yaml --seeds 0", "--seeds: Input should be greater than or equal to 1 (got 0)"),
        ("audit --config ok.yaml --hours 3", "--hours: belongs to --until-decided; add that"),
        ("audit --config ok.yaml --device cuda:99", "device: expected auto, cpu or one of"),
        ("audit --config ok.yaml --out ok.yaml/x", "--out: cannot write to ok.yaml/x: Not a directory; choose another"),
        ("audit --config ok.yaml --claims latin.yaml", "--claims: latin.yaml is not in UTF-8"),
        ("train --config ok.yaml --method lorra", "got 'lorra'; did you mean 'lora'?"),
        ("tune --config ok.yaml", "tuning: the study has no grid; add a 'tuning' section"),
        ("measure nothing", "RUN: nothing is no run folder: it has no run.json"),
        ("report nothing", "run 'landscape audit' first"),
        ("report nothing --figures all", "DIR: nothing holds no records.parquet; run 'landscape audit' first"),
        ("report nothing --format svg", "--format: only the figures that --figures names have formats"),
        ("init --model x", "--model, --data: give both, or none"),
        ("init --out ok.yaml", "--out: ok.yaml exists; give another file"),
    ],
)
def test_a_wrong_command_says_what_to_do(
    command: str, message: str, studies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(studies)
    there = {path.name for path in studies.iterdir()}
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("landscape: error: ") and "Traceback" not in error
    assert {path.name for path in studies.iterdir()} - {"results"} == there
