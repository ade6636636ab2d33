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
    "sizes": {"train_sizes": [40, 40]},
    "one_target": {"adapters": {"r": 2, "target_modules": ["q_proj", "vaule"]}},
    "layer": {"adapters": {"r": 2, "target_modules": ["q_proj", "layernorm_before"]}},
    "convolution": {"adapters": {"r": 2, "target_modules": ["q_proj", "projection"]}},
    "pattern": {"adapters": {"r": 2, "target_modules": "["}},
    "saved": {"adapters": {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["clasifier"]}},
    "rate": {"training": {"optimizer": {"name": "SGD", "options": {"lr": 3.0}}}},
    "decay": {"training": {"optimizer": {"name": "SGD", "options": {"weight_decay": 0.1}}}},
    "closure": {"training": {"optimizer": {"name": "LBFGS"}}},
    "sparse": {"training": {"optimizer": {"name": "SparseAdam"}}},
    "broken_optimizer": {"training": {"optimizer": {"name": "broken_module:Rule"}}},
    "broken_task": {"task": {"name": "broken_module:Task"}},
    "no_task": {"task": {"name": "parts_module:Nothing"}},
    "keyed_task": {"task": {"name": "parts_module:Keyed"}},
    "broken_method": {"methods": {"mine": {"learning_rate": 0.1, "method": "broken_module:Mine"}}},
    "broken_measure": {"measures": QUICK["measures"] | {"own": {"broken_module:MEASURE": {}}}},
    "grid": {"tuning": {"seeds": [7], "learning_rate": {"lroa": [0.1]}}},
    "no_grid": {"tuning": {"seeds": [7], "learning_rate": {"lora": []}}},
    "ball_grid": {"tuning": {"seeds": [7], "learning_rate": {"lora": [0.1]}, "rho": {"lora": [0.1]}}},
    "seed_grid": {"tuning": {"seeds": [-1], "learning_rate": {"lora": [0.1]}}},
}
CODE = {
    "broken_module.py": "raise NameError('no such name')\n",
    "parts_module.py": (
        "class Nothing:\n    def __init__(self, *given): pass\n"
        "class Keyed:\n    def __init__(self, settings, *given): settings['depth']\n"
    ),
}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("studies")
    for name, changes in STUDIES.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(QUICK | changes))
    for name, text in CODE.items():
        (root / name).write_text(text)
    twice = yaml.safe_dump(QUICK).replace("methods:", "methods:\n  lora: {learning_rate: 0.5}")
    (root / "twice.yaml").write_text(twice)
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
        ("audit --config sizes.yaml", "train_sizes: expected each size once"),
        ("audit --config twice.yaml", "the key 'lora' stands twice"),
        ("audit --config one_target.yaml", "adapters.target_modules: 'vaule' matches no layer"),
        ("audit --config layer.yaml", "layernorm_before is a LayerNorm; expected unquantised nn.Linear"),
        ("audit --config convolution.yaml", "projection is a Conv2d; expected unquantised nn.Linear"),
        ("audit --config pattern.yaml", "adapters.target_modules: '[' is no regular expression"),
        ("audit --config saved.yaml --dry-run", "modules_to_save: 'clasifier' matches no module"),
        ("audit --config rate.yaml", "lr: expected under methods.NAME.learning_rate"),
        ("audit --config decay.yaml", "weight_decay: expected under training.weight_decay"),
        ("audit --config closure.yaml --dry-run", "LBFGS takes no step from a dense gradient alone: TypeError"),
        ("audit --config sparse.yaml --dry-run", "SparseAdam takes no step from a dense gradient alone"),
        ("audit --config broken_optimizer.yaml", "cannot import 'broken_module:Rule': NameError: no such name"),
        ("audit --config broken_task.yaml", "task.name: cannot import 'broken_module:Task', expected"),
        ("audit --config no_task.yaml", "parts_module:Nothing makes no task, which also has dataset, collate, batches"),
        ("audit --config keyed_task.yaml", "raises KeyError: 'depth' (parts_module.py:4)"),
        ("audit --config broken_method.yaml", "cannot import 'broken_module:Mine'"),
        ("audit --config broken_measure.yaml", "cannot import 'broken_module:MEASURE', expected"),
        ("tune --config grid.yaml", "tuning.learning_rate: the study has no method 'lroa'; did you mean 'lora'?"),
        ("tune --config no_grid.yaml", "tuning.learning_rate.lora: List should have at least 1 item"),
        ("tune --config ball_grid.yaml", "tuning.rho: lora uses no rho; leave it out there"),
        ("tune --config seed_grid.yaml", "tuning.seeds.0: Input should be greater than or equal to 0"),
        ("audit --config ok.yaml --dry-run --until-decided", "--max-seeds: --until-decided needs it"),
        ("compare a b --preset digits --examples 3", "--examples: belongs to --data with a file"),
        ("compare a b --preset digits --test x.csv", "--test: belongs to --data with a file"),
        ("init --task regression --label y", "--task: belongs to --model and --data; give both, too"),
        ("init --out nowhere/x.yaml", "--out: cannot write nowhere/x.yaml: no folder to write to"),
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
    monkeypatch.syspath_prepend(studies)
    there = {path.name for path in studies.iterdir()}
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("landscape: error: ") and "Traceback" not in error
    assert {path.name for path in studies.iterdir()} - {"results", "__pycache__"} == there - {"__pycache__"}
