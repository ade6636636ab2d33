"""Models and surroundings as users have them: nothing of theirs is changed, nothing around changes a number."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from landscape import (
    EmpiricalRisk,
    GGNOperator,
    HessianOperator,
    average_sharpness,
    lanczos,
    linear_path,
    loss_line,
    losses_at,
    m_sharpness,
    power_iteration,
    worst_case_sharpness,
)
from landscape.operators import DenseOperator
from tests.landscape.test_consistency import CubeOnce

DRAW = torch.Generator().manual_seed(0)
X, Y = torch.randn(10, 3, generator=DRAW), torch.arange(10) % 2


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))


def differences(risk: EmpiricalRisk, step: float = 1e-6) -> Tensor:
    """The gradient by central differences of the loss."""
    theta, basis = risk.theta, torch.eye(risk.num_params, dtype=torch.float64)
    return torch.tensor(
        [(risk.loss(theta + step * one) - risk.loss(theta - step * one)) / (2 * step) for one in basis]
    ).double()


class Broken(nn.Module):
    def __init__(self, state: bool = False, time_first: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(3, 6), nn.Linear(4, 2)
        self.rnn = nn.RNN(6, 4, batch_first=not time_first)
        self.state, self.time_first = state, time_first

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[1 if self.time_first else 0]
        start = torch.zeros(1, size, 4, dtype=None if self.state else x.dtype)  # float32 whatever the model is
        return self.b(self.rnn(CubeOnce.apply(self.a(x)), start)[1][-1])


def test_a_selection_is_checked_for_itself() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(CubeOnce.apply(self.a(x)))

    head = EmpiricalRisk(Late().double(), [(X.double(), Y)], params="^b")
    HessianOperator(head)  # whose second derivatives are right
    with pytest.raises(ValueError, match="second derivatives are not those of its first ones"):
        HessianOperator(head.select("^a"))
    with pytest.raises(ValueError, match="second derivatives are not those of its first ones"):
        HessianOperator(head.select("^a").on(head.batches))


@pytest.mark.parametrize("time_first", [True, False])
@pytest.mark.parametrize("state", [True, False])
def test_models_that_run_in_float32_or_on_whole_batches_alone_are_checked_too(state: bool, time_first: bool) -> None:
    inputs = torch.randn(12, 5, 3, generator=DRAW)
    inputs = inputs.transpose(0, 1) if time_first else inputs
    risk = EmpiricalRisk(Broken(state, time_first), [(inputs, torch.arange(12) % 2)])
    with pytest.raises(ValueError, match="second derivatives are not those of its first ones"):
        HessianOperator(risk)


def test_a_right_model_of_float32_and_whole_batches_alone_passes() -> None:
    class Particular(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: Tensor) -> Tensor:
            if len(x) != 10 or x.dtype == torch.float64:
                raise RuntimeError("only as a whole")
            return self.inner(x)

    risk = EmpiricalRisk(Particular(), [(X, Y)])
    assert lanczos(HessianOperator(risk), 1).converged.all()
    assert (HessianOperator, risk.layout.names) in risk.consistent


def test_padded_encoders_have_one_loss() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.head(self.encoder(x, src_key_padding_mask=mask).mean(1))

    mask = torch.zeros(6, 5).bool()
    mask[0, 3:] = mask[1, 2:] = True
    inputs = {"x": torch.randn(6, 5, 8, generator=DRAW), "mask": mask}
    before = torch.backends.mha.get_fastpath_enabled()
    risk = EmpiricalRisk(Encoder(), [(inputs, torch.arange(6) % 2)])
    assert risk.loss() == pytest.approx(risk.loss_and_gradient()[0], rel=1e-6)
    found = worst_case_sharpness(risk, 0.1, steps=3, restarts=1, max_passes=20)
    assert found.worst_loss == pytest.approx(risk.loss(risk.theta + found.epsilon), rel=1e-5)
    assert float(found.contributions.sum()) == pytest.approx(found.rise, rel=1e-4)
    assert torch.backends.mha.get_fastpath_enabled() == before


class Halving(nn.Module):
    """Changes its inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.b = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x.mul_(0.5))).relu())


def test_recomputed_statistics_leave_the_data_alone() -> None:
    inputs = X.clone()
    risk = EmpiricalRisk(Halving(), [(inputs, Y)])
    before = risk.loss()
    line = loss_line(risk, risk.theta, [0.0, 0.0, 0.0], batch_norm="recomputed")
    assert torch.equal(inputs, X) and risk.loss() == before
    assert line.losses[0] == line.losses[2]
    alone = EmpiricalRisk(Halving(), [(X[:9], Y[:9]), (X[9:], Y[9:])])
    with pytest.raises(ValueError, match="batch_norm: batch 1 has too few examples to take batch statistics from"):
        loss_line(alone, alone.theta, [0.0, 1.0], batch_norm="recomputed")


