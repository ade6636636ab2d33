"""Records: one measured number a row, in long form, and the other small files that reports read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analyses.records.atomic import write_atomically
from analyses.records.integrity import write_sealed
from analyses.records.upgrade import upgraded

COLUMNS: dict[str, str] = {
    "study": "string",
    "run": "string",
    "method": "string",
    "seed": "int64",
    "train_size": "int64",
    "measure": "string",
    "ball": "string",
    "rho": "float64",
    "index": "Int64",
    "step": "Int64",
    "component": "string",
    "layer": "string",
    "subspace": "string",
    "algorithm": "string",
    "other": "string",
    "alpha": "float64",
    "beta": "float64",
    "value": "float64",
    "stderr": "float64",
    "seconds": "float64",
    "num_passes": "float64",
}
"""Columns of the records and their types; what does not apply to a measure is missing there.

``run`` is the name of the run's folder, ``index`` counts eigenpairs, searches or examples from 1 (0 is the worst case
where directions are counted), ``step`` is an optimizer step, ``component`` names the factors (primary, auxiliary,
gradient) that a number speaks of, ``other`` the second run of a pair.
"""


class RecordsError(ValueError):
    """A file of records that cannot be read."""


_UNREADABLE = "{}: cannot be read as {} ({}); run the command that wrote it again: what is finished is kept"
DIVERGED = "diverged"
"""Measure of a run whose training loss was no longer finite; it has no other records."""
_PROVENANCE = b"provenance"


def records_frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a frame with exactly the columns of `COLUMNS`.

    Raises:
        ValueError: A row has a key that is no column.
    """
    rows = list(rows)
    unknown = {key for row in rows for key in row} - COLUMNS.keys()
    if unknown:
        raise ValueError(f"rows: unknown columns {sorted(unknown)}; expected some of {list(COLUMNS)}")
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.astype(COLUMNS)


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically, with a line break at the end; numbers that are not finite become null."""
    text = json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_json(path: Path, *keys: str) -> Any:
    """Read what `write_json` wrote.

    Args:
        path: The file.
        keys: What it has to have.

    Raises:
        RecordsError: The file is damaged, or holds something else.
    """
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise RecordsError(_UNREADABLE.format(path, "JSON", error)) from error
    if keys and not (isinstance(content, dict) and content.keys() >= set(keys)):
        raise RecordsError(_UNREADABLE.format(path, "JSON", f"expected the keys {', '.join(keys)}"))
    return content


def write_records(frame: pd.DataFrame, path: Path, provenance: Mapping[str, str] | None = None) -> None:
    """Write records as parquet, atomically; the versions that made them go into the file's metadata, with a seal."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    if provenance is not None:
        table = table.replace_schema_metadata({**table.schema.metadata, _PROVENANCE: json.dumps(dict(provenance))})
    write = write_atomically if provenance is None else write_sealed
    write(path, lambda temporary: pq.write_table(table, temporary))


def read_provenance(path: Path) -> dict[str, str] | None:
    """The versions that made a file of records, where it says so.

    Raises:
        RecordsError: The file is damaged, or holds something else.
    """
    try:
        kept = (pq.read_schema(path).metadata or {}).get(_PROVENANCE)
        return None if kept is None else json.loads(kept)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def read_records(path: Path) -> pd.DataFrame:
    """Read records; the columns come back with the types of `COLUMNS`, and those that older files lack are missing.

    Raises:
        RecordsError: The file is damaged, or holds something else.
    """
    try:
        read = pd.read_parquet(path)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    try:
        return upgraded(read).reindex(columns=list(COLUMNS)).astype(COLUMNS)
    except (KeyError, TypeError, ValueError) as error:  # another table
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> RecordsError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return RecordsError(_UNREADABLE.format(path, "records", reason))


def is_rise(records: pd.DataFrame, subspace: str | None = None, rho: float | None = None) -> pd.Series:
    """Which records are worst-case rises in the absolute l2 ball, in one space or at one radius if given.

    Radii of other balls have other units; records without a ball are of the time before there were others.
    """
    chosen = (records["measure"] == "worst_case_rise") & (records["ball"].fillna("l2") == "l2")
    if subspace is not None:
        chosen &= records["subspace"] == subspace
    if rho is not None:
        chosen &= np.isclose(records["rho"].astype(float), rho)
    return chosen
