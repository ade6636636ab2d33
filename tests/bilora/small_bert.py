"""A small BERT and GPT-2 with large weights, their data, and trainers of a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, TrainingArguments

from bilora import BiLoraConfig, BiLoraTrainer
from tests.bilora.conftest import config_of

_DRAW = torch.Generator().manual_seed(1)
IDS = torch.randint(0, 40, (16, 6), generator=_DRAW)
LABELS = torch.randint(0, 3, (16,), generator=_DRAW)
DATA = [{"input_ids": ids, "labels": int(label)} for ids, label in zip(IDS, LABELS, strict=True)]
TEXTS = [{"input_ids": ids, "labels": ids.clone()} for ids in IDS]


def bert(dropout: float = 0.0) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, num_labels=3, hidden_dropout_prob=dropout, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return _enlarged(BertForSequenceClassification(config))


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return _enlarged(GPT2LMHeadModel(config))


def _enlarged(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return model


def settings(method: str = "bilora", **changes: Any) -> BiLoraConfig:
    return config_of(method, **({"r": 2, "alpha": 4, "target_modules": ["query", "value"]} | changes))


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    options = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "learning_rate": 1e-2, "max_steps": 4,
        "report_to": [], "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no", "use_cpu": True,
        "lr_scheduler_type": "constant",
    }  # fmt: skip
    return TrainingArguments(**(options | changes))


def trainer(
    folder: Path, config: BiLoraConfig, model: nn.Module | None = None, kind: type = BiLoraTrainer, **changes: Any
) -> Any:
    """A trainer of BERT, or of another model; changes are those of training arguments, ``data`` and ``callbacks``."""
    data, callbacks = changes.pop("data", DATA), changes.pop("callbacks", None)
    return kind(
        bert() if model is None else model, arguments(folder, **changes), bilora=config, train_dataset=data,
        eval_dataset=data, callbacks=callbacks,
    )  # fmt: skip
