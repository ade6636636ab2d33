"""Records: one measured number a row, and the files they lie in."""

from analyses.records.store import (
    is_rise,
    read_json,
    read_records,
    records_frame,
    write_atomically,
    write_json,
    write_records,
)

__all__ = [
    "is_rise",
    "read_json",
    "read_records",
    "records_frame",
    "write_atomically",
    "write_json",
    "write_records",
]
