"""`transformers.Trainer` for every method of the registry."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from peft import PeftModel
from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback, TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_optimizer import is_optimizer_factory
from transformers.trainer_utils import IntervalStrategy

from bilora.adapters import PRIMARY
from bilora.beside import OverAdapters, own_adapters
from bilora.checkpoints import (
    check_config,
    clear_earlier,
    load_adapters,
    load_state,
    load_weights,
    save_adapter,
    save_own_weights,
    save_whole,
    write_state,
)
from bilora.config import BiLoraConfig
from bilora.logged_settings import settings_logged
from bilora.methods import build_method
from bilora.methods.bilora import BiLora
from bilora.optimizers import adopted, decaying_groups, hooked, over_groups
from bilora.parts import first_examples
from bilora.probe import AscentProbe


class _SparedTrain:
    """``model.train`` that does nothing where all modules train already."""

    def __init__(self, model: nn.Module, modules: Sequence[nn.Module]) -> None:
        self.model, self.modules, self.set_mode = model, modules, model.train

    def __call__(self, mode: bool = True) -> nn.Module:
        there = mode and all(module.training for module in self.modules)
        return self.model if there else self.set_mode(mode)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy that is made during a pass has its own class's method."""
        copied = memo[id(self.model)]
        return type(copied).train.__get__(copied)


