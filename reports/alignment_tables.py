"""Tables of what the adapters' subspaces hold of the dominant curvature."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analyses.records.seeds import seed_means
from reports.figures.recovered import recovered_shares
from reports.style import mean_interval, method_order, method_style
from reports.tables import by_row, plus_minus

Tables = tuple[pd.DataFrame, pd.DataFrame]


def alignment_table(records: pd.DataFrame) -> Tables:
    """What column spaces hold of the dominant curvature, in percent, by method.

    The own space is the auxiliary's, or the primary's for methods without one. Shares are weighted by |eigenvalue|;
    chance and optimum are means over the eigenvectors. "Of other layers" exchanges the spaces among the layers of one
    width; p is the median of the exchange's p-value over runs.
    """
    column = records[records["subspace"] == "column"]
    pooled = column[column["layer"] == "all"]
    shown, plain = {}, {}
    for method in method_order(pooled.loc[pooled["measure"] == "alignment_weighted", "method"]):
        mine, paired = pooled[pooled["method"] == method], column[column["method"] == method]
        own = _own(mine)

        def share(measure: str, other: str, mine: pd.DataFrame = mine) -> tuple[float, float]:
            chosen = mine[(mine["measure"] == measure) & (mine["component"] == other) & (mine["index"].fillna(1) >= 1)]
            return _over_runs(chosen)

        columns = {
            "own space": share("alignment_weighted", own),
            "chance": share("alignment_expected", own),
            "of other layers": _over_runs(paired[paired["measure"] == "pairing_expected"]),
            "optimum": share("alignment_optimum", own),
            "primary": share("alignment_weighted", "primary"),
            "gradient's top r": share("alignment_weighted", "gradient"),
            "Gauss–Newton": share("gauss_newton_weighted", own),
        }
        p_value = paired.loc[paired["measure"] == "pairing_p_value", "value"].median()
        texts = {name: plus_minus(*pair, 1) for name, pair in columns.items()}
        shown[method_style(method).label] = texts | {"p, layers": "–" if np.isnan(p_value) else f"{p_value:.2g}"}
        plain[method] = {name: mean for name, (mean, _) in columns.items()} | {"p, layers": p_value}
    return by_row(shown, "method"), by_row(plain, "method")


def inside_table(records: pd.DataFrame, *, rho: float) -> Tables:
    """How sharp the loss is inside the own space: the largest eigenvalue and the worst case, in percent of the full."""
    restricted = records[records["measure"] == "restricted_eigenvalue_ratio"]
    recovered = recovered_shares(records)
    recovered = recovered[np.isclose(recovered["rho"], rho)]
    shown, plain = {}, {}
    for method in method_order(restricted["method"]):
        mine, rises = restricted[restricted["method"] == method], recovered[recovered["method"] == method]
        columns = {
            "top eigenvalue, column space": _over_runs(mine[mine["subspace"] == "column"]),
            "top eigenvalue, tangent space": _over_runs(mine[mine["subspace"] == "tangent"]),
            f"rise, tangent space (rho={rho:g})": _over_runs(rises[rises["subspace"] == "auxiliary"]),
            f"rise, random space (rho={rho:g})": _over_runs(rises[rises["subspace"] == "random"]),
        }
        shown[method_style(method).label] = {name: plus_minus(*pair, 1) for name, pair in columns.items()}
        plain[method] = {name: mean for name, (mean, _) in columns.items()}
    return by_row(shown, "method"), by_row(plain, "method")


def angle_table(records: pd.DataFrame) -> Tables:
    """Angles between the own column space and the one that holds the most curvature, means over layers."""
    measures = {
        "smallest angle (°)": ("principal_angle_smallest", 1.0, 1),
        "largest angle (°)": ("principal_angle_largest", 1.0, 1),
        "Grassmann distance": ("grassmann_distance", 1.0, 2),
        "chordal distance": ("chordal_distance", 1.0, 2),
        "overlap (%)": ("subspace_overlap", 100.0, 1),
        "overlap by chance (%)": ("subspace_overlap_expected", 100.0, 1),
    }
    chosen = records[records["measure"].isin([measure for measure, _, _ in measures.values()])]
    shown, plain = {}, {}
    for method in method_order(chosen["method"]):
        own = _own(records[records["method"] == method])
        mine = chosen[(chosen["method"] == method) & (chosen["component"] == own)]
        columns = {
            name: (*_over_runs(mine[mine["measure"] == measure], scale), digits)
            for name, (measure, scale, digits) in measures.items()
        }
        shown[method_style(method).label] = {name: plus_minus(*entry) for name, entry in columns.items()}
        plain[method] = {name: mean for name, (mean, _, _) in columns.items()}
    return by_row(shown, "method"), by_row(plain, "method")


def module_table(records: pd.DataFrame) -> Tables:
    """Share of the eigenvectors' blocks in the own column space by type of module, in percent; chance in brackets."""
    chosen = records[records["layer"].notna() & (records["layer"] != "all") & (records["subspace"] == "column")]
    chosen = chosen[chosen["measure"].isin(["captured_energy", "captured_energy_null"])]
    chosen = chosen.assign(module=chosen["layer"].str.split(".").str[-1])
    shown, plain = {}, {}
    for method in method_order(chosen["method"]):
        texts: dict[str, str] = {}
        numbers: dict[str, float] = {}
        for module in dict.fromkeys(chosen["module"]):
            own = chosen[(chosen["method"] == method) & (chosen["module"] == module)]
            share, half = _over_runs(own[own["measure"] == "captured_energy"])
            null, _ = _over_runs(own[own["measure"] == "captured_energy_null"])
            texts[module] = f"{plus_minus(share, half, 1)} ({null:.1f})"
            numbers |= {module: share, f"{module}, chance": null}
        shown[method_style(method).label], plain[method] = texts, numbers
    return by_row(shown, "method"), by_row(plain, "method")


def _own(records: pd.DataFrame) -> str:
    """The auxiliary where it has a space: one that ends at zero moves along training and has none."""
    spaces = records[records["measure"].isin(["alignment", "alignment_weighted", "principal_angle_smallest"])]
    return "auxiliary" if (spaces["component"] == "auxiliary").any() else "primary"


def _over_runs(chosen: pd.DataFrame, scale: float = 100.0) -> tuple[float, float]:
    """Mean and half-width over seeds, each with its mean over the sizes; in percent unless told otherwise."""
    return mean_interval(scale * seed_means(chosen).to_numpy(dtype=float))
