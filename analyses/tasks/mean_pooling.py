"""A text encoder with a linear head on the mean of its token vectors."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class MeanPoolingClassifier(PreTrainedModel):
    r"""Logits :math:`C\,\bar h + c` with :math:`\bar h = \sum_t m_t h_t / \sum_t m_t` over the tokens that are there.

    The pooling is the one that sentence encoders such as MiniLM were trained with (Reimers and Gurevych 2019, arXiv
    1908.10084, section 3). The encoder's own pooler, which they do not use, is left out.
    """

    config_class = BertConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.encoder = AutoModel.from_config(config, add_pooling_layer=False)
        self.head = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Logits (n, classes) and, with labels (n,), their mean cross-entropy.

        Args:
            input_ids: Token numbers (n, length).
            attention_mask: 1 for a token, 0 for padding (n, length).
            labels: Classes (n,).
        """
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        logits = self.head((hidden * mask).sum(dim=1) / mask.sum(dim=1))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
