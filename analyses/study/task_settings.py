"""Settings of the tasks: the bundled ones, those of the user's own data, and those of the user's own code."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, FiniteFloat, Tag

from analyses.study.base import Count, Settings
from analyses.study.data_settings import DATA_KINDS, DataTask


class DigitsTask(Settings):
    """scikit-learn's 8×8 digits: pretrain upright, fine-tune rotated; see `analyses.tasks.digits`.

    With ``test_size`` the test images are the same for every training-set size and every draw of it; without, they are
    what the other splits leave.
    """

    name: Literal["digits"] = "digits"
    angle: FiniteFloat = 30.0
    pretrain_size: Count = 900
    validation_size: Count = 250
    pretrain_epochs: Count = 40
    split_seed: int = 0
    test_size: Count | None = None

    def base_settings(self) -> dict[str, Any]:
        """What the pretrained model depends on."""
        return self.model_dump(exclude={"angle", "validation_size", "test_size"})


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


class OwnTask(Settings):
    """A task of the user's: ``name`` is the place, "package.module:Class", of an `analyses.tasks.base.Task`.

    `unit` is what figures and tables call the unit of its losses, nats say; by default "units of the loss".
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    settings: dict[str, Any] = Field(default_factory=dict)
    unit: Annotated[str, Field(min_length=1, max_length=60)] | None = None

    def base_settings(self) -> dict[str, Any]:
        """What the model before fine-tuning depends on."""
        return self.model_dump(exclude={"unit"})


def _kind(task: Any) -> str | None:
    name = task.get("name") if isinstance(task, dict) else getattr(task, "name", None)
    if isinstance(name, str) and ":" in name:
        return "own"
    return "data" if name in DATA_KINDS else name


TaskSettings = Annotated[
    Annotated[DigitsTask, Tag("digits")]
    | Annotated[MinilmSentimentTask, Tag("minilm_sentiment")]
    | Annotated[DataTask, Tag("data")]
    | Annotated[OwnTask, Tag("own")],
    Discriminator(
        _kind,
        custom_error_type="unknown_task",
        custom_error_message=(
            f"expected as name digits, minilm_sentiment, {', '.join(DATA_KINDS)}, or package.module:Class"
        ),
    ),
]
