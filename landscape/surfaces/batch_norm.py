"""The loss of networks with batch normalisation, with running statistics re-estimated where it is evaluated."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from landscape.batches import call_arguments, map_tensors, to_device
from landscape.evaluation import exact_products, measuring
from landscape.risk import EmpiricalRisk


class RecomputedBatchNorm:
    """The mean loss at any point, after one pass over the data that renews the batch statistics there.

    Away from the centre the stored means and variances belong to other weights; training would have moved them along.
    They are renewed as for averaged weights (Izmailov et al. 2018, arXiv 1803.05407, section 3.2): in one pass, as the
    plain average over the batches, each batch normalised by its own statistics. All other modules stay in eval mode.
    The statistics are written to tensors of their own, so the model's buffers are not touched.

    Args:
        risk: Mean loss of a model that has batch normalisation with running statistics.

    Raises:
        ValueError: The model has none.
    """

    def __init__(self, risk: EmpiricalRisk) -> None:
        self._risk = risk
        named = risk.model.named_modules()
        self._norms = {name: m for name, m in named if isinstance(m, _BatchNorm) and m.track_running_stats}
        if not self._norms:
            raise ValueError(
                "batch_norm: expected a model with running batch statistics for 'recomputed', got none; use 'frozen'"
            )

    @torch.no_grad()
    def loss(self, theta: Tensor) -> float:
        """L at ``theta`` (n,) with the statistics of ``theta``."""
        risk = self._risk
        parameters = risk.layout.split(theta.to(risk.dtype))
        state = self._renewed(parameters)
        total = torch.zeros((), dtype=torch.float64, device=risk.device)
        for stored, weights in zip(risk.batches, risk.weights, strict=True):
            batch = to_device(stored, risk.device)
            with exact_products():
                losses = risk.losses_of(risk.outputs(batch, parameters, order=0, rest=state), batch)
            total += (losses.double() * weights).sum()
        mean = float(risk.ranks.all_sum(total)) / risk.total_weight
        return mean + float(risk.penalty(parameters)) if risk.l2 else mean

    def _renewed(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's state with batch statistics from one pass over the data at the given weights."""
        risk = self._risk
        state = risk.state()
        for name, norm in self._norms.items():
            for statistic, start in (("running_mean", 0), ("running_var", 1), ("num_batches_tracked", 0)):
                if getattr(norm, statistic) is not None:
                    state[f"{name}.{statistic}" if name else statistic].fill_(start)
        for index, batch in enumerate(risk.batches):
            # A forward pass may change its inputs.
            args, kwargs = map_tensors(call_arguments(to_device(batch, risk.device)), torch.clone)
            try:
                with measuring(risk.model, 0):
                    for norm in self._norms.values():  # for this pass: `measuring` puts them back
                        vars(norm).update(training=True, momentum=None)  # None: the plain average over batches
                    functional_call(risk.model, state | dict(parameters), args, kwargs)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise ValueError(
                    f"batch_norm: batch {index} has too few examples to take batch statistics from; use batches of "
                    "more, or batch_norm='frozen'"
                ) from error
        return state
