"""The cells of a study: one training run each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One training run of a study."""

    method: str
    seed: int
    train_size: int

    def __str__(self) -> str:
        return f"{self.method}-seed{self.seed}-n{self.train_size}"
