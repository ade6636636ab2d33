"""Tiny models and data files such as a user brings along."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

GOOD, BAD = ("good", "great", "fine"), ("bad", "poor", "dull")
FILLERS = ("the", "film", "was", "and", "a", "plot", "in", "town")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
VOCABULARY = (*SPECIAL, *GOOD, *BAD, *FILLERS)


def save_tokenizer(folder: Path, *, framed: bool) -> None:
    """A tokenizer of whole words; ``framed`` ones put [CLS] … [SEP] around a text, others have no padding token."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names: dict[str, Any] = {"unk_token": "[UNK]", "eos_token": "[SEP]"}
    if framed:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]",
                 "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}  # fmt: skip
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def bert(folder: Path, **changes: Any) -> Path:
    """A BERT with dropout, as pretrained ones come."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, **changes,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(folder, framed=True)
    return folder


def gpt2(folder: Path) -> Path:
    """A GPT-2, whose layers are Conv1D and whose tokenizer knows no padding."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(VOCABULARY), n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=3, eos_token_id=3
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    save_tokenizer(folder, framed=False)
    return folder


def t5(folder: Path) -> Path:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(VOCABULARY), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=3,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    save_tokenizer(folder, framed=True)
    return folder


def reviews(count: int = 200, seed: int = 0) -> pd.DataFrame:
    """Sentences of different lengths with a good or a bad word, its label by name, a score, and the film."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        good = number % 2 == 0
        words = [draw.choice(FILLERS) for _ in range(draw.randint(2, 9))] + [draw.choice(GOOD if good else BAD)]
        draw.shuffle(words)
        rows.append(
            {"text": " ".join(words), "label": "fresh" if good else "rotten", "score": draw.gauss(float(good), 0.1),
             "film": f"film {number // 8}", "number": int(good) + 3}
        )  # fmt: skip
    return pd.DataFrame(rows)
