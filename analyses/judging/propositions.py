"""The paper's propositions about the perturbation, judged from what was recorded along training."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analyses.judging.statistics import Comparison, paired
from analyses.judging.verdicts import Claim, Draft, Evidence, higher_is_better, lower_is_better, verdicts

FORMULA_ERROR = 0.1
"""Relative error up to which proposition 1's formula is taken to describe LoRA-SAM's perturbation."""
EARLY, LATE = 0.5, 0.8
"""Shares of training: a space that settles early does so before the first, one that settles late after the second."""
REACHED = 0.5
"""Share of the best first-order rise of its rank that an auxiliary standing for SAM's perturbation should reach."""


def judge_propositions(records: pd.DataFrame, *, alpha: float) -> list[Claim]:
    """Judge every proposition for which something was recorded; one value a seed and training-set size."""
    values = _Values(records)
    drafts: list[Draft] = [
        (
            1,
            f"LoRA-SAM's perturbation of the weights is c(BB'G + GA'A) up to {FORMULA_ERROR:.0%} (proposition 1)",
            values.below("formula_error", "lora_sam", FORMULA_ERROR, "relative error"),
        ),
        (
            2,
            f"The column space of LoRA-SAM's factors settles in the first {EARLY:.0%} of training, the auxiliary's "
            f"in the last {1 - LATE:.0%}",
            values.below("settled_at", "lora_sam", EARLY, "of training", component="primary")
            + values.above("settled_at", "bilora", LATE, "of training", component="auxiliary"),
        ),
        (
            3,
            "The auxiliary's step ascends: <G, change> is positive on average, before and after the clip "
            "(proposition 2)",
            values.ascends("ascent_before_clip") + values.ascends("ascent"),
        ),
        (
            4,
            "The auxiliary points along the gradient more than a random one: cos(auxiliary, G) above random_aux's",
            values.beyond("cos_auxiliary_gradient", "bilora", "random_aux"),
        ),
        (
            5,
            f"The auxiliary reaches at least {REACHED:.0%} of the largest first-order rise of its rank on the "
            "Frobenius ball (proposition 3)",
            values.share_of_optimum(),
        ),
        (
            6,
            "The rise that the auxiliary reaches follows that optimum more closely than the Ky Fan norm",
            values.closer_predictor(),
        ),
    ]
    return verdicts([draft for draft in drafts if draft[2]], alpha=alpha, family="propositions")


class _Values:
    def __init__(self, records: pd.DataFrame) -> None:
        self._records = records

    def steps(self, measure: str, method: str, component: str | None = None) -> pd.DataFrame:
        """Values by seed and training-set size (rows) and step (columns)."""
        chosen = self._records[(self._records["measure"] == measure) & (self._records["method"] == method)]
        if component is not None:
            chosen = chosen[(chosen["component"] == component) & (chosen["subspace"] == "column")]
        return chosen.pivot_table(index=["train_size", "seed"], columns="step", values="value", dropna=False)

    def means(self, measure: str, method: str, component: str | None = None) -> pd.Series:
        return self.steps(measure, method, component).mean(axis=1)

    def below(self, measure: str, method: str, limit: float, unit: str, component: str | None = None) -> list[Evidence]:
        found = self.means(measure, method, component)
        return (
            [lower_is_better(*_against(found, limit, unit, f"{component or measure} of {method}"))]
            if len(found)
            else []
        )

    def above(self, measure: str, method: str, limit: float, unit: str, component: str | None = None) -> list[Evidence]:
        found = self.means(measure, method, component)
        return (
            [higher_is_better(*_against(found, limit, unit, f"{component or measure} of {method}"))]
            if len(found)
            else []
        )

    def ascends(self, measure: str) -> list[Evidence]:
        steps = self.steps(measure, "bilora")
        if not len(steps):
            return []
        share = float((steps > 0).sum().sum() / steps.notna().sum().sum())
        name = {"ascent": "after the clip", "ascent_before_clip": "before the clip"}[measure]
        result = paired(steps.mean(axis=1).to_numpy(dtype=float))
        return [higher_is_better(result, name, "nats a step", f"mean over the noted steps; {share:.0%} are positive")]

    def beyond(self, measure: str, method: str, other: str) -> list[Evidence]:
        both = pd.concat([self.means(measure, name) for name in (method, other)], axis=1, join="inner").dropna()
        if not len(both):
            return []
        result = paired((both.iloc[:, 0] - both.iloc[:, 1]).to_numpy(dtype=float))
        reading = f"mean over the noted steps; {method} has {both.iloc[:, 0].mean():.3g}"
        return [higher_is_better(result, f"{method} − {other}", "cosine", reading)]

    def share_of_optimum(self) -> list[Evidence]:
        gain, best = self.means("ascent_gain", "bilora"), self.means("ascent_gain_optimum", "bilora")
        if not len(gain):
            return []
        return [higher_is_better(*_against(gain / best, REACHED, "of the optimum", "auxiliary / optimum"))]

    def closer_predictor(self) -> list[Evidence]:
        """Spread of the log ratio of the rise reached to either prediction, over the steps with a positive rise."""
        gain = self.steps("ascent_gain", "bilora")
        if not len(gain):
            return []
        logs = np.log(gain.where(gain > 0))
        spreads = [
            (logs - np.log(self.steps(name, "bilora"))).std(axis=1)
            for name in ("ascent_gain_optimum", "ascent_gain_ky_fan")
        ]
        difference = (spreads[0] - spreads[1]).dropna().to_numpy(dtype=float)
        reading = f"spread of the log ratio: {spreads[0].mean():.3g} to the optimum, {spreads[1].mean():.3g} to Ky Fan"
        return [lower_is_better(paired(difference), "optimum − Ky Fan", "log units", reading)]


def _against(found: pd.Series, limit: float, unit: str, name: str) -> tuple[Comparison, str, str, str]:
    """A comparison with a fixed limit, shown as the value itself with its interval."""
    values = found.dropna().to_numpy(dtype=float)
    tested, shown = paired(values - limit), paired(values)
    result = Comparison(shown.effect, shown.low, shown.high, tested.p_above, tested.n)
    return result, name, unit, f"mean over seeds, against {limit:g}"
