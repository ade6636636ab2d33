"""A LoRA layer that applies several plain adapters as one product."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class FusedLinear(LoraLinear):
    r"""PEFT's LoRA layer, with the products of two or more plain active adapters fused.

    .. math:: Wx + \sum_i s_iB_iA_ix = Wx + [s_1B_1\;s_2B_2]\,[A_1; A_2]\,x

    The cost is that of one adapter with the ranks added up, whatever the number of adapters. Everything else (one
    adapter, dropout, DoRA, mixed batches, merged weights) takes PEFT's own way. The layer below is `torch.nn.Linear`
    or transformers' `Conv1D`, which stores the transposed weight.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any) -> None:
        below = base_layer.get_base_layer() if isinstance(base_layer, BaseTunerLayer) else base_layer
        transposed = isinstance(below, Conv1D)
        config.fan_in_fan_out = transposed
        super().__init__(base_layer, adapter_name, config, is_target_conv_1d_layer=transposed, **kwargs)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output; shapes as of the layer below."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        if args or kwargs or len(names) < 2 or x.ndim < 2 or not self._is_plain(names):
            return super().forward(x, *args, **kwargs)
        result: Tensor = self.base_layer(x)
        down = torch.cat([self.lora_A[name].weight for name in names])
        up = torch.cat([self.lora_B[name].weight * self.scaling[name] for name in names], dim=1)
        hidden = F.linear(self._cast_input_dtype(x, down.dtype), down)
        if hidden.dtype == result.dtype == up.dtype:
            flat = torch.addmm(result.flatten(0, -2), hidden.flatten(0, -2), up.T)
            return flat.view(result.shape)
        return (result + F.linear(hidden, up)).to(result.dtype)

    def _is_plain(self, names: list[str]) -> bool:
        return not (self.disable_adapters or self.merged) and all(
            name not in self.lora_variant
            and isinstance(self.lora_dropout[name], torch.nn.Identity)
            and not self.lora_bias[name]
            for name in names
        )
