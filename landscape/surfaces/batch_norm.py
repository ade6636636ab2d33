"""The loss of networks with batch normalisation, with running statistics re-estimated where it is evaluated."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from landscape.batches import call_arguments, map_tensors, to_device
from landscape.risk import EmpiricalRisk


class RecomputedBatchNorm:
    """The mean loss at any point, after one pass over the data that renews the batch statistics there.

    Away from the centre the stored means and variances belong to other weights; training would have moved them along.
    They are renewed as for averaged weights (Izmailov et al. 2018, arXiv 1803.05407, section 3.2): in one pass, as the
    plain average over the batches, each batch normalised by its own statistics. All other modules stay in eval mode.
    A copy of the model takes the statistics, so the caller's buffers are not touched.

    Args:
        risk: Mean loss of a model that has batch normalisation with running statistics.

    Raises:
        ValueError: The model has none.
    """

    def __init__(self, risk: EmpiricalRisk) -> None:
        self._risk = copy.copy(risk)
        self._risk.model = copy.deepcopy(risk.model).to(risk.dtype).eval()
        self._norms = [m for m in self._risk.model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        if not self._norms:
            raise ValueError(
                "batch_norm: expected a model with running batch statistics for 'recomputed', got none; use 'frozen'"
            )
        for norm in self._norms:
            norm.momentum = None  # torch's word for the plain average over batches

    @torch.no_grad()
    def loss(self, theta: Tensor) -> float:
        """L at ``theta`` (n,) with the statistics of ``theta``."""
        parameters = self._risk.layout.split(theta)
        for norm in self._norms:
            norm.reset_running_stats()
            norm.train()
        for index, batch in enumerate(self._risk.batches):
            inputs = call_arguments(to_device(batch, self._risk.device))
            args, kwargs = map_tensors(inputs, torch.clone)  # a forward pass may change its inputs
            try:
                functional_call(self._risk.model, parameters, args, kwargs)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise ValueError(
                    f"batch_norm: batch {index} has too few examples to take batch statistics from; use batches of "
                    "more, or batch_norm='frozen'"
                ) from error
        for norm in self._norms:
            norm.eval()
        return self._risk.loss(theta)
