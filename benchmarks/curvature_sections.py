"""The measurements of the curvature benchmark; each returns its rows, and ratios where there are any."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import curvature_peers as peers
import torch
from curvature_models import Problem, mlp, vit
from torch import Tensor

import landscape
from landscape import HessianOperator, lanczos

RESIDUAL = 1e-3
SLOW = 30.0  # seconds; a run that takes longer is not repeated

Row = dict[str, Any]


def interleaved(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, int]]:
    """Median seconds and number of runs of each, taken in turns so that a busy moment hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            if seconds[name] and seconds[name][0] > SLOW:
                continue
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: (statistics.median(values), len(values)) for name, values in seconds.items()}


def worst_residual(operator: HessianOperator, pairs: peers.Pairs) -> float:
    """Largest relative residual of the pairs; infinite if pairs are missing or occur twice."""
    if pairs.values.numel() < peers.K:
        return float("inf")
    vectors = pairs.vectors.double()
    vectors = vectors / vectors.norm(dim=0)
    overlap = (vectors.T @ vectors - torch.eye(peers.K, dtype=torch.float64)).abs().max()
    if overlap > 0.5:
        return float("inf")
    values = pairs.values.double()
    images = operator.matmat(vectors.to(operator.dtype)).double()
    return float(((images - vectors * values).norm(dim=0) / values.abs()).max())


def find_setting(solver: peers.Solver, problem: Problem, operator: HessianOperator, limit: int) -> int:
    """Index of the loosest setting that reaches the residual with the common operator's products, or of the last."""
    saturated = limit // peers.K * peers.K
    for index, setting in enumerate(solver.settings):
        if solver.option == "steps" and setting > limit:
            return max(index - 1, 0)
        pairs = solver.solve(problem, setting, limit, operator.matvec)
        if worst_residual(operator, pairs) <= RESIDUAL or pairs.num_products >= saturated:
            return index
    return len(solver.settings) - 1


def eigenpairs(problem: Problem, rounds: int, budget: float) -> tuple[list[Row], dict[str, float]]:
    operator = peers.own_hessian(problem)
    check_operator(problem, operator)
    reference = reference_values(problem)
    settings, limits = {}, {}
    for solver in peers.SOLVERS:
        limits[solver.name] = max(50, int(budget / seconds_per_product(solver, problem)))
        settings[solver.name] = find_setting(solver, problem, operator, limits[solver.name])
    results: dict[str, peers.Pairs] = {}
    once: dict[str, tuple[float, int]] = {}

    def run(solver: peers.Solver) -> None:
        start = time.perf_counter()
        setting = solver.settings[settings[solver.name]]
        results[solver.name] = solver.solve(problem, setting, limits[solver.name], None)
        once[solver.name] = (time.perf_counter() - start, 1)

    for solver in peers.SOLVERS:  # a library's own products may need a tighter setting than the common operator's
        run(solver)
        while worst_residual(operator, results[solver.name]) > RESIDUAL:
            last = settings[solver.name] + 1 == len(solver.settings)
            if last or results[solver.name].num_products >= limits[solver.name] // peers.K * peers.K:
                break
            settings[solver.name] += 1
            run(solver)
    fast = {s.name: partial(run, s) for s in peers.SOLVERS if once[s.name][0] <= SLOW}
    seconds = once | interleaved(fast, rounds)
    rows = []
    for solver in peers.SOLVERS:
        pairs = results[solver.name]
        residual = worst_residual(operator, pairs)
        values = pairs.values.double().sort(descending=True).values
        error = float(((values - reference) / reference).abs().max()) if len(values) == peers.K else None
        rows.append(
            {
                "section": "eigenpairs",
                "model": problem.name,
                "name": solver.name,
                "setting": f"{solver.option} {solver.settings[settings[solver.name]]:g}",
                "seconds": seconds[solver.name][0],
                "rounds": seconds[solver.name][1],
                "products": pairs.num_products,
                "worst_residual": residual,
                "error": error,
                "reached": residual <= RESIDUAL,
            }
        )
    own = seconds[peers.LANDSCAPE.name][0]
    others = [row["seconds"] for row in rows[2:] if row["reached"]]
    ratios = {f"curvature.speedup_over_pyhessian.{problem.name}": rows[1]["seconds"] / own}
    if others:
        ratios[f"curvature.speedup_over_best_peer.{problem.name}"] = min(others) / own
    return rows, ratios


def central_difference(problem: Problem, vector: Tensor) -> Tensor:
    """Product (n,) from two float64 gradients, which shares no second derivative with any library."""
    risk = problem.exact_risk()
    step = 1e-4 * vector.double() / vector.double().norm()
    difference = risk.gradient(risk.theta + step) - risk.gradient(risk.theta - step)
    return difference / 2e-4 * vector.double().norm()


def relative(product: Tensor, reference: Tensor) -> float:
    return float((product.double() - reference).norm() / reference.norm())


def check_operator(problem: Problem, operator: HessianOperator) -> None:
    """Refuse to judge residuals by an operator that is wrong."""
    vector = random_vector(operator.shape[0])
    error = relative(operator.matvec(vector), central_difference(problem, vector))
    if error > 1e-4:
        raise SystemExit(f"{problem.name}: landscape's product is off by {error:.1e} from central differences")


def random_vector(size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(1))


def reference_values(problem: Problem) -> Tensor:
    """Eigenvalues (5,) from float64 products at a far smaller tolerance."""
    operator = HessianOperator(problem.exact_risk(), graph_budget=2**33)
    return lanczos(operator, peers.K, which="LM", tol=1e-5, max_matvecs=500, seed=7).eigenvalues


