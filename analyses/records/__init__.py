"""Records: one measured number a row, and the files they lie in."""

from analyses.records.store import (
    DIVERGED,
    is_rise,
    read_json,
    read_provenance,
    read_records,
    records_frame,
    write_atomically,
    write_json,
    write_records,
)

__all__ = [
    "DIVERGED",
    "is_rise",
    "read_json",
    "read_provenance",
    "read_records",
    "records_frame",
    "write_atomically",
    "write_json",
    "write_records",
]
