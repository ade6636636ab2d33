"""Loss and accuracy of a minimum, how stationary it is, and what its training cost."""

from __future__ import annotations

from collections.abc import Iterable

from analyses.measures.base import Measure
from analyses.measures.minima import Progress, Rows, Subject, low_rank_factors
from analyses.training.runs import method_config, read_run
from bilora.adapters import PRIMARY
from bilora.measured import factor_subspace


def generalization(subject: Subject, progress: Progress) -> Rows:
    """Loss and accuracy on training and test examples, the gradient there, and what the training cost.

    ``gradient_norm`` is ‖∇L‖ of the training loss over all measured weights and its part inside the tangent space of
    the run's LoRA factors: what is left of it says how far from stationary the deployed point is.
    """
    risk = subject.risk()
    yield from fit(subject, ("train", "test"))
    gradient = risk.gradient()
    tangent = factor_subspace(risk.layout, low_rank_factors(subject, PRIMARY), "tangent")
    for name, part in {"full": gradient, "lora": tangent.project(gradient)}.items():
        yield {"measure": "gradient_norm", "subspace": name, "value": float(part.double().norm())}
    trained = subject.run
    run = read_run(trained.folder.run(trained.study, trained.cell))
    yield {"measure": "train_step_seconds", "value": run["step_seconds"]}
    yield {"measure": "trainable_parameters", "value": run["trainable_parameters"]}
    if PRIMARY in subject.minimum.factors:
        yield {"measure": "adapter_rank", "value": method_config(trained.study, trained.cell.method).r}
    progress(1, 1)


def fit(subject: Subject, splits: Iterable[str]) -> Rows:
    """Loss and, where predictions are right or wrong, accuracy on each split."""
    for split in splits:
        yield {"measure": f"{split}_loss", "value": subject.risk(split).loss()}
        errors = subject.errors(split)
        if errors is not None:
            yield {"measure": f"{split}_accuracy", "value": 1 - errors.loss()}


GENERALIZATION = Measure("generalization", generalization, version=2)
