"""Loss and accuracy of a minimum, and what its training cost."""

from __future__ import annotations

from analyses.measures.minima import Progress, Rows, Subject
from analyses.training.runs import method_config, read_run
from bilora.adapters import PRIMARY
from landscape.losses import zero_one


def generalization(subject: Subject, progress: Progress) -> Rows:
    """Loss and accuracy on training and test examples, and what the training cost."""
    for split in ("train", "test"):
        yield {"measure": f"{split}_loss", "value": subject.risk(split).loss()}
        yield {"measure": f"{split}_accuracy", "value": 1 - subject.risk(split, loss=zero_one).loss()}
    run = read_run(subject.folder.run(subject.study, subject.cell))
    yield {"measure": "train_step_seconds", "value": run["step_seconds"]}
    yield {"measure": "trainable_parameters", "value": run["trainable_parameters"]}
    if PRIMARY in subject.minimum.factors:
        yield {"measure": "adapter_rank", "value": method_config(subject.study, subject.cell.method).r}
    progress(1, 1)