def test_autocast_around_a_measurement_changes_nothing() -> None:
    risk = EmpiricalRisk(net(), [(X, Y)])
    plain, spectrum = worst_case_sharpness(risk, 1e-3), lanczos(HessianOperator(risk), 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert worst_case_sharpness(risk, 1e-3).rise == plain.rise
        assert torch.equal(lanczos(HessianOperator(risk), 1).eigenvalues, spectrum.eigenvalues)
        assert risk.loss() == EmpiricalRisk(net(), [(X, Y)]).loss()
        assert torch.is_autocast_enabled("cpu")


class Scaled(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2.0


@pytest.mark.parametrize("options", [{"padding_idx": 0}, {"scale_grad_by_freq": True}, {"sparse": True}])
def test_tables_of_derived_classes_have_whole_gradients(options: dict[str, Any]) -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.out = Scaled(6, 4, **options), nn.Linear(4, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.table(ids).tanh().mean(1))

    ids = torch.randint(0, 6, (10, 5), generator=DRAW)
    ids[:, 3:] = 0
    model = Words().double()
    risk = EmpiricalRisk(model, [(ids, Y)])
    torch.testing.assert_close(risk.gradient(), differences(risk), rtol=1e-6, atol=1e-9)
    assert HessianOperator(risk).to_dense().isfinite().all()
    assert (model.table.padding_idx, model.table.sparse) == (options.get("padding_idx"), options.get("sparse", False))


class Noting(nn.Module):
    """Notes things on itself in every way that a module can."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(3, 2)
        self.average = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.count, self.seen = torch.zeros(1), {"calls": 0}
        self.shapes: set[int] = set()

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x)
        self.average.data.mul_(0.9).add_(out.detach().mean(0), alpha=0.1)
        self.count += 1
        self.seen[f"call {len(self.seen)}"] = 1
        self.shapes.add(len(x))
        if "late" not in self._buffers:
            self.register_buffer("late", torch.ones(1))
        return out


def test_what_a_module_notes_is_put_back() -> None:
    model = Noting()
    risk = EmpiricalRisk(model, [(X, Y)])
    risk.loss()
    worst_case_sharpness(risk, 0.1, steps=2, restarts=1, max_passes=1)
    assert not model.average.any() and not model.count.any()
    assert model.seen == {"calls": 0} and model.shapes == set()
    assert set(model.state_dict()) == {"inner.weight", "inner.bias", "average"}


def test_global_random_numbers_are_put_back_on_errors_too() -> None:
    class Drawing(Dataset):
        def __init__(self, breaks: bool) -> None:
            self.breaks = breaks

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            random.random(), np.random.rand()
            if self.breaks and torch.rand(()) >= 0:
                raise KeyError("gone")
            return X[index], 0

    first, second, third = net(), net(), nn.Sequential(net(), nn.Dropout())
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    EmpiricalRisk(first, DataLoader(Drawing(False), shuffle=True))
    with pytest.raises(KeyError):
        EmpiricalRisk(second, DataLoader(Drawing(True), shuffle=True))
    with pytest.raises(ValueError, match="class indices"):
        EmpiricalRisk(third, [(X, Y + 7)])
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_a_start_beside_the_largest_pair_is_not_converged() -> None:
    matrix = DenseOperator(torch.diag(torch.tensor([10.0, 5.0, 1.0, *torch.zeros(20)])).double())
    start = torch.eye(23).double()[:, 1:2]
    found = power_iteration(matrix, 1, start=start)
    assert float(found.eigenvalues[0]) == pytest.approx(5.0) and not found.converged.any()
    right = power_iteration(matrix, 1, start=torch.eye(23).double()[:, :1])
    assert float(right.eigenvalues[0]) == pytest.approx(10.0) and right.converged.all()


def test_half_precision_operators_are_refused() -> None:
    for solve in (lanczos, power_iteration):
        with pytest.raises(ValueError, match="operator: expected products in float32 or float64"):
            solve(DenseOperator(torch.eye(4).bfloat16()), 1)


def test_radii_below_rounding_are_refused() -> None:
    risk = EmpiricalRisk(net(), [(X, Y)])
    with pytest.raises(ValueError, match=r"rho: 1e-12 is below what torch\.float32 resolves"):
        worst_case_sharpness(risk, 1e-12)
    with pytest.raises(ValueError, match="rho: 1e-08 is below"):
        worst_case_sharpness(risk, 1e-8, adaptive="elementwise")
    fine = EmpiricalRisk(net(), [(X, Y)], dtype=torch.float64)
    found = worst_case_sharpness(fine, 1e-9)
    assert found.rise == pytest.approx(1e-9 * float(fine.gradient().norm()), rel=1e-3)


def test_gradients_need_no_mode_but_inference() -> None:
    risk = EmpiricalRisk(net(), [(X, Y)])
    with torch.no_grad():
        off = HessianOperator(risk).to_dense(), GGNOperator(risk).to_dense()
    assert torch.equal(off[0], HessianOperator(risk).to_dense()) and torch.equal(off[1], GGNOperator(risk).to_dense())
    with torch.inference_mode():
        for measure in (risk.gradient, lambda: HessianOperator(risk)):
            with pytest.raises(ValueError, match=r"inside torch.inference_mode\(\); measure outside"):
                measure()


def test_points_and_spaces_of_another_precision() -> None:
    risk = EmpiricalRisk(net(), [(X, Y)])
    theta = risk.theta.double()
    assert risk.loss(theta) == risk.loss()
    assert HessianOperator(risk, theta=theta).dtype == torch.float32
    assert float(losses_at(risk, theta[None])[0]) == pytest.approx(risk.loss(), rel=1e-6)
    assert linear_path(risk, theta, theta + 0.1, num_points=3).losses.isfinite().all()
    basis = torch.linalg.qr(torch.randn(risk.num_params, 2, generator=DRAW).double()).Q
    assert worst_case_sharpness(risk, 0.1, subspace=basis, steps=2, restarts=1, max_passes=1).rise > 0
    assert average_sharpness(risk, 0.1, subspace=basis, num_samples=2).samples.isfinite().all()
    with pytest.raises(ValueError, match=r"basis: expected orthonormal columns, shape \(n, k\), got"):
        worst_case_sharpness(risk, 0.1, subspace=basis[:, 0])
    with pytest.raises(ValueError, match=r"subspace: expected a basis of shape \(98, k\), .* got \(5, 2\)"):
        worst_case_sharpness(risk, 0.1, subspace=torch.eye(5)[:, :2])


def test_models_that_differentiate_themselves() -> None:
    class Physics(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: Tensor) -> Tensor:
            slope = torch.func.vmap(torch.func.grad(lambda one: self.inner(one)[0]))(x)
            return self.inner(x) + slope[:, :2]

    model = Physics().double()
    risk = EmpiricalRisk(model, [(X.double(), Y)])
    torch.testing.assert_close(risk.gradient(), differences(risk), rtol=1e-5, atol=1e-8)
    assert HessianOperator(risk).kept_batches == 0
    assert loss_line(risk, risk.theta, [0.0, 0.1]).losses.isfinite().all()
    assert worst_case_sharpness(risk, 0.1, steps=2, restarts=1, max_passes=1).rise > 0


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_models_are_refused(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.utils.checkpoint.checkpoint(self.inner[0], x.requires_grad_(), use_reentrant=reentrant)
            return self.inner[1:](hidden)

    with pytest.raises(ValueError, match="model: it checkpoints activations in eval mode"):
        EmpiricalRisk(Checkpointed(), [(X, Y)])


def test_weights_that_no_gradient_reaches_may_not_move_the_loss() -> None:
    class Lost(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.inner, self.how = net(), how
            self.spare = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            if self.how == "checkpoint":  # of inputs that need no gradient
                hidden = torch.utils.checkpoint.checkpoint(self.inner[0], x, use_reentrant=True)
            elif self.how == "no_grad":
                with torch.no_grad():
                    hidden = self.inner[0](x)
            else:
                hidden = self.inner[0](x).detach()
            return self.inner[1:](hidden)

    for how in ("checkpoint", "no_grad", "detach"):
        with pytest.raises(
            ValueError, match=r"model: the loss depends on inner\.0\.weight, but no gradient reaches it"
        ):
            EmpiricalRisk(Lost(how), [(X, Y)])
        head = EmpiricalRisk(Lost(how), [(X, Y)], params=r"inner\.2|spare")  # spare is used by nothing
        assert float(head.gradient().norm()) > 0


def test_modules_without_shapes_are_told_to_run_once() -> None:
    lazy = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"model: 0\.weight has no shape yet; run the model once"):
        EmpiricalRisk(lazy, [(X, Y)])
    lazy(X)
    assert EmpiricalRisk(lazy, [(X, Y)]).loss() > 0


def test_counts_are_whole_and_starts_have_names() -> None:
    risk = EmpiricalRisk(net(), [(X, Y)])
    for name in ("steps", "restarts", "screened", "max_passes"):
        with pytest.raises(ValueError, match=f"{name}: expected a count of at least 1, got 2.5"):
            worst_case_sharpness(risk, 0.1, **{name: 2.5})
    with pytest.raises(ValueError, match=r"starts: expected directions by name, got a list"):
        worst_case_sharpness(risk, 0.1, starts=[risk.theta])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"m: expected 1 <= m <= N = 10 examples, got 2\.0"):
        m_sharpness(risk, 0.1, m=2.0)  # type: ignore[arg-type]


def test_packed_sequences_and_named_tuples_stay_what_they_are() -> None:
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(4, 5, 3, generator=DRAW), torch.tensor([5, 4, 3, 2]), True)

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Any) -> Tensor:
            return self.out(self.rnn(x)[1][-1])

    labels = torch.tensor([0, 1, 0, 1])
    model = Packed()
    risk = EmpiricalRisk(model, [(packed, labels)])
    with torch.no_grad():
        assert risk.loss() == pytest.approx(float(F.cross_entropy(model(packed), labels)), rel=1e-6)
