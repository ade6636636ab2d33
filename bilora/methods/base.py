"""What a fine-tuning method is to the trainer: the weights it trains and the two places where methods differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, Literal, Protocol, get_args

from peft import PeftModel
from torch import Tensor, nn
from torch.optim import Optimizer

from bilora.beside import check_trains_itself
from bilora.buffers import remember_buffers
from bilora.config import WITHOUT_FACTORS, BiLoraConfig, Primary


class Backward(Protocol):
    """One forward and backward pass on the current batch: adds to ``.grad`` and returns the detached loss."""

    def __call__(self, fraction: float = 1.0, /) -> Tensor:
        """Run it on the first ``fraction`` of the batch's examples; see `bilora.parts.first_examples`."""
        ...


ADDED_TO_THE_WEIGHT: tuple[Primary, ...] = ("lora", "rslora", "pissa", "lora_ga")
"""Kinds of adapter whose merged weight is the frozen weight plus scaling · BA, so that moving one moves the other."""

ADAPTER = frozenset(
    ("r", "alpha", "target_modules", "modules_to_save", "primary", "rank_pattern", "alpha_pattern", "lora_dropout")
)
"""Settings of methods with a primary adapter."""
BALL = frozenset(("rho", "rho_schedule"))
"""Settings of methods with a radius."""


