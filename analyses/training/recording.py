"""What is recorded along a training: snapshots of the factors, and notes on the perturbation against the gradient.

A recording lies beside the run, in a folder of its own with a key of its own, so that another number of notes leaves
the run and everything measured at it alone: the training is repeated to be recorded, to the same weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from analyses.records import read_json, write_json
from analyses.study import Cell, Study
from bilora import BiLoraTrainer, SnapshotCallback, load_snapshots
from bilora.recorder import DynamicsRecorder

_SNAPSHOTS, _NOTES = "snapshots", "notes.json"


class Recording:
    """Follows a trainer into a folder.

    Args:
        study: Says how often.
        cell: What is trained.
        trainer: Its trainer, before it trains.
        directory: Gets the snapshots, and the notes when `finish` is called.
    """

    def __init__(self, study: Study, cell: Cell, trainer: BiLoraTrainer, directory: Path) -> None:
        settings = study.measures.dynamics
        assert settings is not None
        num_steps, self._directory = study.training_of(cell.method).num_steps(cell.train_size), directory
        self._recorder = DynamicsRecorder(trainer.method, every=max(1, num_steps // settings.notes))
        trainer.add_callback(self._recorder)
        every = max(1, num_steps // settings.snapshots)
        trainer.add_callback(SnapshotCallback(directory / _SNAPSHOTS, every=every, dtype="float16"))

    def finish(self) -> None:
        """Write the notes."""
        write_json(self._directory / _NOTES, self._recorder.rows)


def read_notes(recording: Path) -> list[dict[str, Any]]:
    """The notes, one dictionary a noted step; empty for methods of which nothing is noted."""
    notes: list[dict[str, Any]] = read_json(recording / _NOTES)
    return notes


def load_recorded_snapshots(recording: Path) -> dict[int, dict[str, Tensor]]:
    """Factors by step, as `bilora.load_snapshots` gives them; empty for methods without any."""
    directory = recording / _SNAPSHOTS
    return load_snapshots(directory) if directory.is_dir() else {}
