"""Two processes with half of the data each have the loss, gradient and curvature of one with all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from landscape import (
    EmpiricalFisherOperator,
    EmpiricalRisk,
    GGNOperator,
    HessianOperator,
    average_sharpness,
    estimate_trace,
    lanczos,
    losses_at,
    m_sharpness,
    power_iteration,
    spectral_density,
    trust_region_maximum,
    worst_case_sharpness,
)
from landscape.distributed import Group, Ranks
from tests.landscape.cases import data_of, model_of

OPERATORS = [HessianOperator, GGNOperator, EmpiricalFisherOperator]


def measured(batches: list[tuple[torch.Tensor, torch.Tensor]], group: Group = "all") -> dict[str, torch.Tensor]:
    risk = EmpiricalRisk(model_of("layer_norm"), batches, group=group)
    vector = torch.linspace(-1, 1, risk.num_params, dtype=torch.float64)
    numbers = {kind.__name__: kind(risk).matvec(vector) for kind in OPERATORS}
    numbers["loss"] = torch.tensor([risk.loss(), risk.loss_and_gradient()[0]])
    numbers["gradient"] = risk.gradient()
    numbers["eigenvalues"] = lanczos(HessianOperator(risk), 3, tol=1e-8).eigenvalues
    operator = HessianOperator(risk)
    for method in ("hutchinson", "hutch++", "xtrace"):
        trace = estimate_trace(operator, method=method, max_matvecs=40)
        numbers[f"trace {method}"] = torch.tensor([trace.trace, trace.stderr])
    numbers["density"] = spectral_density(operator, num_steps=10).density
    numbers["power"] = power_iteration(operator, 2, tol=1e-6).eigenvalues
    points = risk.theta + torch.linspace(0, 1, 7, dtype=torch.float64)[:, None] * vector
    for chunk in (None, 1, 3):
        numbers[f"points {chunk}"] = losses_at(risk, points, chunk=chunk)
    for m in (1, 3, 7):
        result = m_sharpness(risk, 0.1, m=m)
        numbers[f"m {m}"] = torch.tensor([result.rise, *result.rises])
    average = average_sharpness(risk, 0.1, num_samples=4)
    numbers["average"] = torch.tensor([average.rise, average.stderr])
    numbers["trust region"] = trust_region_maximum(operator, risk.gradient(), 0.1).epsilon
    numbers["worst_loss"] = torch.tensor(worst_case_sharpness(risk, 0.1, steps=5).worst_loss)
    return numbers


def ragged_batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, y = data_of("layer_norm")
    return [(x[:4], y[:4]), (x[4:5], y[4:5]), (x[5:], y[5:])]


def searched(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A search whose screen draws examples, and estimates on a sample of them."""
    risk = EmpiricalRisk(model_of("layer_norm"), batches)
    found = worst_case_sharpness(risk, 0.3, steps=6, restarts=3, screened=5, max_passes=1)
    effort = {"steps": 1, "restarts": 1, "screened": 1, "agreement": 0.0}
    once, further = (worst_case_sharpness(risk, 3.0, **effort, max_passes=passes) for passes in (1, 300))
    assert further.num_passes > 1.9 * once.num_passes  # ranks that counted differently would go on alone
    passes = [found.num_passes, further.num_passes, further.worst_loss]
    losses = torch.tensor([found.worst_loss, *found.search_losses, *found.start_losses.values(), *passes])
    return {"sizes": torch.tensor(len(risk.per_example_losses())), "losses": losses, "own": found.own.rises}


def leave() -> None:
    """Together: a process that goes while others still talk to it may abort."""
    dist.barrier()
    dist.destroy_process_group()


def share_of_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/share", rank=rank, world_size=3)
    save_file(searched(Ranks().share(ragged_batches())), f"{folder}/{rank}.safetensors")
    leave()


def one_rank(rank: int, folder: str, split: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    x, y = data_of("layer_norm")
    mine = slice(0, split) if rank == 0 else slice(split, 7)
    save_file(measured([(x[mine], y[mine])] if len(y[mine]) else []), f"{folder}/{rank}.safetensors")
    if rank == 0:  # the other one is not asked
        save_file(measured([(x, y)], group=None), f"{folder}/alone.safetensors")
    leave()


@pytest.mark.parametrize("split", [5, 7], ids=["uneven halves", "one rank without data"])
def test_two_ranks_equal_one_process(tmp_path: Path, split: int) -> None:
    mp.spawn(one_rank, args=(str(tmp_path), split), nprocs=2)
    x, y = data_of("layer_norm")
    alone = measured([(x, y)])
    for name in ("0", "1", "alone"):
        shared = load_file(tmp_path / f"{name}.safetensors")
        for measure, value in alone.items():
            torch.testing.assert_close(shared[measure], value, rtol=1e-6, atol=1e-9, msg=f"{measure} of {name}")


@pytest.mark.parametrize("group", ["none", 3, "ALL"])
def test_something_else_than_a_group_is_refused(group: object) -> None:
    with pytest.raises(ValueError, match="group: expected 'all'"):
        Ranks(group)  # type: ignore[arg-type]


def test_shares_of_three_ranks_are_searched_as_the_whole(tmp_path: Path) -> None:
    mp.spawn(share_of_rank, args=(str(tmp_path),), nprocs=3)
    alone = searched(ragged_batches())
    shares = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(3)]
    assert [int(share["sizes"]) for share in shares] == [2, 2, 3]
    for share in shares:
        torch.testing.assert_close(share["losses"], alone["losses"], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(share["own"], alone["own"], rtol=1e-6, atol=1e-9)
