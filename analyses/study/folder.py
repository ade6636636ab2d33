"""Where the files of a study lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from analyses.records import write_atomically
from analyses.records.atomic import TEMPORARY
from analyses.study.base import StudyError
from analyses.study.cells import Cell
from analyses.study.presets import load_study
from analyses.study.settings import Study


@dataclass(frozen=True)
class StudyFolder:
    """Where the files of a study lie."""

    root: Path

    @property
    def settings(self) -> Path:
        return self.root / "study.yaml"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    @property
    def progress(self) -> Path:
        return self.root / ".progress"

    def base(self, study: Study) -> Path:
        return self.root / "base" / study.base_name()

    def run(self, study: Study, cell: Cell) -> Path:
        return self.runs / study.run_name(cell)

    def recording(self, study: Study, cell: Cell) -> Path:
        return self.root / "recordings" / study.recording_name(cell)

    def measurements(self, study: Study, cell: Cell) -> Path:
        return self.root / "measurements" / study.run_name(cell)

    def cost(self, study: Study) -> Path:
        return self.root / "measurements" / f"{study.cost_name()}.parquet"

    def barriers(self, study: Study) -> Path:
        return self.root / "measurements" / f"{study.barriers_name()}.parquet"

    def refuse_others(self, study: Study) -> None:
        """Refuse a folder that holds something else than this study.

        Raises:
            StudyError: It does.
        """
        if self.settings.exists():
            there = load_study(self.settings)
            if there.name != study.name:
                raise StudyError(
                    f"--out: {self.root} holds the study {there.name!r}, not {study.name!r}; choose another folder"
                )
        elif self.root.exists() and not (self.root.is_dir() and (self._is_empty() or self._is_of(study))):
            raise StudyError(f"--out: {self.root} exists and is not a study's folder; choose another or empty it")

    def _is_empty(self) -> bool:
        """But for what a command leaves that was killed as it began."""
        return all(path == self.lock or path.name.startswith(TEMPORARY) for path in self.root.iterdir())

    def _is_of(self, study: Study) -> bool:
        """Whether it holds runs of these very settings: its own settings were lost, and are written again."""
        return any(self.run(study, cell).exists() for cell in study.cells())

    def keep(self, study: Study) -> Study:
        """Write the study's settings into its folder.

        Returns:
            The study with the seeds that were trained in the folder, if these are more: they stay part of it, and seeds
            that were only planned do not. Where the folder's settings were lost, those whose runs are there.
        """
        if self.settings.exists():
            there = load_study(self.settings)
        else:
            there = study.model_copy(update={"seeds": max(study.seeds, len(list(self.runs.glob("*"))))})
        trained = [cell.seed + 1 for cell in there.cells() if self.run(there, cell).exists()]
        study = study.model_copy(update={"seeds": max([study.seeds, *trained])})
        self.write(study)
        return study

    def write(self, study: Study) -> None:
        """Put settings in the place of the folder's own."""
        text = yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False)
        write_atomically(self.settings, lambda temporary: temporary.write_text(text))
