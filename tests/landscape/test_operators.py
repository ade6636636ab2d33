"""One suite that every operator passes, and what is special about those over data."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from landscape import DenseOperator, EmpiricalFisherOperator, EmpiricalRisk, GGNOperator, HessianOperator
from landscape.operators.graphs import RiskOperator
from tests.landscape.cases import CASES, Case, hessian_case, model_of, risk_of

OVER_DATA = [HessianOperator, GGNOperator, EmpiricalFisherOperator]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    return CASES[request.param]()


def test_equals_its_dense_reference(case: Case) -> None:
    torch.testing.assert_close(case.operator.to_dense(), case.dense, rtol=1e-9, atol=1e-11)


def test_is_linear_and_symmetric(case: Case) -> None:
    u, v = torch.randn(2, case.operator.shape[0], dtype=torch.float64)
    product = case.operator.matvec
    torch.testing.assert_close(product(2 * u - 3 * v), 2 * product(u) - 3 * product(v), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(u @ product(v), v @ product(u), rtol=1e-9, atol=1e-11)


def test_matmat_and_scipy_are_stacked_products(case: Case) -> None:
    matrix = torch.randn(case.operator.shape[0], 3, dtype=torch.float64)
    stacked = torch.stack([case.operator.matvec(column) for column in matrix.T], dim=1)
    torch.testing.assert_close(case.operator.matmat(matrix), stacked, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(torch.tensor(case.operator.to_scipy() @ matrix.numpy()), stacked, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", OVER_DATA)
def test_rebuilt_graphs_give_the_same_products(kind: type[RiskOperator]) -> None:
    risk = risk_of("layer_norm")
    vector = torch.randn(risk.num_params, dtype=torch.float64)
    kept = kind(risk)
    one_batch = kind(risk, graph_budget=kept.kept_bytes // 2)
    none = kind(risk, graph_budget=0)
    assert [operator.kept_batches for operator in (kept, one_batch, none)] == [3, 1, 0]
    assert kept.kept_bytes > one_batch.kept_bytes > none.kept_bytes == 0
    for operator in (one_batch, none):
        torch.testing.assert_close(operator.matvec(vector), kept.matvec(vector), rtol=1e-12, atol=1e-14)


def test_running_out_of_memory_ends_the_keeping_only(monkeypatch: pytest.MonkeyPatch) -> None:
    risk, build = risk_of("layer_norm"), HessianOperator.build
    calls = []

    def scarce(self: HessianOperator, index: int) -> Tensor:
        calls.append(index)
        if len(calls) == 4:  # the measuring build and two kept ones went well
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return build(self, index)

    monkeypatch.setattr(HessianOperator, "build", scarce)
    operator = HessianOperator(risk, check=False)
    assert operator.kept_batches == 1
    torch.testing.assert_close(operator.to_dense(), hessian_case("layer_norm").dense, rtol=1e-9, atol=1e-11)


def test_other_errors_while_building_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: HessianOperator, index: int) -> Tensor:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(HessianOperator, "build", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        HessianOperator(risk_of("layer_norm"))


def test_gauss_newton_is_the_hessian_of_a_linear_model() -> None:
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(0, 3, (6,))
    risk = EmpiricalRisk(nn.Linear(4, 3).double(), [(x, y)])
    torch.testing.assert_close(GGNOperator(risk).to_dense(), HessianOperator(risk).to_dense())


def test_gauss_newton_and_fisher_are_positive_semidefinite() -> None:
    for kind in (GGNOperator, EmpiricalFisherOperator):
        assert torch.linalg.eigvalsh(kind(risk_of("layer_norm")).to_dense()).min() > -1e-12


def test_piecewise_linear_losses_have_no_curvature() -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    risk = EmpiricalRisk(nn.Linear(3, 1).double(), [(x, x)], loss=lambda out, batch: out[:, 0])
    for kind in (HessianOperator, GGNOperator):
        assert kind(risk).to_dense().abs().max() == 0


@pytest.mark.parametrize("kind", OVER_DATA)
@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    width=st.integers(1, 4),
    double=st.booleans(),
)
def test_batches_do_not_matter(kind: type[RiskOperator], sizes: list[int], width: int, double: bool) -> None:
    dtype = torch.float64 if double else torch.float32
    torch.manual_seed(sum(sizes))
    model = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2)).to(dtype)
    x, y = torch.randn(sum(sizes), 3, dtype=dtype), torch.randint(0, 2, (sum(sizes),))
    pieces = list(zip(x.split(sizes), y.split(sizes), strict=True))
    whole, split = kind(EmpiricalRisk(model, [(x, y)])), kind(EmpiricalRisk(model, pieces))
    vector = torch.randn(whole.shape[0], dtype=dtype)
    assert split.matvec(vector).dtype == dtype
    tolerance = 1e-10 if double else 1e-4
    torch.testing.assert_close(split.matvec(vector), whole.matvec(vector), rtol=tolerance, atol=tolerance)


def test_finite_differences_of_the_gradient_bound_the_error() -> None:
    """Central differences at h are off by h²/6 of the third derivative plus rounding ε‖g‖/h."""
    risk = risk_of("layer_norm")
    vector = torch.randn(risk.num_params, dtype=torch.float64)
    exact = HessianOperator(risk).matvec(vector)
    errors = []
    for step in (1e-2, 1e-3):
        theta = risk.theta
        difference = (risk.gradient(theta + step * vector) - risk.gradient(theta - step * vector)) / (2 * step)
        errors.append(float((difference - exact).norm() / exact.norm()))
    assert errors[1] < 1e-4
    assert 50 < errors[0] / errors[1] < 200  # second order: a hundredth for a tenth of the step


def test_layer_spectra_come_from_the_same_data() -> None:
    risk = risk_of("layer_norm")
    dense = hessian_case("layer_norm").dense
    start = risk.layout.offsets[risk.layout.names.index("second.weight")]
    block = HessianOperator(risk.select(["second.weight"])).to_dense()
    torch.testing.assert_close(block, dense[start : start + 12, start : start + 12], rtol=1e-9, atol=1e-11)


def test_the_point_can_be_another_than_the_models() -> None:
    risk = risk_of("layer_norm")
    elsewhere = risk.theta + 0.1
    expected = HessianOperator(risk, theta=elsewhere).to_dense()
    model = model_of("layer_norm")
    for parameter in model.parameters():
        parameter.data += 0.1
    moved = EmpiricalRisk(model, risk.batches)
    torch.testing.assert_close(HessianOperator(moved).to_dense(), expected)


def test_bad_operators_are_refused() -> None:
    risk = risk_of("layer_norm")
    with pytest.raises(ValueError, match="vector: expected a tensor of shape"):
        HessianOperator(risk).matvec(torch.ones(3))
    with pytest.raises(ValueError, match="max_size"):
        HessianOperator(risk).to_dense(max_size=3)
    with pytest.raises(ValueError, match="square"):
        DenseOperator(torch.ones(2, 3))
    broken = [(torch.full((2, 5), math.nan, dtype=torch.float64), torch.tensor([0, 1]))]
    with pytest.raises(FloatingPointError, match="batch 0"):
        GGNOperator(EmpiricalRisk(model_of("layer_norm"), broken, check=False))
    frozen = EmpiricalRisk(model_of("tied"), [(torch.tensor([1]), torch.tensor([2]))], params=["unused"])
    with pytest.raises(ValueError, match="no gradient"):
        HessianOperator(frozen)
    with pytest.raises(ValueError, match="no gradient"):
        frozen.gradient()


def test_gauss_newton_uses_the_loss_the_user_gave() -> None:
    """For ½‖z − y‖² the inner Hessian is the identity: JᵀJ/N."""
    x, y = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    model = model_of("rms_norm")
    risk = EmpiricalRisk(
        model, [(x, y)], loss=lambda out, batch: 0.5 * F.mse_loss(out, batch[1], reduction="none").sum(1)
    )
    theta = risk.theta.requires_grad_()
    rows = []
    for value in risk.outputs(risk.batches[0], risk.layout.split(theta)).reshape(-1):
        rows.append(torch.autograd.grad(value, theta, retain_graph=True)[0])
    jacobian = torch.stack(rows)
    torch.testing.assert_close(GGNOperator(risk).to_dense(), jacobian.T @ jacobian / 4)
