"""The paragraph for a paper and its sources."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from analyses.records import read_json, read_records
from reports.claims import claims_table
from reports.methods_text import SOURCES, bibliography, methods_paragraph
from reports.sharpness_tables import measures_table
from reports.tables import main_table, write_tables

READ = ((read_records, "records.parquet"), (read_json, "claims.json"))
EXAMPLES = Path(__file__).parents[2] / "examples"
STUDIES = sorted(path.parent for path in EXAMPLES.glob("*/claims.json"))


def paragraph(folder: Path) -> str:
    settings = yaml.safe_load((folder / "study.yaml").read_text())
    return methods_paragraph(settings, read_records(folder / "records.parquet"), read_json(folder / "claims.json"))


@pytest.mark.parametrize("folder", STUDIES, ids=lambda path: path.name)
def test_every_citation_has_its_source_and_every_source_is_cited(folder: Path) -> None:
    text = paragraph(folder)
    cited = {key for group in re.findall(r"\\cite\{([^}]*)\}", text) for key in group.split(",")}
    entries = set(re.findall(r"^@\w+\{(\w+),", bibliography(text), re.M))
    assert cited == entries <= set(SOURCES)
    assert not re.search(r"\bNone\b|\bnan\b|[^\\]%", text)


def test_what_it_says_is_what_was_done() -> None:
    text = paragraph(EXAMPLES / "digits")
    assert "with 100 training examples" in text and "for 60 epochs in batches of 25, with 12 paired seeds" in text
    assert r"Bi-LoRA~\cite{liu2025bilora}" in text and "adapters have rank 4" in text
    assert "two independent searches met (median gap" in text and "a lower bound" in text
    older = paragraph(EXAMPLES / "minilm-sentiment")
    assert "one search met" in older or "two independent searches met" in older
    optimizers = paragraph(EXAMPLES / "digits-optimizers")
    assert r"ASAM, high b10~\cite{kwon2021asam}" in optimizers and "adapters have rank" not in optimizers


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX on this machine")
def test_latex_takes_paragraph_and_tables(tmp_path: Path) -> None:
    records, claims = (read(EXAMPLES / "digits" / name) for read, name in READ)
    tables = {"main": main_table(records, rho=0.1), "claims": claims_table(claims["claims"])}
    write_tables(tables | {"measures": measures_table(records, rho=0.1)}, tmp_path)
    shown = "\n".join(path.read_text() for path in sorted(tmp_path.glob("*.tex")))
    source = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{paragraph(EXAMPLES / 'digits')}"
    (tmp_path / "paper.tex").write_text(source + shown + r"\end{document}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
