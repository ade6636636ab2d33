"""What a fine-tuning method is to the trainer: the weights it trains and the two places where methods differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, get_args

from peft import PeftModel
from torch import Tensor, nn

from bilora.adapters import PRIMARY, attach_adapter
from bilora.config import BiLoraConfig, Primary

Backward = Callable[[], Tensor]
"""One forward and backward pass on the current batch: adds to ``.grad`` and returns the detached loss."""

ADDED_TO_THE_WEIGHT: tuple[Primary, ...] = ("lora", "rslora", "pissa", "lora_ga")
"""Kinds of adapter whose merged weight is the frozen weight plus scaling · BA, so that moving one moves the other."""


class Method:
    """Plain descent on the trained weights; other methods override what differs.

    Attributes:
        name: Key in the registry.
        summary: One line for the command line's list.
        passes_per_step: Forward-backward passes of one optimizer step.
        fits: Kinds of primary adapter for which the method's update means what it says.
        model: The model to train, with whatever the method attached to it.
        step: Optimizer steps done; a method's state is in the weights and this number, so that resuming needs no more.
        num_steps: Optimizer steps of the whole training, which schedules need.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    passes_per_step: ClassVar[int] = 1
    fits: ClassVar[tuple[Primary, ...]] = get_args(Primary)

    def __init__(self, model: nn.Module, config: BiLoraConfig, *, seed: int) -> None:
        if config.primary not in self.fits:
            raise ValueError(
                f"primary: {self.name} moves the frozen weight, and under {config.primary} that is not the merged "
                f"weight moved by as much; expected one of {', '.join(self.fits)}"
            )
        self.config, self.seed = config, seed
        self.step, self.num_steps = 0, 1
        self.model = self.prepare(model)

    @property
    def progress(self) -> float:
        """Share of the training steps that are done, between 0 and 1."""
        return min(1.0, self.step / self.num_steps)

    @property
    def rho(self) -> float:
        """The radius of this step."""
        return self.config.rho_at(self.progress)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Attach adapters and mark what is trained."""
        raise NotImplementedError

    def primary_parameters(self) -> list[nn.Parameter]:
        """Weights that descend on the loss."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Groups for a `torch.optim` optimizer."""
        return [{"params": self.primary_parameters(), "lr": learning_rate}]

    def gradient(self, backward: Backward) -> Tensor:
        """Leave the step's gradient in ``.grad`` and return the loss at the point where it was taken."""
        return backward()

    def before_step(self) -> None:
        """Called when the step's gradient is complete, before the optimizer updates the weights."""

    def after_step(self) -> None:
        """Called when the optimizer has updated the weights."""
        self.step += 1

    def deployed(self) -> AbstractContextManager[None]:
        """While entered, the model computes what the method's result will."""
        return nullcontext()

    def metrics(self) -> dict[str, float]:
        """What the method adds to the training log."""
        return {}


def attach_primary(model: nn.Module, config: BiLoraConfig, *, seed: int, rank_factor: int = 1) -> PeftModel:
    """Attach the primary adapter; ``rank_factor`` multiplies rank and alpha, which keeps the scaling."""
    if isinstance(model, PeftModel):
        raise ValueError("model: expected a plain model, got one with adapters; use model.merge_and_unload() first")
    return attach_adapter(
        model,
        PRIMARY,
        r=config.r * rank_factor,
        alpha=config.alpha * rank_factor,
        target_modules=config.target_modules,
        seed=seed,
        modules_to_save=config.modules_to_save,
        kind=config.primary,
    )


def gradients_of(backward: Backward, parameters: Sequence[nn.Parameter]) -> tuple[Tensor, list[Tensor]]:
    """Run ``backward`` and return its loss and gradients, leaving earlier ``.grad`` contents as they were."""
    touched = list(parameters)
    stash = [p.grad for p in touched]
    for p in touched:
        p.grad = None
    loss = backward()
    gradients = [p.grad if p.grad is not None else p.new_zeros(p.shape) for p in touched]
    for p, earlier in zip(touched, stash, strict=True):
        p.grad = earlier
    return loss, gradients
