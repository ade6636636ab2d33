"""A study: its settings, its cells, and where the files of each lie."""

from analyses.study.base import StudyError
from analyses.study.cells import Cell
from analyses.study.claim_settings import ClaimFile, ClaimSettings, ClaimSpec
from analyses.study.folder import StudyFolder
from analyses.study.presets import example_text, load_claims, load_preset, load_study, parse_study, preset_names
from analyses.study.settings import AdapterSettings, MethodSettings, Study, TuningSettings, fingerprint

__all__ = [
    "AdapterSettings",
    "Cell",
    "ClaimFile",
    "ClaimSettings",
    "ClaimSpec",
    "MethodSettings",
    "Study",
    "StudyError",
    "StudyFolder",
    "TuningSettings",
    "example_text",
    "fingerprint",
    "load_claims",
    "load_preset",
    "load_study",
    "parse_study",
    "preset_names",
]
