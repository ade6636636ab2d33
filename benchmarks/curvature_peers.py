"""Eigenpairs, traces and densities by three other libraries (and landscape's eigenpairs), each behind one call.

A solver offers its settings from loose to tight. `solve` runs one of them on the library's own operator, or, to find
the setting that reaches a residual without paying for slow products, on a product that is passed in.
Where a library has a safeguard that costs time (curvlinops' check that the data repeat themselves), it is off; where
it has one that makes results right (eigenthings' reorthogonalisation, off by default above 50 steps), it is on.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from curvature_models import Problem
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn

from landscape import HessianOperator, lanczos

K = 5
SEED = 0
GRAPH_BUDGET = 2**33
"""Bytes for landscape's kept graphs: enough for every problem here; the table says what they take."""

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pairs:
    """Eigenvalues (k,) and eigenvectors (n, k) as a library returned them, and the products it took."""

    values: Tensor
    vectors: Tensor
    num_products: int


@dataclass(frozen=True)
class Solver:
    """``settings`` from loose to tight; ``solve(problem, setting, max_products, product)``."""

    name: str
    option: str
    settings: tuple[float, ...]
    solve: Callable[[Problem, float, int, Product | None], Pairs]
    is_peer: bool = True


def peer(name: str) -> ModuleType:
    """Import a library that only the benchmarks need.

    Raises:
        SystemExit: It is not installed here.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SystemExit(
            f"{name} cannot be imported ({error}): run `make benchmark-env`, then .venv-benchmark/bin/python {__file__}"
        ) from error


def own_hessian(problem: Problem) -> HessianOperator:
    return HessianOperator(problem.risk(), graph_budget=GRAPH_BUDGET)


def solve_landscape(problem: Problem, tol: float, max_products: int, product: Product | None) -> Pairs:
    result = lanczos(own_hessian(problem), K, which="LM", tol=tol, max_matvecs=max_products, seed=SEED)
    return Pairs(result.eigenvalues, result.eigenvectors, result.num_matvecs)


def solve_pyhessian(problem: Problem, tol: float, max_products: int, product: Product | None) -> Pairs:
    """Power iteration with deflation; ``tol`` is the relative change of an eigenvalue between two iterations."""

    class Counting(peer("pyhessian").hessian):
        num_products = 0

        def dataloader_hv_product(self, v: list[Tensor]) -> tuple[float, list[Tensor]]:
            self.num_products += 1
            if product is None:
                return super().dataloader_hv_product(v)
            flat = flatten(v)
            image = product(flat)
            return float(image @ flat), unflatten(image, self.params)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        computation = Counting(problem.plain, nn.CrossEntropyLoss(), dataloader=problem.pairs, cuda=False)
        values, vectors = computation.eigenvalues(maxIter=max_products // K, tol=tol, top_n=K)
    problem.plain.zero_grad()
    columns = torch.stack([flatten(vector) for vector in vectors], dim=1).detach()
    return Pairs(torch.tensor(values, dtype=torch.float64), columns, computation.num_products)


def solve_curvlinops(problem: Problem, tol: float, max_products: int, product: Product | None) -> Pairs:
    """Implicitly restarted Lanczos (ARPACK) on curvlinops' products; ``tol`` is eigsh's."""
    operator = curvlinops_hessian(problem).to_scipy()
    if product is not None:
        operator = LinearOperator(operator.shape, matvec=_numpy(product), dtype=operator.dtype)
    products = 0

    def counted(vector: np.ndarray) -> np.ndarray:
        nonlocal products
        products += 1
        return operator.matvec(vector)

    start = np.random.default_rng(SEED).standard_normal(operator.shape[0])
    view = LinearOperator(operator.shape, matvec=counted, dtype=operator.dtype)
    try:
        values, vectors = eigsh(view, K, which="LM", tol=tol, v0=start, maxiter=max(1, max_products // 15))
    except ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
    return Pairs(torch.from_numpy(values), torch.from_numpy(vectors), products)


def solve_eigenthings(problem: Problem, num_steps: float, max_products: int, product: Product | None) -> Pairs:
    """Lanczos without restart, with the exact products."""
    return _eigenthings(problem, int(num_steps), product, "autograd")


def solve_eigenthings_differences(
    problem: Problem, num_steps: float, max_products: int, product: Product | None
) -> Pairs:
    """Lanczos without restart, with central differences of the gradient in place of the products."""
    return _eigenthings(problem, int(num_steps), product, "finite_difference")


def _eigenthings(problem: Problem, num_steps: int, product: Product | None, method: str) -> Pairs:
    library = peer("hessian_eigenthings")
    operator = eigenthings_hessian(problem, method)
    if product is not None:
        operator = library.LambdaOperator(product, operator.size, dtype=operator.dtype)
    result = library.lanczos(operator, k=K, max_iter=num_steps, reorthogonalize=True, which="LM", seed=SEED)
    return Pairs(result.eigenvalues, result.eigenvectors.T, result.iterations)


def peer_products(problem: Problem) -> dict[str, Product]:
    """Each library's own product with a vector (n,)."""
    computation = peer("pyhessian").hessian(problem.plain, nn.CrossEntropyLoss(), dataloader=problem.pairs, cuda=False)
    curvlinops = curvlinops_hessian(problem)
    return {
        "PyHessian": lambda v: flatten(computation.dataloader_hv_product(unflatten(v, computation.params))[1]),
        "curvlinops": lambda v: curvlinops @ v,
        "hessian-eigenthings": eigenthings_hessian(problem).matvec,
        "hessian-eigenthings, differences": eigenthings_hessian(problem, "finite_difference").matvec,
    }