@contextmanager
def _mode_kept(model: nn.Module, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Spare a model all of whose modules train the parent's ``model.train()`` before every pass.

    It walks over all modules, 6 to 8 % of a small adapter model's step; a look at their flags costs little.
    """
    own = model.__dict__.get("train")
    object.__setattr__(model, "train", _SparedTrain(model, modules))
    try:
        yield
    finally:
        if own is None:
            object.__delattr__(model, "train")
        else:
            object.__setattr__(model, "train", own)


class _DeployAtTheEnd(TrainerCallback):
    """Leaves the auxiliary out before other callbacks look at the trained model."""

    def __init__(self, trainer: BiLoraTrainer) -> None:
        self._trainer = trainer

    def on_train_end(self, *unused: Any, **parts: Any) -> None:
        self._trainer.method.deploy()


class BiLoraTrainer(Trainer):
    r"""Fine-tune with Bi-LoRA, or with any method that ``bilora.method`` names, where `transformers.Trainer` stood.

    One optimizer step of Bi-LoRA on a batch, with weights :math:`W_j = W^0_j + s_1B_{1j}A_{1j} + s_2B_{2j}A_{2j}`
    and the optimizer's update rule :math:`u_\eta(g)` with separate state for every tensor:

    1. one forward and one backward pass give :math:`g_i=\nabla_{(A_i,B_i)}L(W)`, i = 1, 2, at this one point;
    2. primary: :math:`(A_1,B_1) \leftarrow (A_1,B_1) - u_{\eta_1}(g_1)`;
       auxiliary: :math:`(A_2,B_2) \leftarrow (A_2,B_2) - u_{\eta_2}(-g_2)`, so that any optimizer ascends;
    3. :math:`c=\sqrt{\sum_j s_2^2\operatorname{tr}(B_{2j}^\top B_{2j}A_{2j}A_{2j}^\top)}`, and if :math:`c>\rho`
       every :math:`A_{2j}, B_{2j}` is multiplied by :math:`\sqrt{\rho/c}`.

    Gradient norm clipping (``max_grad_norm``) and weight decay (which spares biases and norms, as the parent's does)
    apply to the descending weights only. Evaluation and prediction run without the auxiliary, and training leaves the
    model without it. Logs carry the auxiliary's norm, the share of steps clipped and, read at the logged
    step, the ascent's first-order gain ⟨G, ε⟩ and cos(ε, G); the configuration that loggers record has the method's
    settings under ``bilora``. The other methods' updates stand in their own docstrings under `bilora.methods`.

    Args:
        model: Plain model; adapters are attached here. ``model_init`` may stand for it.
        args: Training arguments. ``args.seed`` also seeds the initial adapter.
        bilora: Method and its settings.
        **kwargs: As for `transformers.Trainer`. An optimizer in ``optimizers`` must hold the weights that the method
            trains, which only ``full`` and ``sam`` know beforehand; ``optimizer_cls_and_kwargs`` suits every method.

    Raises:
        ValueError: The method is unknown, would ignore a setting or does not fit the model, or the optimizer does not.
        FloatingPointError: During training, the loss of a step is not finite.
    """

    optimizer: Any
    label_smoother: Any

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        *,
        bilora: BiLoraConfig,
        **kwargs: Any,
    ) -> None:
        args = args or TrainingArguments(output_dir="tmp_trainer")  # the parent's default
        self.step_losses: list[float] = []
        self._bilora, self._seed = bilora, args.seed
        self._ascent: dict[str, float] = {}
        self._probe: AscentProbe | None = None
        self._step_begins, self._attempts = True, 0
        self._floating_point_ops: dict[tuple[torch.Size, ...], int] = {}
        self._modules: list[nn.Module] = []
        try:
            super().__init__(model=None if model is None else self._prepared(model), args=args, **kwargs)
        except KeyError as error:
            if error.args != ("default",):
                raise
            raise ValueError(
                f"{type(self).__name__}: a second base reads PEFT's adapter 'default', to make a reference model of "
                "it, as TRL's DPOTrainer does; expected one that takes a plain model, such as TRL's SFTTrainer"
            ) from error
        below = self.model.get_base_model() if isinstance(self.model, OverAdapters) else None
        if self.label_smoother is not None and type(below).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
            self.label_smoother = partial(self.label_smoother, shift_labels=True)  # the parent looks one level down
        self.callback_handler.callbacks.insert(0, _DeployAtTheEnd(self))
        if self.optimizer is not None:
            adopted(self.method, self.optimizer)
        elif self.lr_scheduler is not None:
            raise ValueError("optimizers: expected a scheduler together with its optimizer, got a scheduler alone")

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """A fresh model from ``model_init``, prepared for the method with the seed that the arguments have now."""
        self._seed = self.args.seed
        return self._prepared(super().call_model_init(trial))

    def _prepared(self, model: nn.Module) -> nn.Module:
        self.method = build_method(model, self._bilora, seed=self._seed)
        self._descending: list[nn.Parameter] = []
        return self.method.model

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's training; afterwards the model is what the method deploys, the auxiliary off."""
        self.method.engage()
        self.method.restart()
        self._attempts = 0
        try:
            with settings_logged(self, self._bilora.model_dump(mode="json")):
                return super().train(*args, **kwargs)
        finally:
            self.method.deploy()

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's loop, begun anew where ``auto_find_batch_size`` gives up a size in the middle of a step."""
        # What an earlier training left: of a step that it did not finish, and what may have changed since.
        self._probe, self._step_begins, self._modules, self._descending = None, True, [], []
        self._ascent = {}
        if self._attempts:
            self.method.restart()
            self.step_losses.clear()
        self._attempts += 1
        return super()._inner_training_loop(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Optimizer over the method's groups, of the class of ``args.optim`` or ``optimizer_cls_and_kwargs``."""
        other = super().create_optimizer
        if self.optimizer is None and getattr(other, "__func__", None) is not Trainer.create_optimizer:
            self.optimizer = None if (made := other()) is None else adopted(self.method, made)  # a second base's own
        if self.optimizer is None:
            optimizer_class, kwargs = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(
                self.args, self.model
            )
            if is_optimizer_factory(optimizer_class) or {"params", "model", "optimizer_dict"} & set(kwargs):
                raise ValueError(
                    f"args.optim: {self.args.optim} chooses the weights that it moves by itself; expected an optimizer "
                    "over given groups, such as adamw_torch"
                )
            names = set(self.get_decay_parameter_names(self.model))
            decaying = {id(p) for name, p in self.model.named_parameters() if name in names}
            decay = kwargs.get("weight_decay", self.args.weight_decay)
            groups = decaying_groups(self.method, kwargs.get("lr"), decay, decaying)
            self.optimizer = hooked(self.method, over_groups(optimizer_class, groups, kwargs))
        return self.optimizer

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One step's gradient as the method takes it."""

        def backward(fraction: float = 1.0) -> Tensor:
            # The parent moves what it is given, so a second pass needs the inputs again.
            part = first_examples(inputs, fraction)
            with _mode_kept(model, self._modules_of(model)):
                return super(BiLoraTrainer, self).training_step(model, part, num_items_in_batch)

        self.method.step, self.method.num_steps = self.state.global_step, max(1, self.state.max_steps)
        scaler = self.accelerator.scaler
        self.method.loss_scale = 1.0 if scaler is None else scaler.get_scale()
        if "inner_steps" in self.method.uses:  # counting labels waits for a GPU
            self.method.batches_per_step = self._batches_per_step(inputs, num_items_in_batch)
        self._know_optimizer()
        if self._step_begins:
            self.method.begin_step()
        self._step_begins = self.accelerator.sync_gradients
        if self._probe is None and isinstance(self.method, BiLora) and self._step_is_logged():
            self._probe = AscentProbe(self.method, num_passes=self.current_gradient_accumulation_steps)
        with self._probe or nullcontext():
            loss = self.method.gradient(backward)
        if self._probe is not None and self.accelerator.sync_gradients:
            self._ascent, self._probe = self._probe.metrics(), None
        if not bool(torch.isfinite(loss)):
            raise FloatingPointError(
                f"the training loss of {self.method.name} is {float(loss)} at step {self.state.global_step + 1}; "
                "lower the learning rate or rho"
            )
        self.step_losses.append(float(loss))
        return loss

    def _batches_per_step(self, inputs: Any, num_items_in_batch: Tensor | int | None) -> float:
        """By how much the parent divides the mean loss of a micro-batch: their number, or their share of the labels."""
        counted = self.model_accepts_loss_kwargs or self.compute_loss_func is not None
        by_count = getattr(self, "loss_is_scaled_for_ga", None)  # a subclass's word, since transformers 5.20
        by_count = counted if by_count is None else by_count
        if num_items_in_batch is None or not by_count or self.args.world_size > 1:
            return float(self.current_gradient_accumulation_steps)
        own = self._get_num_items_in_batch([inputs], self.args.device)
        return float(num_items_in_batch) / float(own) if own else float(self.current_gradient_accumulation_steps)

    def _know_optimizer(self) -> None:
        """Let the optimizer call the method, also one that was put in place past `create_optimizer` here."""
        optimizer = self.optimizer
        while isinstance(optimizer, AcceleratedOptimizer):
            optimizer = optimizer.optimizer
        if optimizer is not None and optimizer is not self.method.optimizer:
            adopted(self.method, optimizer)

    def _modules_of(self, model: nn.Module) -> list[nn.Module]:
        if not self._modules:
            self._modules = list(model.modules())
        return self._modules

    def _step_is_logged(self) -> bool:
        step = self.state.global_step + 1
        return self.args.logging_strategy == IntervalStrategy.STEPS and (
            step % self.state.logging_steps == 0 or (step == 1 and self.args.logging_first_step)
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The parent's log, with what the method says of itself beside the training loss."""
        if "loss" in logs:
            logs |= self.method.metrics() | self._ascent
            self._ascent = {}  # of the step that it was read at
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluation and prediction of what the method deploys: the auxiliary is off."""
        with self.method.deployed():
            return super().evaluation_loop(*args, **kwargs)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip the descending weights' gradients; the ascent's own clip bounds the auxiliary."""
        return self.accelerator.clip_grad_norm_(self._descending_weights(), self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Norm of the descending weights' gradient, for the log."""
        if grad_norm is not None:
            return grad_norm
        gradients = [p.grad for p in self._descending_weights() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def _descending_weights(self) -> list[nn.Parameter]:
        if not self._descending:
            self._descending = self.method.primary_parameters()
        return self._descending

    def floating_point_ops(self, inputs: Any) -> int:
        """The parent's count, taken once for each shape of batch: it walks over all parameters."""
        parts = inputs.values() if isinstance(inputs, Mapping) else inputs
        shapes = tuple(value.shape for value in parts if isinstance(value, Tensor))
        if shapes not in self._floating_point_ops:
            self._floating_point_ops[shapes] = super().floating_point_ops(inputs)
        return self._floating_point_ops[shapes]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save what the method deploys, the primary as a plain PEFT adapter or the full weights.

        Beside it lie the method's settings (``bilora.json``), the tokenizer or processor, and the training arguments;
        ``push_to_hub`` uploads this, too. Checkpoints, which the trainer writes itself, hold both adapters.
        """
        of_a_checkpoint = _internal_call and output_dir is not None
        if of_a_checkpoint or not isinstance(self.model, PeftModel):
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            directory = Path(output_dir or self.args.output_dir)
            clear_earlier(directory)
            if PRIMARY in own_adapters(self.model):
                save_adapter(self.model, PRIMARY, directory)
            else:
                save_whole(self.model, directory)
            self.method.config.save_pretrained(directory)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(directory)
            torch.save(self.args, directory / TRAINING_ARGS_NAME)  # as the parent does, under the name it gives it
        if self.args.push_to_hub and not _internal_call and isinstance(self.model, PeftModel):
            self.push_to_hub(commit_message="Model save")  # as the parent does

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        directory = Path(output_dir or self.args.output_dir)
        clear_earlier(directory)
        super()._save(output_dir, state_dict)
        self.method.config.save_pretrained(directory)
        write_state(self.method, directory)
        if isinstance(self.model, PeftModel) and PRIMARY not in own_adapters(self.model):
            save_own_weights(self.model, directory)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        check_config(self.method.config, Path(resume_from_checkpoint))
        self._load(Path(resume_from_checkpoint))
        load_state(self.method, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint)
        if not best.is_dir():  # as the parent has it, a training is not lost for that
            warnings.warn(f"load_best_model_at_end: {best} is gone; the model keeps its last weights", stacklevel=2)
            return
        self._load(best)

    def _load(self, checkpoint: Path) -> None:
        if isinstance(self.model, PeftModel):
            load_adapters(self.model, checkpoint)
        else:
            load_weights(self.model, checkpoint)


class BiLoraSeq2SeqTrainer(BiLoraTrainer, Seq2SeqTrainer):
    """`BiLoraTrainer` that evaluates by generating, where `transformers.Seq2SeqTrainer` stood.

    Texts are generated by what the method deploys: the auxiliary is off. Another subclass of `transformers.Trainer` is
    combined with `BiLoraTrainer` in the same way, as its second base.

    Args:
        model: Plain model; see `BiLoraTrainer`.
        args: Training arguments, with those of the generation.
        bilora: Method and its settings.
        **kwargs: As for `transformers.Seq2SeqTrainer`.

    Raises:
        ValueError: ``args`` says nothing of generation; else as `BiLoraTrainer`.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: Seq2SeqTrainingArguments | None = None,
        *,
        bilora: BiLoraConfig,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, Seq2SeqTrainingArguments):
            raise ValueError(
                "args: expected transformers.Seq2SeqTrainingArguments, which say how texts are generated, got "
                f"{type(args).__name__}"
            )
        super().__init__(model, args, bilora=bilora, **kwargs)
        if args.generation_config is not None and isinstance(self.model, PeftModel):
            self.model.get_base_model().generation_config = self.model.generation_config  # where `generate` looks
