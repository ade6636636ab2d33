"""Curvature along training: the numbers of the deployed weights, and a training that does not notice."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from transformers import TrainerCallback, TrainingArguments

from bilora import BiLoraConfig, BiLoraTrainer, CurvatureCallback, minimum
from landscape import EmpiricalRisk, HessianOperator, lanczos

INPUTS, TARGETS = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
BATCHES = [(INPUTS[:14], TARGETS[:14]), (INPUTS[14:], TARGETS[14:])]


class Net(nn.Module):
    """Takes and returns what a Trainer's model does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        logits = self.last(nn.functional.dropout(torch.tanh(self.first(x)), 0.1, self.training))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Examples(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return len(INPUTS)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": INPUTS[index], "labels": TARGETS[index]}


class Logged(TrainerCallback):
    """What a logger of the trainer's is told."""

    def __init__(self) -> None:
        self.scalars: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kw: Any) -> None:
        self.scalars.append(dict(logs))


def loss_of_logits(outputs: Any, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs["logits"], batch["labels"], reduction="none")


def as_mappings() -> list[dict[str, torch.Tensor]]:
    return [{"x": x, "labels": y} for x, y in BATCHES]


def trained(folder: Path, watch: CurvatureCallback | None, *, attach: bool = False) -> tuple[BiLoraTrainer, Logged]:
    logged = Logged()
    trainer = BiLoraTrainer(
        Net(),
        TrainingArguments(
            output_dir=str(folder), max_steps=5, per_device_train_batch_size=8, learning_rate=0.1, report_to=[],
            use_cpu=True, disable_tqdm=True, save_strategy="no", logging_strategy="no", seed=3,
        ),
        bilora=BiLoraConfig(r=2, rho=0.05, target_modules=["first", "last"]),
        train_dataset=Examples(),
        callbacks=[logged, *([watch] if watch and not attach else [])],
    )  # fmt: skip
    if watch and attach:
        watch.attach(trainer)
    trainer.train()
    return trainer, logged


def test_training_is_the_same_to_the_bit_and_the_deployed_weights_are_measured(tmp_path: Path) -> None:
    watch = CurvatureCallback(as_mappings(), every=2, loss=loss_of_logits, tol=1e-4, per_layer=True, density=True)
    watched, logged = trained(tmp_path / "a", watch, attach=True)
    plain, _ = trained(tmp_path / "b", None)
    for (name, weight), other in zip(watched.model.named_parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(weight, other), name
    assert [row["step"] for row in watch.rows] == [0, 2, 4, 5] and sorted(watch.densities) == [0, 2, 4, 5]
    deployed = minimum(plain.model)
    risk = EmpiricalRisk(deployed.model, as_mappings(), loss_of_logits, list(deployed.weight_names))
    expected = torch.linalg.eigvalsh(HessianOperator(risk).to_dense().double())
    last = watch.rows[-1]
    assert last["loss"] == pytest.approx(risk.loss())
    assert last["top_eigenvalue"] == pytest.approx(float(expected[-1]), rel=1e-3)
    assert abs(last["trace"] - float(expected.sum())) <= 5 * last["trace_stderr"] + 1e-4
    block = lanczos(HessianOperator(risk.select([deployed.weight_names[0]])), 1)
    assert last[f"top_eigenvalue/{deployed.weight_names[0]}"] == pytest.approx(float(block.eigenvalues[0]), rel=1e-3)
    assert last["worst_case_rise"] > 0 and last["num_passes"] > 10 and last["seconds"] > 0
    told = [scalars for scalars in logged.scalars if "curvature/trace" in scalars]
    assert [scalars["curvature/trace"] for scalars in told] == [row["trace"] for row in watch.rows]
    with (tmp_path / "a" / "curvature.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["top_eigenvalue"]) for row in table] == [row["top_eigenvalue"] for row in watch.rows]


def test_among_the_callbacks_it_keeps_the_log_history(tmp_path: Path) -> None:
    watch = CurvatureCallback(as_mappings(), every=5, measures=["top_eigenvalue"], loss=loss_of_logits)
    trainer, _ = trained(tmp_path, watch)
    kept = [entry for entry in trainer.state.log_history if "curvature/top_eigenvalue" in entry]
    assert [entry["step"] for entry in kept] == [0, 5]


def test_a_loop_of_ones_own_and_warm_starts(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    watch = CurvatureCallback(BATCHES, measures=["top_eigenvalue"], path=tmp_path / "curvature.csv", tol=1e-3)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    for step in range(3):
        watch.measure(model.train(), step)
        nn.functional.cross_entropy(model(INPUTS), TARGETS).backward()
        optimizer.step()
        assert model.training
    assert len((tmp_path / "curvature.csv").read_text().splitlines()) == 4
    parameters = {name: weight.detach().double() for name, weight in model.named_parameters()}

    def loss(first: torch.Tensor) -> torch.Tensor:
        logits = functional_call(model, parameters | {"0.weight": first}, (INPUTS.double(),))
        return nn.functional.cross_entropy(logits, TARGETS)

    block = torch.func.hessian(loss)(parameters["0.weight"]).reshape(24, 24)
    alone = CurvatureCallback(BATCHES, measures=["top_eigenvalue"], params=["0.weight"], tol=1e-4)
    assert alone.measure(model, 0)["top_eigenvalue"] == pytest.approx(float(torch.linalg.eigvalsh(block)[-1]), rel=1e-3)
    assert watch.rows[2]["num_passes"] < watch.rows[0]["num_passes"]


def test_a_shuffling_loader_draws_nothing_that_training_would_miss() -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(INPUTS, TARGETS), batch_size=7, shuffle=True)
    state = torch.get_rng_state()
    assert len(CurvatureCallback(loader).batches) == 4 and torch.equal(state, torch.get_rng_state())
    dropping = torch.utils.data.DataLoader(loader.dataset, batch_size=7, drop_last=True)
    with pytest.raises(ValueError, match="use drop_last=False"):
        CurvatureCallback(dropping)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": 0}, "every: expected at least 1 step"),
        ({"measures": ["hessian"]}, "measures: expected some of top_eigenvalue"),
        ({"measures": "trace"}, "in a list"),
        ({"rho": 0.0}, "rho, tol: expected positive numbers"),
    ],
)
def test_wrong_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CurvatureCallback(BATCHES, **changes)
