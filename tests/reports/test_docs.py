"""The code of docs/report.md runs."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parents[2]


def test_the_code_that_draws_into_a_layout_of_ones_own_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "report.md").read_text(), flags=re.DOTALL)
    plt.close("all")
    exec(compile(code, "docs/report.md", "exec"), {})
    figure = plt.figure(plt.get_fignums()[0])
    assert sum(ax.has_data() for ax in figure.axes) == 4
    plt.close("all")
