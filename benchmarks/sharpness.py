"""Do the searches for a worst case find it, and how many passes do they take?

Two sections. `sharpness_found` compares the two searches with an exhaustive one. The other counts the passes of a climb
against plain projected ascent with a fixed step.

The plain ascent starts at SAM's point and takes 20 steps of fixed length along the normalised gradient, projected onto
the ball: the scheme of worst-case sharpness before Auto-PGD (tml-epfl/sharpness-vs-generalization keeps it inside, with
the step 2 rho, halved at checkpoints). It is given the best of three lengths, rho/4, rho and 2 rho, chosen for each
minimum and radius by its own final loss. Counted is after how many passes over the data the climb of which the searches
are made (`landscape.sharpness.ascent.Climb`), from the same point, has met that rise, to a thousandth; a climb that
never does counts all its passes, at least the plain ascent's, and is marked. The searches climb from many more starts.
Both are deterministic, so there is nothing to repeat. The minima are the digits vision transformer trained to three
losses, and a perceptron.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from pathlib import Path

import torch
from sharpness_found import found_over_exhaustive
from torch import Tensor, nn

from analyses.running.executors import quieten
from analyses.study.task_settings import DigitsTask
from analyses.tasks.digits import Digits
from landscape import EmpiricalRisk
from landscape.sharpness.ascent import Climb, PassCounter
from landscape.sharpness.balls import ball_around

STEPS = 20
LENGTHS = (0.25, 1.0, 2.0)
RADII = (0.05, 0.1, 0.5)
SLACK = 1e-3


class CountedRisk(EmpiricalRisk):
    """A risk that keeps the largest loss met after every pass."""

    best: list[float]

    def loss_and_gradient(self, theta: Tensor | None = None) -> tuple[float, Tensor]:
        loss, gradient = super().loss_and_gradient(theta)
        self.best.append(max(loss, *self.best[-1:]) if self.best else loss)
        return loss, gradient


def fixed_step_ascent(risk: CountedRisk, rho: float, length: float) -> float:
    """Largest loss that 20 steps of ``length`` · rho meet."""
    risk.best = []
    theta = risk.theta
    _, gradient = risk.loss_and_gradient(theta)
    epsilon = rho * gradient / gradient.norm()
    for _ in range(STEPS):
        _, gradient = risk.loss_and_gradient(theta + epsilon)
        epsilon = epsilon + length * rho * gradient / gradient.norm()
        epsilon = epsilon * min(1.0, rho / float(epsilon.norm()))
    return risk.best[-1]


def climb(risk: CountedRisk, rho: float) -> float:
    """Rise that a climb of at most 40 steps from SAM's point reaches."""
    ball = ball_around(risk, rho, norm="l2", adaptive="none", relative=False, subspace=None)
    visit = PassCounter().visits(risk)
    centre = visit(torch.zeros(risk.num_params, dtype=risk.dtype))
    start = visit(ball.extreme(centre.gradient))
    return Climb(visit, ball, start).advance(2 * STEPS, floor=centre.loss, tol=1e-4) - centre.loss


def minima(quick: bool) -> dict[str, CountedRisk]:
    """Trained models on 100 digits, by name."""
    task = Digits(DigitsTask(), 100)
    data = task.examples("train")
    risks = {}
    for steps in (100,) if quick else (100, 200, 400):
        model = task.new_model(0)
        train(model, lambda model=model: model(**data).loss, steps, 3e-3)
        risks[f"vit, {steps} steps"] = CountedRisk(model, [data], params=r"layers\..*(proj|fc1|fc2)\.weight$")
    torch.manual_seed(0)
    perceptron = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    pixels, labels = data["pixel_values"], data["labels"]
    train(perceptron, lambda: nn.functional.cross_entropy(perceptron(pixels), labels), 150, 1e-2)
    risks["perceptron"] = CountedRisk(perceptron, [(pixels, labels)])
    return risks


def train(model: nn.Module, loss, steps: int, learning_rate: float) -> None:  # type: ignore[no-untyped-def]
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two minima instead of four, and four balls of 36")
    parser.add_argument("--jobs", type=int, default=2, help="processes that compare with the exhaustive search")
    parser.add_argument("--seed", type=int, default=0, help="of the searches that are compared with the exhaustive one")
    parser.add_argument("--minilm", action="store_true", help="also minima of MiniLM, ten minutes each")
    parser.add_argument("--json", type=Path, help="write environment, rows and ratios there")
    options = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    rows = []
    print("| minimum | loss | rho | plain rise | its step/rho | passes to it | our rise | our passes |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, risk in minima(options.quick).items():
        risk.best = []
        loss = risk.loss()
        for rho in RADII:
            plain = {length: fixed_step_ascent(risk, rho, length) for length in LENGTHS}
            length = max(plain, key=lambda key: plain[key])
            risk.best = []
            rise = climb(risk, rho)
            reached = [
                number
                for number, best in enumerate(risk.best, 1)
                if best - loss >= (plain[length] - loss) * (1 - SLACK)
            ]
            passes = reached[0] if reached else max(len(risk.best), STEPS + 1)
            rows.append(
                {
                    "minimum": name, "loss": loss, "rho": rho, "plain_rise": plain[length] - loss, "length": length,
                    "passes": passes, "reached": bool(reached), "rise": rise, "num_passes": len(risk.best),
                }
            )  # fmt: skip
            print(
                f"| {name} | {loss:.3g} | {rho} | {plain[length] - loss:.4g} | {length} | "
                f"{passes}{'' if reached else ' (not met)'} | {rise:.4g} | {len(risk.best)} |"
            )
    ratio = statistics.mean(row["passes"] for row in rows) / (STEPS + 1)
    print(f"\npasses over plain ascent, mean over {len(rows)} cases: {ratio:.2f}")
    found, ratios = found_over_exhaustive(options.quick, options.seed, options.jobs)
    if options.minilm:
        more, of_minilm = found_over_exhaustive(options.quick, options.seed, options.jobs, minilm=True)
        found, ratios = found + more, ratios | of_minilm
    if options.json:
        environment = {"torch": torch.__version__, "python": platform.python_version(), "cpus": os.cpu_count()}
        ratios = {"sharpness.passes_over_plain_ascent": ratio, **ratios}
        results = {"environment": environment, "rows": rows, "found": found, "ratios": ratios}
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
