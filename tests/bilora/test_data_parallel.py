"""Two gloo processes train what one process trains on the same global batch."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from bilora import METHODS

STEPS, LEARNING_RATE = 3, 0.05
# Two-pass methods perturb each rank by the gradient averaged over the ranks, so they too are one process's.
METHODS_OF_ONE_BATCH = sorted(METHODS)


def train(method: str, directory: Path, batch_size: int) -> dict[str, torch.Tensor]:
    from transformers import TrainingArguments

    from bilora import BiLoraTrainer
    from bilora.adapters import AUXILIARY, adapter_factors
    from tests.bilora.conftest import config_of
    from tests.bilora.test_trainer import dataset, tiny_vit

    arguments = TrainingArguments(
        output_dir=str(directory), max_steps=STEPS, per_device_train_batch_size=batch_size, learning_rate=LEARNING_RATE,
        report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True, optim="sgd",
        remove_unused_columns=False, train_sampling_strategy="sequential", max_grad_norm=0.0,
    )  # fmt: skip
    # A part of the batch would be other examples on two ranks.
    config = config_of(method, r=2, rho=0.05, target_modules=["q_proj", "fc1"], ascent_fraction=1.0)
    data = dataset()[:8]
    trainer = BiLoraTrainer(tiny_vit(), arguments, bilora=config, train_dataset=data)
    trainer.train()
    # An auxiliary's product: where a gradient has less than full rank, its factors hold arbitrary directions beside it.
    products = {name: pair.delta_weight.detach() for name, pair in adapter_factors(trainer.model, AUXILIARY).items()}
    named = {name: p.detach().clone() for name, p in trainer.method.model.named_parameters() if AUXILIARY not in name}
    return named | products


def _worker(rank: int, port: int, directory: str) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    torch.set_num_threads(1)
    with Path(directory, f"log{rank}").open("w") as log:
        sys.stdout = sys.stderr = log
        for method in METHODS_OF_ONE_BATCH:
            save_file(train(method, Path(directory, method), 2), Path(directory, f"{method}-{rank}.safetensors"))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_worker, (port, str(directory)), nprocs=2)
    return directory


@pytest.mark.parametrize("method", METHODS_OF_ONE_BATCH)
def test_two_processes_are_one_with_the_global_batch(ranks: Path, tmp_path: Path, method: str) -> None:
    one = train(method, tmp_path, 4)
    first, second = (load_file(ranks / f"{method}-{rank}.safetensors") for rank in (0, 1))
    for name, expected in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], expected, rtol=0, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