def trace_pyhessian(problem: Problem, num_products: int) -> float:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        computation = peer("pyhessian").hessian(
            problem.plain, nn.CrossEntropyLoss(), dataloader=problem.pairs, cuda=False
        )
        samples = computation.trace(maxIter=num_products, tol=0.0)
    problem.plain.zero_grad()
    return float(np.mean(samples))


def trace_curvlinops(problem: Problem, function: str, num_products: int) -> float:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return float(getattr(peer("curvlinops"), function)(curvlinops_hessian(problem), num_products))


def trace_eigenthings(problem: Problem, method: str, num_products: int) -> float:
    library = peer("hessian_eigenthings")
    result = library.trace(eigenthings_hessian(problem), num_matvecs=num_products, method=method, seed=SEED)
    return float(result.estimate)


def density_eigenthings(problem: Problem, num_steps: int, num_probes: int) -> None:
    peer("hessian_eigenthings").spectral_density(
        eigenthings_hessian(problem), num_runs=num_probes, lanczos_steps=num_steps, seed=SEED
    )


def curvlinops_hessian(problem: Problem) -> Any:
    class Sliced(peer("curvlinops").HessianLinearOperator):
        """Products with eight columns at a time: all columns of a trace at once need tens of GiB."""

        def _matmat(self, columns: list[Tensor]) -> list[Tensor]:
            slices = zip(*(part.split(8, dim=-1) for part in columns), strict=True)
            images = [super(Sliced, self)._matmat(list(piece)) for piece in slices]
            return [torch.cat(parts, dim=-1) for parts in zip(*images, strict=True)]

    return Sliced(
        problem.plain,
        nn.CrossEntropyLoss(),
        [p for p in problem.plain.parameters() if p.requires_grad],
        problem.pairs,
        num_data=problem.num_examples,
        check_deterministic=False,
    )


def eigenthings_hessian(problem: Problem, method: str = "autograd") -> Any:
    library = peer("hessian_eigenthings")
    loss = library.supervised_loss(nn.CrossEntropyLoss())
    return library.HessianOperator(problem.plain, problem.pairs, loss, method=method)


def flatten(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def unflatten(vector: Tensor, like: list[Tensor]) -> list[Tensor]:
    chunks = vector.split([part.numel() for part in like])
    return [chunk.view(part.shape) for chunk, part in zip(chunks, like, strict=True)]


def _numpy(product: Product) -> Callable[[np.ndarray], np.ndarray]:
    return lambda vector: product(torch.from_numpy(vector).float().reshape(-1)).numpy().astype(vector.dtype)


TOLERANCES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5)
STEPS = (8, 10, 12, 14, 16, 18, 20, 23, 26, 30, 35, 40, 45, 50, 60, 70, 80, 100, 120, 150, 200)
LANDSCAPE = Solver("landscape", "tol", (1e-3, 5e-4), solve_landscape, is_peer=False)
SOLVERS = (
    LANDSCAPE,
    Solver("PyHessian", "tol", (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8), solve_pyhessian),
    Solver("curvlinops + eigsh", "tol", TOLERANCES, solve_curvlinops),
    Solver("hessian-eigenthings", "steps", STEPS, solve_eigenthings),
    Solver("hessian-eigenthings, differences", "steps", STEPS, solve_eigenthings_differences),
)
