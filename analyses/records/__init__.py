"""Records: one measured number a row, and the files they lie in."""

from analyses.records.atomic import write_atomically
from analyses.records.integrity import write_sealed
from analyses.records.store import (
    DIVERGED,
    RecordsError,
    is_rise,
    read_json,
    read_provenance,
    read_records,
    records_frame,
    write_json,
    write_records,
)

__all__ = [
    "DIVERGED",
    "RecordsError",
    "is_rise",
    "read_json",
    "read_provenance",
    "read_records",
    "records_frame",
    "write_atomically",
    "write_json",
    "write_records",
    "write_sealed",
]
