"""Runs over several sizes of the training set, seed by seed: sizes are fixed and seeds random."""

from __future__ import annotations

import pandas as pd


def by_seed(values: pd.Series) -> tuple[pd.Series, dict[int, pd.Series]]:
    """Mean over the sizes of the training set, seed by seed, and the values of each size.

    Sizes are fixed and seeds random: the mean is over the sizes of the study, and a seed that lacks one is left out.

    Args:
        values: Indexed by (train_size, seed), one a run.
    """
    wide = values.unstack("train_size")
    sizes = {int(size): wide[size].dropna() for size in wide.columns}
    return wide.dropna().mean(axis=1), sizes if len(sizes) > 1 else {}


def seed_means(records: pd.DataFrame) -> pd.Series:
    """Values of records, several of a run averaged, by seed: each counts once, with its mean over the sizes.

    >>> rows = {"train_size": [10, 20, 10], "seed": [0, 0, 1], "value": [1.0, 3.0, 5.0]}
    >>> seed_means(pd.DataFrame(rows)).to_dict()
    {0: 2.0}
    """
    values = records.groupby(["train_size", "seed"])["value"].mean().astype(float)
    return by_seed(values)[0] if len(values) else values
