"""Records of older files in today's columns."""

from __future__ import annotations

import pandas as pd

_BY_STEP = [
    "alignment_along_training",
    "angle_to_final",
    "ascent",
    "ascent_before_clip",
    "ascent_gain",
    "ascent_gain_ky_fan",
    "ascent_gain_optimum",
    "auxiliary_norm",
    "cos_auxiliary_gradient",
    "formula_error",
    "formula_share",
    "merged_gradient_norm",
    "trajectory",
]


def upgraded(records: pd.DataFrame) -> pd.DataFrame:
    """Records with ``index``, ``step`` and ``component`` in place of one column ``k`` and of half of ``other``."""
    if "k" not in records:
        return records
    records = records.rename(columns={"k": "index"})
    sampled = records["measure"] == "own_worst_case_rise"
    samples = records[sampled].assign(measure="own_worst_case_examples")
    samples = samples.assign(value=samples["index"].astype(float), index=None, stderr=float("nan"))
    records["index"] = records["index"].mask(sampled)
    by_step = records["measure"].isin(_BY_STEP)
    records["step"] = records["index"].where(by_step)
    records["index"] = records["index"].mask(by_step)
    of_pairs = records["measure"] == "loss_barrier"
    records["component"] = records["other"].mask(of_pairs)
    records["other"] = records["other"].where(of_pairs)
    return pd.concat([records, samples], ignore_index=True) if len(samples) else records
