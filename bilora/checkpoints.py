"""What the trainer writes beside the parent's files, and how it is read back."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from peft import PeftModel
from peft.utils import load_peft_weights, set_peft_model_state_dict
from transformers import PreTrainedModel

from bilora.config import BiLoraConfig

_CONFIG = "bilora.json"


def save_adapter(model: PeftModel, name: str, directory: str | Path) -> None:
    """Save one adapter so that `PeftModel.from_pretrained(base, directory)` loads it."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        model.save_pretrained(scratch, selected_adapters=[name])
        # PEFT puts an adapter that is not called "default" into a folder of its name.
        for file in (Path(scratch) / name).iterdir():
            shutil.move(file, directory / file.name)


def load_adapters(model: PeftModel, checkpoint: Path) -> None:
    """Load every adapter of the model from a checkpoint; which are active and trained stays."""
    for name in model.peft_config:
        set_peft_model_state_dict(model, load_peft_weights(str(checkpoint / name), device="cpu"), adapter_name=name)


def load_weights(model: PreTrainedModel, checkpoint: Path) -> None:
    """Load all weights from a checkpoint.

    Through ``from_pretrained``: transformers 5 saves some models under older names of their weights, which the
    trainer's own loading would report as missing and leave as they are.
    """
    loaded = type(model).from_pretrained(checkpoint, local_files_only=True, dtype=model.dtype)
    model.load_state_dict(loaded.state_dict())


def write_config(config: BiLoraConfig, checkpoint: Path) -> None:
    """Note the method's settings in a checkpoint."""
    (checkpoint / _CONFIG).write_text(config.model_dump_json(indent=2) + "\n")


def check_config(config: BiLoraConfig, checkpoint: Path) -> None:
    """Refuse a checkpoint of other settings.

    Raises:
        ValueError: The checkpoint has none, or they differ.
    """
    file = checkpoint / _CONFIG
    if not file.is_file():
        raise ValueError(f"resume_from_checkpoint: {checkpoint} has no {_CONFIG}; expected one of BiLoraTrainer's")
    stored = BiLoraConfig.model_validate_json(file.read_text())
    if stored != config:
        mine, theirs = config.model_dump(), stored.model_dump()
        changed = ", ".join(
            f"{key} {theirs[key]!r} there, {mine[key]!r} here" for key in mine if mine[key] != theirs[key]
        )
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} was written with other settings ({changed}); "
            "use the same settings or start anew"
        )
