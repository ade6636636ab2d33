"""Thousands of broken inputs: every one is taken, or refused by the error that is documented for it."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analyses.cli import main
from analyses.records import RecordsError, read_json, read_provenance, read_records
from analyses.running.stopping import recorded_looks
from analyses.study import StudyError, load_claims, load_preset, preset_names
from analyses.study.presets import load_study
from analyses.tasks.tables import columns, read_table
from bilora import BiLoraConfig
from tests.analyses.mini import MINI, QUICK
from tests.reliability.fuzzing import as_json, changed, damaged

INPUTS = int(os.environ.get("FUZZ_INPUTS", "100"))
pytestmark = pytest.mark.timeout(max(300, INPUTS // 10))
EXAMPLES = Path(__file__).parents[2] / "examples"
PRESETS = [
    yaml.safe_load((resources.files("analyses") / "presets" / f"{name}.yaml").read_text()) for name in preset_names()
]
CLAIMS = [
    yaml.safe_load((resources.files("analyses") / "judging" / name).read_text())
    for name in ("claims.yaml", "ladder.yaml")
]
METHODS = [{"method": name} | dict(settings) for preset in PRESETS for name, settings in preset["methods"].items()]


def fuzz(function: Callable[..., None]) -> Callable[..., None]:
    """So many inputs, the same every time, with no limit of time for one."""
    return settings(
        max_examples=INPUTS,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )(function)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def written(path: Path, document: Any) -> Path:
    path.write_text(yaml.safe_dump(document), encoding="utf-8", errors="surrogatepass")
    return path


@given(document=changed([*PRESETS, MINI]))
@fuzz
def test_studies(place: Path, document: Any) -> None:
    try:
        study = load_study(written(place / "study.yaml", document))
    except StudyError:
        return
    kept = study.model_dump(mode="json")
    again = load_study(written(place / "again.yaml", kept)).model_dump(mode="json")
    assert yaml.safe_dump(again) == yaml.safe_dump(kept)  # as text: a NaN among an optimizer's options equals no other


@given(content=damaged([yaml.safe_dump(preset).encode() for preset in [*PRESETS[:4], MINI]]))
@fuzz
def test_studies_of_broken_bytes(place: Path, content: bytes) -> None:
    path = place / "bytes.yaml"
    path.write_bytes(content)
    for read in (load_study, load_claims):
        try:
            read(path)
        except StudyError:
            continue


@given(claims=changed(CLAIMS), method=changed(METHODS))
@fuzz
def test_claims_and_settings_of_methods(place: Path, claims: Any, method: Any) -> None:
    readers = {"claims": (load_claims, StudyError, claims), "method": (BiLoraConfig.from_yaml, ValueError, method)}
    for name, (read, documented, document) in readers.items():
        path = written(place / f"{name}.yaml", document)
        with suppress(documented):
            read(path)


TABLES = {
    "csv": pd.DataFrame({"text": ["a", "b, c", 'd "e"'], "label": [0, 1, 0]}).to_csv(index=False).encode(),
    "jsonl": b'{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n',
}


@given(content=damaged([TABLES["csv"], TABLES["jsonl"]]))
@fuzz
def test_tables_of_text(place: Path, content: bytes) -> None:
    for name in ("csv", "jsonl"):
        path = place / f"table.{name}"
        path.write_bytes(content)
        try:
            columns(read_table(str(path)))
        except StudyError:
            continue


@pytest.fixture(scope="module")
def binary_tables(place: Path) -> list[bytes]:
    np.savez(place / "whole.npz", pixel_values=np.zeros((3, 1, 4, 4)), labels=np.arange(3))
    pd.DataFrame({"text": ["a", "b"], "label": [0, 1]}).to_parquet(place / "whole.parquet")
    return [(place / f"whole.{kind}").read_bytes() for kind in ("npz", "parquet")]


@given(seed=st.integers(0, 2**32))
@fuzz
def test_tables_of_bytes(place: Path, binary_tables: list[bytes], seed: int) -> None:
    generator = np.random.default_rng(seed)
    for kind, whole in zip(("npz", "parquet"), binary_tables, strict=True):
        content = bytearray(whole)
        for at in generator.integers(0, len(content), size=generator.integers(1, 5)):
            content[at] = generator.integers(256)
        path = place / f"broken.{kind}"
        path.write_bytes(bytes(content[: generator.integers(len(content) // 2, len(content) + 1)]))
        try:
            table = read_table(str(path))
            for column in columns(table):
                list(table[column])
        except StudyError:
            continue


RECORDS = (EXAMPLES / "digits-optimizers" / "records.parquet").read_bytes()


@given(content=damaged([RECORDS]))
@fuzz
def test_records(place: Path, content: bytes) -> None:
    path = place / "records.parquet"
    path.write_bytes(content)
    for read in (read_records, read_provenance):
        try:
            read(path)
        except RecordsError:
            continue


CLAIMS_JSON = json.loads((EXAMPLES / "digits" / "claims.json").read_text())


@given(content=damaged([as_json(CLAIMS_JSON)]))
@fuzz
def test_json(place: Path, content: bytes) -> None:
    path = place / "claims.json"
    path.write_bytes(content)
    try:
        read_json(path)
    except RecordsError:
        return


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """A trained and measured run."""
    (place / "quick.yaml").write_text(yaml.safe_dump(QUICK))
    asked = ["--config", str(place / "quick.yaml"), "--out", str(place / "out"), "--method", "lora"]
    assert main(["train", *asked]) == 0
    found = next((place / "out" / "runs").iterdir())
    assert main(["measure", str(found), "--what", "generalization"]) == 0
    return found


@given(data=st.data())
@fuzz
def test_run_folders(run: Path, data: st.DataObject) -> None:
    """A broken description of a run ends in words, not in a traceback, and writes nowhere else."""
    whole = (run / "run.json").read_text()
    other = run.parents[1].with_name("other") / "runs" / run.name
    if not other.exists():
        shutil.copytree(run.parents[1], other.parents[1])
    broken = data.draw(st.one_of(changed([json.loads(whole)]).map(as_json), damaged([whole.encode()])))
    (other / "run.json").write_bytes(broken)
    outside = sorted(run.parents[2].iterdir())
    assert main(["measure", str(other), "--what", "generalization"]) in (0, 2, 3)
    assert sorted(run.parents[2].iterdir()) == outside


@given(data=st.data())
@fuzz
def test_looks(place: Path, data: st.DataObject) -> None:
    whole = json.loads((EXAMPLES / "digits" / "looks.json").read_text())
    path = place / "looks.json"
    path.write_bytes(data.draw(st.one_of(changed([whole]).map(as_json), damaged([as_json(whole)]))))
    try:
        recorded_looks(path, load_preset("digits").claims)
    except RecordsError:
        return
