"""What a task has to know of a model before it trains one."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from analyses.study.base import StudyError


def token_places(config: Any, auto: str, wanted: int) -> int | None:
    """Tokens of a text that a model has positions for; None where its configuration names no limit.

    The positions of RoBERTa's kin begin behind that of the padding. A model is laid out, without weights, only where
    that may matter.

    Args:
        config: Of the model.
        auto: Class of `transformers` that makes it.
        wanted: Tokens that are to be kept.
    """
    places: int | None = getattr(config, "max_position_embeddings", None)
    if not places or wanted < places - 2 - (getattr(config, "pad_token_id", None) or 0):
        return places
    with torch.device("meta"):
        model = getattr(transformers, auto).from_config(copy.deepcopy(config))
    for name, module in model.named_modules():
        if "position_embeddings" in name and getattr(module, "padding_idx", None) is not None:
            return int(module.num_embeddings) - int(module.padding_idx) - 1
    return places


@torch.no_grad()
def check_causal(model: PreTrainedModel, name: str) -> None:
    """Refuse a language model whose prediction of a token sees the token.

    Raises:
        StudyError: A later token changes what is predicted before it.
    """
    ids = torch.tensor([[0, 1, 0, 1], [0, 1, 0, 0]])
    first, second = model.eval()(input_ids=ids).logits[:, :2]
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-4 * float(first.abs().max())):
        raise StudyError(
            f"task.model: {name} predicts a token from those after it, too (is_decoder in its config.json?); expected "
            "a causal language model"
        )