class Method:
    """Plain descent on the trained weights; other methods override what differs.

    Attributes:
        name: Key in the registry.
        summary: One line for the command line's list.
        passes_per_step: Forward-backward passes of one optimizer step, in units of one on the whole batch.
        fits: Kinds of primary adapter for which the method's update means what it says.
        uses: Settings that mean something to the method, beside ``method``.
        model: The model to train, with whatever the method attached to it.
        step: Optimizer steps done; a method's state is in the weights, this number and `state`.
        num_steps: Optimizer steps of the whole training, which schedules need; None where nobody has said.
        optimizer: What updates the weights, once there is one.
        batches_per_step: How many micro-batches make a step, by which the loss of each pass is divided: the trainer
            says it, and a loop of one's own that accumulates gradients.
        loss_scale: What the loss of a backward pass is multiplied by, in fp16's protocol.
        under_way: What the pass under way is for: ``step``, the trained weights' gradient, or ``ascent``, only the
            perturbation at which that one is taken.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    passes_per_step: float = 1
    fits: ClassVar[tuple[Primary, ...]] = tuple(kind for kind in get_args(Primary) if kind not in WITHOUT_FACTORS)
    uses: ClassVar[frozenset[str]] = ADAPTER

    def __init__(self, model: nn.Module, config: BiLoraConfig, *, seed: int) -> None:
        self.check(config)
        self.config, self.seed = config, seed
        self.step = 0
        self.num_steps: int | None = None
        self.loss_scale, self.batches_per_step = 1.0, 1.0
        self.optimizer: Optimizer | None = None
        self.under_way: Literal["step", "ascent"] = "step"
        self.model = self.prepare(model)
        self.begin_step()

    @classmethod
    def check(cls, config: BiLoraConfig) -> None:
        """Refuse settings that the method would ignore, and primaries that do not fit it.

        Raises:
            ValueError: There is one.
        """
        given = {name: getattr(config, name) for name in config.model_fields_set - cls.uses - {"method"}}
        # A radius of 0 is what methods without one have, and nothing given is nothing asked for.
        ignored = sorted(name for name, value in given.items() if value or isinstance(value, str))
        if ignored:
            raise ValueError(
                f"{', '.join(ignored)}: {cls.name} does not use it; expected settings of {cls.name}'s own "
                f"({', '.join(sorted(cls.uses)) or 'none'}), got "
                + ", ".join(f"{name}={given[name]!r}" for name in ignored)
            )
        if config.primary == "full" and "full" not in cls.fits:
            raise ValueError(
                f"primary: {cls.name} trains a primary adapter; expected one of {', '.join(cls.fits)}, got full "
                "(method 'full' trains all weights, 'sam' with SAM, and methods with an auxiliary take primary='full')"
            )
        if config.primary == "ia3" and "ia3" not in cls.fits:
            raise ValueError(
                f"primary: {cls.name} trains or moves an adapter's factors, of which ia3 has none; expected one of "
                f"{', '.join(cls.fits)}, or the method lora or one with an auxiliary"
            )
        if config.primary not in cls.fits:
            raise ValueError(
                f"primary: {cls.name} moves the frozen weight, and under {config.primary} that is not the merged "
                f"weight moved by as much; expected one of {', '.join(cls.fits)}"
            )

    @property
    def needs_num_steps(self) -> bool:
        """Whether the steps of the whole training have to be known."""
        return self.config.rho_schedule != "constant"

    @property
    def progress(self) -> float:
        """Share of the training steps that are done, between 0 and 1.

        Raises:
            ValueError: Nobody has said how many there are.
        """
        if self.num_steps is None:
            raise ValueError(
                f"num_steps: expected a number, needed by {self.name} with rho_schedule={self.config.rho_schedule!r}; "
                "got None: give it to the optimizer (bilora_optimizer, method_optimizer)"
            )
        return min(1.0, self.step / self.num_steps)

    @property
    def rho(self) -> float:
        """The radius of this step."""
        return self.config.rho if self.config.rho_schedule == "constant" else self.config.rho_at(self.progress)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Attach adapters and mark what is trained."""
        raise NotImplementedError

    def primary_parameters(self) -> list[nn.Parameter]:
        """Weights that descend on the loss."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def parameter_groups(self, learning_rate: float | None = None) -> list[dict[str, Any]]:
        """Groups for an optimizer, the descending weights first; without a rate, the optimizer's own is left."""
        return [{"params": self.primary_parameters()} | _rate(learning_rate)]

    def begin_step(self) -> None:
        """Called before the first micro-batch of a step, also of one that is tried again after an overflow."""

    @contextmanager
    def ascending(self) -> Iterator[None]:
        """Passes inside the block are for the perturbation."""
        self.under_way = "ascent"
        try:
            yield
        finally:
            self.under_way = "step"

    def gradient(self, backward: Backward) -> Tensor:
        """Leave the step's gradient in ``.grad`` and return the loss at the point where it was taken."""
        return backward()

    def before_step(self) -> None:
        """Called when the step's gradient is complete, before the optimizer updates the weights."""

    def after_step(self) -> None:
        """Called when the optimizer has updated the weights."""
        self.step += 1
        self.begin_step()

    def forget_gradients(self) -> None:
        """Called when the optimizer drops the gradients of its weights, for those of weights that it does not hold."""

    def restart(self) -> None:
        """Called when a training begins that does not go on from a checkpoint, to forget the one before."""
        self.step = 0
        self.begin_step()

    def deployed(self) -> AbstractContextManager[None]:
        """While entered, the model computes what the method's result will."""
        return nullcontext()

    def deploy(self) -> None:
        """Leave the model computing what the method's result is, once training is over."""

    def engage(self) -> None:
        """Take up training, again after `deploy`."""

    def metrics(self) -> dict[str, float]:
        """What the method adds to the training log."""
        return {}

    def state(self) -> dict[str, float]:
        """Numbers that resuming needs beside the weights and the step."""
        return {}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Take up what `state` gave."""

    def state_tensors(self) -> dict[str, Tensor]:
        """Tensors that resuming needs beside the weights."""
        return {}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `state_tensors` gave."""


def _rate(learning_rate: float | None) -> dict[str, float]:
    return {} if learning_rate is None else {"lr": learning_rate}


def trained_as_they_are(model: nn.Module, name: str) -> nn.Module:
    """The model itself, for methods that train its own weights; those that its owner froze stay frozen.

    Raises:
        ValueError: It holds LoRA, or nothing is left to train.
    """
    check_trains_itself(model)
    if isinstance(model, PeftModel):
        remember_buffers(model)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"model: {name} has nothing to train, all weights are frozen; use model.requires_grad_(True)")
    return model


def gradients_of(backward: Callable[[], Tensor], parameters: Sequence[nn.Parameter]) -> tuple[Tensor, list[Tensor]]:
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
