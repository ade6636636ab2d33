"""All records of a study in one file, and which versions made which of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pandas as pd

from analyses.measures.registry import measures_at
from analyses.records import (
    read_provenance,
    read_records,
    records_frame,
    write_atomically,
    write_json,
    write_records,
)
from analyses.study import Study, StudyFolder
from analyses.training.runs import RUN, read_run


def gather(study: Study, folder: StudyFolder) -> pd.DataFrame:
    """All records of the study's finished measurements, as parquet and CSV in its folder.

    ``environment.json`` lists the environments in which its runs and records were made, ``provenance.csv`` says which
    file was made in which of them.
    """
    cells = list(study.cells())
    paths = [measure.path(study, cell, folder) for cell in cells for measure in measures_at(study, cell)]
    paths = [path for path in [*paths, folder.barriers(study), folder.cost(study)] if path.exists()]
    records = pd.concat([records_frame([]), *(read_records(path) for path in paths)], ignore_index=True)
    write_records(records, folder.root / "records.parquet")
    write_atomically(folder.root / "records.csv", lambda temporary: records.to_csv(temporary, index=False))
    runs = [folder.run(study, cell) for cell in cells if folder.run(study, cell).exists()]
    made: dict[Path, dict[str, str]] = {run / RUN: read_run(run)["environment"] for run in runs}
    made |= {path: found for path in paths if (found := read_provenance(path)) is not None}
    _write_provenance(made, folder)
    return records


def _write_provenance(made: dict[Path, dict[str, str]], folder: StudyFolder) -> None:
    texts = {path: json.dumps(environment, sort_keys=True) for path, environment in made.items()}
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts.values()), 1)}
    counts: dict[str, Counter[str]] = {text: Counter() for text in numbers}
    for path, text in texts.items():
        counts[text]["runs" if path.name == RUN else "files of records"] += 1
    environments = [
        {"made": ", ".join(f"{count} {kind}" for kind, count in sorted(counts[text].items(), reverse=True))}
        | json.loads(text)
        for text in numbers
    ]
    write_json(folder.root / "environment.json", environments)
    rows = [
        {"file": str(path.relative_to(folder.root)), "environment": numbers[text], "commit": made[path]["commit"]}
        for path, text in texts.items()
    ]
    frame = pd.DataFrame(rows, columns=["file", "environment", "commit"])
    write_atomically(folder.root / "provenance.csv", lambda temporary: frame.to_csv(temporary, index=False))
