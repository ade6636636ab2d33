"""A study small enough for a test, and the command line on it."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import yaml

from analyses.cli import main

MINI: dict[str, Any] = {
    "name": "mini",
    "task": {"name": "digits", "pretrain_epochs": 1, "test_size": 100},
    "train_sizes": [20],
    "seeds": 2,
    "training": {"epochs": 2, "batch_size": 10},
    "adapters": {"r": 2, "alpha": 4, "target_modules": ["q_proj", "fc1"]},
    "methods": {
        "lora": {"learning_rate": 0.003},
        "bilora": {"learning_rate": 0.003, "rho": 0.05},
    },
    "measures": {
        "worst_case": {
            "radii": [0.1, 0.5],
            "subspace_radii": [0.1],
            "steps": 3,
            "restarts": 1,
            "screened": 4,
            "max_passes": 1,
            "balls": {"filter": [0.2]},
        },
        "curvature": {"k": 2, "lanczos_tol": 0.001, "power_tol": 0.1},
        "surface": {"line_points": 3, "grid_points": 3, "path_points": 3},
        "dynamics": {"snapshots": 2, "notes": 2},
        "cost_rounds": 2,
    },
    "claims": {"rho": 0.1},
}


LEFT_OUT = (
    "curvature", "power_iteration", "pyhessian", "alignment", "gauss_newton", "alignment_along_training", "angles",
    "dynamics", "recovery", "surface", "trajectory",
)  # fmt: skip
QUICK: dict[str, Any] = MINI | {
    "measures": MINI["measures"]
    | {
        "worst_case": {"radii": [0.1], "steps": 2, "restarts": 1, "screened": 4, "max_passes": 1, "average_samples": 2},
        "seeds": dict.fromkeys(LEFT_OUT, 0),
        "surface": None,
        "cost_rounds": 1,
    },
    "training": {"max_steps": 2, "batch_size": 10},
}
"""A study of losses and rises alone."""


def landscape(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in this process, which has its libraries loaded."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([*map(str, arguments)])
        except SystemExit as ended:
            code = int(ended.code or 0)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def landscape_apart(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a shell starts it."""
    command = [sys.executable, "-m", "analyses.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


def written(folder: Path, **changes: object) -> Path:
    path = folder / "study_input.yaml"
    path.write_text(yaml.safe_dump(MINI | changes))
    return path
