"""A study: its settings, its cells, and where the files of each lie."""

from analyses.study.base import StudyError
from analyses.study.cells import Cell
from analyses.study.folder import StudyFolder
from analyses.study.presets import load_preset, load_study, parse_study, preset_names
from analyses.study.settings import AdapterSettings, ClaimSettings, MethodSettings, Study, TuningSettings, fingerprint

__all__ = [
    "AdapterSettings",
    "Cell",
    "ClaimSettings",
    "MethodSettings",
    "Study",
    "StudyError",
    "StudyFolder",
    "TuningSettings",
    "fingerprint",
    "load_preset",
    "load_study",
    "parse_study",
    "preset_names",
]
