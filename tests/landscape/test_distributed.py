"""Two processes with half of the data each have the loss, gradient and curvature of one with all of it."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from landscape import (
    EmpiricalFisherOperator,
    EmpiricalRisk,
    GGNOperator,
    HessianOperator,
    lanczos,
    worst_case_sharpness,
)
from tests.landscape.cases import data_of, model_of

OPERATORS = [HessianOperator, GGNOperator, EmpiricalFisherOperator]


def measured(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    risk = EmpiricalRisk(model_of("layer_norm"), batches)
    vector = torch.linspace(-1, 1, risk.num_params, dtype=torch.float64)
    numbers = {kind.__name__: kind(risk).matvec(vector) for kind in OPERATORS}
    numbers["loss"] = torch.tensor([risk.loss(), risk.loss_and_gradient()[0]])
    numbers["gradient"] = risk.gradient()
    numbers["eigenvalues"] = lanczos(HessianOperator(risk), 3, tol=1e-8).eigenvalues
    numbers["worst_loss"] = torch.tensor(worst_case_sharpness(risk, 0.1, steps=5).worst_loss)
    return numbers


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    x, y = data_of("layer_norm")
    mine = slice(0, 5) if rank == 0 else slice(5, 7)  # uneven halves
    save_file(measured([(x[mine], y[mine])]), f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    mp.spawn(one_rank, args=(str(tmp_path),), nprocs=2)
    x, y = data_of("layer_norm")
    alone = measured([(x, y)])
    for rank in range(2):
        shared = load_file(tmp_path / f"{rank}.safetensors")
        for name, value in alone.items():
            torch.testing.assert_close(shared[name], value, rtol=1e-6, atol=1e-9, msg=name)
