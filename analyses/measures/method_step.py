"""What one optimizer step of a method costs: time, gradient passes, FLOPs, bytes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers.trainer_pt_utils import find_batch_size

from bilora.methods.base import Method
from bilora.optimizers import method_optimizer
from bilora.parts import first_examples


class MethodStep:
    """A method and AdamW on one fixed batch, without a training loop around them.

    Three steps are taken at the start, so that the optimizer's state exists and nothing is measured cold.

    Args:
        method: Prepared method; its model stays where it is.
        batch: What the model is called with; its output has ``.loss``.
        lr: Learning rate.
    """

    def __init__(self, method: Method, batch: Mapping[str, Tensor], *, lr: float) -> None:
        self.method, self.batch = method, dict(batch)
        self.device = next(iter(self.batch.values())).device
        self.method.model.train()
        self._optimizer = method_optimizer(method, torch.optim.AdamW, num_steps=1, lr=lr, weight_decay=0.0, fused=True)
        self._num_passes = 0.0
        for _ in range(3):
            self.step()

    def step(self) -> None:
        """One optimizer step."""
        self.method.gradient(self._backward)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _backward(self, fraction: float = 1.0) -> Tensor:
        batch = first_examples(self.batch, fraction)
        self._num_passes += find_batch_size(batch) / find_batch_size(self.batch)
        loss: Tensor = self.method.model(**batch).loss
        loss.backward()
        return loss.detach()

    def passes(self) -> float:
        """Forward-backward passes of one step, counted in units of one on the whole batch."""
        before = self._num_passes
        self.step()
        return self._num_passes - before

    def median_seconds(self, steps: int) -> float:
        """Median wall-clock time over ``steps`` steps."""
        times = []
        for _ in range(steps):
            self._synchronize()
            began = time.perf_counter()
            self.step()
            self._synchronize()
            times.append(time.perf_counter() - began)
        return sorted(times)[len(times) // 2]

    def flops(self) -> int:
        """Floating point operations of one step's matrix products and convolutions."""
        with FlopCounterMode(display=False) as counter:
            self.step()
        return counter.get_total_flops()

    def parameter_bytes(self) -> int:
        """Bytes of all weights, frozen ones included."""
        return _bytes(self.method.model.parameters())

    def optimizer_bytes(self) -> int:
        """Bytes of the optimizer's state."""
        states: list[dict[str, Any]] = list(self._optimizer.state.values())
        return _bytes(value for state in states for value in state.values() if isinstance(value, Tensor))

    def saved_bytes(self) -> int:
        """Bytes that the forward pass keeps for the backward pass, weights not counted, each storage once."""
        weights = {p.untyped_storage().data_ptr() for p in self.method.model.parameters()}
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # an output that its own graph keeps would never be freed

        # Inputs stay alive until the backward pass, so that no address is used twice.
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.method.model(**self.batch).loss
        total = sum(storages.values())
        del loss
        return total

    def peak_bytes(self) -> int:
        """Weights, optimizer state, and the most that one step allocates beside them."""
        resident = self.parameter_bytes() + self.optimizer_bytes()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self.step()
            return resident + torch.cuda.max_memory_allocated(self.device) - before
        with _silent_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self.step()
        current = peak = 0
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        for event in sorted(events, key=lambda e: e.start_ns()):
            current += event.nbytes()
            peak = max(peak, current)
        return resident + peak

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep the profiler's own trace lines, which no option turns off, out of the terminal."""
    sys.stderr.flush()
    saved = os.dup(2)
    with Path(os.devnull).open("w") as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