def seconds_per_product(solver: peers.Solver, problem: Problem) -> float:
    """Seconds of a short run over its products; includes the library's construction."""
    start = time.perf_counter()
    pairs = solver.solve(problem, 6 if solver.option == "steps" else solver.settings[0], 10, None)
    return (time.perf_counter() - start) / max(1, pairs.num_products)


def hvp(problem: Problem, rounds: int) -> tuple[list[Row], dict[str, float]]:
    """Cost of a product in gradients, for landscape with its share of building the operator once for 50 products."""
    risk = problem.risk()
    vector = random_vector(risk.num_params)
    exact = central_difference(problem, vector)
    products = peers.peer_products(problem)

    def own() -> None:
        operator = HessianOperator(risk, graph_budget=peers.GRAPH_BUDGET)
        for _ in range(50):
            operator.matvec(vector)

    repeats = {"gradient": 10, "landscape": 50} | dict.fromkeys(products, 3)
    runs: dict[str, Callable[[], Any]] = {"gradient": lambda: [risk.gradient() for _ in range(10)], "landscape": own}
    runs |= {name: lambda f=function: [f(vector) for _ in range(3)] for name, function in products.items()}
    each = {name: seconds / repeats[name] for name, (seconds, _) in interleaved(runs, rounds).items()}
    operator = HessianOperator(risk, graph_budget=peers.GRAPH_BUDGET)
    products = {"landscape": operator.matvec} | products
    rows = [
        {
            "section": "hvp",
            "model": problem.name,
            "weights": risk.num_params,
            "name": name,
            "seconds": each[name],
            "gradients_per_hvp": each[name] / each["gradient"],
            "error": relative(function(vector), exact),
            "graph_mib": operator.kept_bytes / 2**20 if name == "landscape" else None,
        }
        for name, function in products.items()
    ]
    return rows, {f"curvature.gradients_per_hvp.{problem.name}": rows[0]["gradients_per_hvp"]}


def trace(problem: Problem, rounds: int, max_products: int) -> list[Row]:
    """Traces to 2 % standard error; the peers take as many products as landscape needed for the same estimator."""
    exact = float(HessianOperator(problem.exact_risk()).to_dense().trace()) if problem.name == "mlp" else None
    estimators: dict[str, dict[str, Callable[[int], float]]] = {
        "hutchinson": {
            "PyHessian": lambda m: peers.trace_pyhessian(problem, m),
            "curvlinops": lambda m: peers.trace_curvlinops(problem, "hutchinson_trace", m),
            "hessian-eigenthings": lambda m: peers.trace_eigenthings(problem, "hutchinson", m),
        },
        "hutch++": {
            "curvlinops": lambda m: peers.trace_curvlinops(problem, "hutchpp_trace", m // 3 * 3),
            "hessian-eigenthings": lambda m: peers.trace_eigenthings(problem, "hutch++", m),
        },
        "xtrace": {"curvlinops": lambda m: peers.trace_curvlinops(problem, "xtrace", m // 2 * 2)},
    }
    rows = []
    for method, others in estimators.items():
        own = partial(own_trace, problem, method, max_products)
        result = own()
        values = {name: function(result.num_matvecs) for name, function in others.items()}
        runs = {name: partial(function, result.num_matvecs) for name, function in others.items()}
        seconds = interleaved({"landscape": own} | runs, rounds)
        for name, value in ({"landscape": result.trace} | values).items():
            rows.append(
                {
                    "section": "trace",
                    "model": problem.name,
                    "name": name,
                    "method": method,
                    "seconds": seconds[name][0],
                    "products": result.num_matvecs,
                    "trace": value,
                    "stderr": result.stderr / abs(result.trace) if name == "landscape" else None,
                    "error": abs(value - exact) / abs(exact) if exact is not None else None,
                }
            )
    return rows


def own_trace(problem: Problem, method: str, max_products: int) -> Any:
    operator = peers.own_hessian(problem)
    return landscape.estimate_trace(operator, method=method, tol=0.02, max_matvecs=max_products, seed=0)


def density(problem: Problem, rounds: int) -> list[Row]:
    """Spectral densities from 4 probes of 50 Lanczos steps. PyHessian's raises: it calls a removed torch.eig."""

    def own() -> None:
        landscape.spectral_density(peers.own_hessian(problem), num_steps=50, num_probes=4, seed=0)

    runs = {"landscape": own, "hessian-eigenthings": lambda: peers.density_eigenthings(problem, 50, 4)}
    return [
        {"section": "density", "model": problem.name, "name": name, "seconds": seconds, "products": 200}
        for name, (seconds, _) in interleaved(runs, rounds).items()
    ]


def scaling(sizes: list[int], quick: bool) -> list[Row]:
    """Seconds of a product by number of examples and by width; ``over_linear`` above 1 grows faster than linearly."""
    makers = {"mlp": mlp} if quick else {"mlp": mlp, "vit": vit}
    widths = {"mlp": [32, 64, 128] if quick else [64, 128, 256, 512, 1024], "vit": [32, 64, 128, 192]}
    rows = []
    for name, make in makers.items():
        cases = {"examples": [(n, 64) for n in sizes], "weights": [(sizes[0], width) for width in widths[name]]}
        for by, pairs in cases.items():
            first = None
            for num_examples, width in pairs:
                risk = make(num_examples, width, steps=0).risk()
                operator = HessianOperator(risk)
                vector = random_vector(risk.num_params)
                seconds = interleaved({"product": partial(operator.matvec, vector)}, 6)["product"][0]
                size = num_examples if by == "examples" else risk.num_params
                first = first or (size, seconds)
                rows.append(
                    {
                        "section": "scaling",
                        "model": name,
                        "by": by,
                        "size": size,
                        "width": width,
                        "seconds": seconds,
                        "over_linear": seconds / first[1] / (size / first[0]),
                    }
                )
                del operator
    return rows
