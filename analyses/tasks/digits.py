"""Handwritten digits under a rotation: real data that comes with scikit-learn, and a tiny vision transformer.

The 1,797 images are split once, stratified by class: for pretraining (upright), training, validation (for tuning
only) and test (all three rotated). Pretraining uses small random rotations, scalings and shifts, without which a
fine-tuned model is no better than one trained from scratch; docs/digits.md keeps the comparison.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from analyses.study.base import StudyError
from analyses.study.task_settings import DigitsTask
from analyses.tasks.base import Examples, Progress


class Digits:
    """Data and model of the digits task for one training-set size."""

    def __init__(self, settings: DigitsTask, train_size: int, draw: int | None = None) -> None:
        self.settings, self.train_size, self._draw = settings, train_size, draw
        images, labels = load_digits(return_X_y=True)
        self._images = (images / 16.0).reshape(-1, 8, 8).astype(np.float32)
        self._labels = labels.astype(np.int64)
        if draw is not None and settings.test_size is None:
            raise StudyError("task.test_size: a study that resamples needs the same test images throughout; set it")
        available = len(labels) - settings.pretrain_size - settings.validation_size - (settings.test_size or 0)
        if not 10 <= train_size <= available - 10:
            raise StudyError(f"train_sizes: expected 10 to {available - 10} examples, got {train_size}")

    @cached_property
    def _split(self) -> dict[str, np.ndarray]:
        sizes = {"pretrain": self.settings.pretrain_size, "validation": self.settings.validation_size}
        if self.settings.test_size:
            sizes["test"] = self.settings.test_size
        rest, split = np.arange(len(self._labels)), {}
        for name, size in (sizes | {"train": self.train_size}).items():
            drawn_anew = name == "train" and self._draw is not None
            split[name], rest = train_test_split(
                rest,
                train_size=size,
                stratify=self._labels[rest],
                random_state=self._draw if drawn_anew else self.settings.split_seed,
            )
        return {"test": rest} | split

    def examples(self, split: str) -> Examples:
        """All of ``pretrain`` (upright), ``train``, ``validation`` or ``test`` (rotated).

        Returns:
            ``pixel_values`` (n, 1, 8, 8) between 0 and 1, and ``labels`` (n,).
        """
        chosen = self._split[split]
        images = self._images[chosen]
        if split != "pretrain":
            images = ndimage.rotate(images, self.settings.angle, axes=(2, 1), reshape=False, order=1)
        return {
            "pixel_values": torch.from_numpy(images)[:, None].contiguous(),
            "labels": torch.from_numpy(self._labels[chosen]),
        }

    def dataset(self, split: str) -> list[dict[str, Tensor]]:
        """The examples one by one, as a data loader wants them."""
        examples = self.examples(split)
        return [{key: value[i] for key, value in examples.items()} for i in range(len(examples["labels"]))]

    def collate(self, examples: Sequence[Examples]) -> Examples:
        """A batch of examples of a data set."""
        return {key: torch.stack([example[key] for example in examples]) for key in examples[0]}

    def batches(self, split: str) -> list[Examples]:
        """All examples in one batch."""
        return [self.examples(split)]

    def new_model(self, seed: int) -> ViTForImageClassification:
        """The model with random weights."""
        config = ViTConfig(
            image_size=8,
            patch_size=2,
            num_channels=1,
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=128,
            num_labels=10,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return ViTForImageClassification(config)

    def load_base(self, path: Path) -> ViTForImageClassification:
        """The pretrained model from its folder."""
        return ViTForImageClassification.from_pretrained(path, local_files_only=True)

    def create_base(self, path: Path, progress: Progress) -> None:
        """Pretrain on the upright digits and save the model to ``path``."""
        model, data = self.new_model(self.settings.split_seed), self.examples("pretrain")
        generator = torch.Generator().manual_seed(self.settings.split_seed)
        fit(
            model,
            data,
            self.settings.pretrain_epochs,
            2e-3,
            30,
            generator,
            progress,
            augment=True,
            weight_decay=0.05,
        )
        model.save_pretrained(path)


def fit(
    model: nn.Module,
    data: Examples,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    generator: torch.Generator,
    progress: Progress,
    *,
    augment: bool = False,
    weight_decay: float = 0.0,
) -> None:
    """Train all weights with AdamW, a tenth of the steps as warm-up, then linear decay to zero."""
    num_examples = len(data["labels"])
    total = epochs * math.ceil(num_examples / batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / (0.1 * total)) * (1 - step / total)
    )
    model.train()
    step = 0
    for _ in range(epochs):
        images = _augmented(data["pixel_values"], generator) if augment else data["pixel_values"]
        for chosen in torch.randperm(num_examples, generator=generator).split(batch_size):
            optimizer.zero_grad()
            logits = model(pixel_values=images[chosen]).logits
            F.cross_entropy(logits, data["labels"][chosen]).backward()
            optimizer.step()
            schedule.step()
            step += 1
            progress(step, total)
    model.eval()


def _augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate by up to 15°, scale by up to 10 % and shift by up to one pixel, each image anew."""
    draws = torch.rand(4, len(images), generator=generator) * 2 - 1
    angle, scale, shift = draws[0] * math.radians(15), 1 + 0.1 * draws[1], 0.25 * draws[2:].T
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    affine = torch.cat([rotation * scale[:, None, None], shift[:, :, None]], dim=2)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
