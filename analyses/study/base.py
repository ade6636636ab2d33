"""What settings have in common, and the settings of the tasks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

Positive = Annotated[FiniteFloat, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class StudyError(ValueError):
    """Settings or a folder that no study can be made of; shown to the user as one message."""


class Settings(BaseModel):
    """Base of all settings: unknown keys are refused, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DigitsTask(Settings):
    """scikit-learn's 8×8 digits: pretrain upright, fine-tune rotated; see `analyses.tasks.digits`."""

    name: Literal["digits"] = "digits"
    angle: FiniteFloat = 30.0
    pretrain_size: Count = 900
    validation_size: Count = 250
    pretrain_epochs: Count = 40
    split_seed: int = 0

    def base_settings(self) -> dict[str, Any]:
        """What the pretrained model depends on."""
        return self.model_dump(exclude={"angle", "validation_size"})


class MinilmSentimentTask(Settings):
    """Fresh or rotten film reviews and a pretrained MiniLM; see `analyses.tasks.minilm_sentiment`."""

    name: Literal["minilm_sentiment"] = "minilm_sentiment"
    max_length: Annotated[int, Field(ge=3, le=512)] = 48
    validation_size: Count = 600
    test_size: Count = 2_000
    split_seed: int = 0
    head_seed: int = 0

    def base_settings(self) -> dict[str, Any]:
        """What the model before fine-tuning depends on."""
        return self.model_dump(include={"name", "head_seed"})


TaskSettings = Annotated[DigitsTask | MinilmSentimentTask, Field(discriminator="name")]
