"""A paragraph for a paper's section on methods, in LaTeX, and the sources that it cites, in BibTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analyses.records import DIVERGED
from reports.figures.worst_case import searched_by
from reports.style import method_order, method_style
from reports.tables import escape_latex

SOURCES: dict[str, Mapping[str, str]] = {
    "foret2021sam": {
        "author": "Foret, Pierre and Kleiner, Ariel and Mobahi, Hossein and Neyshabur, Behnam", "year": "2021",
        "title": "Sharpness-Aware Minimization for Efficiently Improving Generalization", "eprint": "2010.01412",
    },
    "hu2022lora": {
        "author": "Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and others",
        "title": "{LoRA}: Low-Rank Adaptation of Large Language Models", "year": "2022", "eprint": "2106.09685",
    },
    "liu2025bilora": {
        "author": "Liu, Yuhang and Li, Tao and Huang, Zhehao and Yang, Zuopeng and Huang, Xiaolin", "year": "2025",
        "title": "{Bi-LoRA}: Efficient Sharpness-Aware Minimization for Fine-Tuning Large-Scale Models",
        "eprint": "2508.19564",
    },
    "li2024flatlora": {
        "author": "Li, Tao and He, Zhengbao and Li, Yujun and Wang, Yasheng and Shang, Lifeng and Huang, Xiaolin",
        "title": "{Flat-LoRA}: Low-Rank Adaptation over a Flat Loss Landscape", "year": "2024", "eprint": "2409.14396",
    },
    "kwon2021asam": {
        "author": "Kwon, Jungmin and Kim, Jeongseop and Park, Hyunseo and Choi, In Kwon", "year": "2021",
        "title": "{ASAM}: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks",
        "eprint": "2102.11600",
    },
    "vogels2019powersgd": {
        "author": "Vogels, Thijs and Karimireddy, Sai Praneeth and Jaggi, Martin", "year": "2019",
        "title": "{PowerSGD}: Practical Low-Rank Gradient Compression for Distributed Optimization",
        "eprint": "1905.13727",
    },
    "wu2000thick": {
        "author": "Wu, Kesheng and Simon, Horst", "year": "2000",
        "title": "Thick-Restart {Lanczos} Method for Large Symmetric Eigenvalue Problems",
        "journal": "SIAM Journal on Matrix Analysis and Applications", "volume": "22", "number": "2",
        "pages": "602--616",
    },
    "yao2020pyhessian": {
        "author": "Yao, Zhewei and Gholami, Amir and Keutzer, Kurt and Mahoney, Michael W.", "year": "2020",
        "title": "{PyHessian}: Neural Networks Through the Lens of the {Hessian}", "eprint": "1912.07145",
    },
    "andriushchenko2022": {
        "author": "Andriushchenko, Maksym and Flammarion, Nicolas", "year": "2022",
        "title": "Towards Understanding Sharpness-Aware Minimization", "eprint": "2206.06232",
    },
}  # fmt: skip
"""What a study may draw on, by its key."""

_OF_METHODS = {
    "sam": "foret2021sam", "lora_sam": "foret2021sam", "lora_sam_full": "foret2021sam", "lora": "hu2022lora",
    "lora_2r": "hu2022lora", "bilora": "liu2025bilora", "flat_lora": "li2024flatlora",
    "bilora_fresh": "vogels2019powersgd", "bilora_stale": "vogels2019powersgd",
}  # fmt: skip
_FULL = {"full", "sam"}


def methods_paragraph(settings: Mapping[str, Any], records: pd.DataFrame, claims: Mapping[str, Any]) -> str:
    """What was done, from the configuration and the records, in LaTeX with citations.

    Args:
        settings: Of the study, as ``study.yaml`` holds them.
        records: Of the study.
        claims: What ``claims.json`` holds.
    """
    sentences = [_trained(settings, records), _searched(settings, records, claims)]
    lanczos = records[(records["measure"] == "hessian_residual") & (records["algorithm"] == "lanczos")]
    if len(lanczos):
        largest = float(lanczos["value"].max())
        sentences.append(
            r"Hessian eigenpairs were computed by thick-restart Lanczos iteration~\cite{wu2000thick} over the adapted "
            rf"weights (largest relative residual {_number(largest)})."
        )
    if (records["algorithm"] == "pyhessian").any():
        sentences.append(r"One run was checked with PyHessian~\cite{yao2020pyhessian}.")
    sentences.append(
        r"Ratios are of geometric means with 95\,\% Student-$t$ intervals of paired log ratios over seeds; claims were "
        rf"tested at level {claims['alpha']:g} within families. {escape_latex(claims['design'])}"
    )
    return "\n".join(sentence.strip() for sentence in sentences) + "\n"


def bibliography(paragraph: str) -> str:
    """The sources that a paragraph cites, in BibTeX."""
    cited = [key for key in SOURCES if key in paragraph]
    return "\n".join(_entry(key, SOURCES[key]) for key in cited)


def _trained(settings: Mapping[str, Any], records: pd.DataFrame) -> str:
    columns = method_order(records["method"].dropna())
    variants = {column: settings.get("methods", {}).get(column) or {} for column in columns}
    kinds = {column: variant.get("method") or column for column, variant in variants.items()}
    named = []
    for column in columns:
        source = "kwon2021asam" if variants[column].get("adaptive") else _OF_METHODS.get(kinds[column])
        named.append(escape_latex(method_style(column).label) + (rf"~\cite{{{source}}}" if source else ""))
    training, adapters = settings.get("training", {}), settings.get("adapters", {})
    length = f"{training['max_steps']} steps" if training.get("max_steps") else f"{training.get('epochs')} epochs"
    sizes = _listed([str(size) for size in sorted(records["train_size"].unique())])
    task = escape_latex(str(settings.get("task", {}).get("name", "the task")).replace("_", " "))
    runs = records[records["measure"].isin(["train_loss", DIVERGED])]  # costs are timed in rounds of their own
    seeds = (records if runs.empty else runs)["seed"].nunique()
    batches = sorted({int(v.get("batch_size") or training.get("batch_size") or 0) for v in variants.values()})
    of_batches = _listed([str(size) for size in batches]).replace(" and ", " or ")
    return (
        f"We fine-tuned on {task} with {sizes} training examples by {_listed(named)}, for {length} in batches of "
        f"{of_batches}, with {seeds} paired {'seed' if seeds == 1 else 'seeds'}"
        + (
            ""
            if _FULL.issuperset(kinds.values())
            else f"; adapters have rank {adapters.get('r')} and scale $\\alpha = {adapters.get('alpha')}$ unless their "
            "name says otherwise"
        )
        + "."
    )


def _searched(settings: Mapping[str, Any], records: pd.DataFrame, claims: Mapping[str, Any]) -> str:
    gaps = records.loc[records["measure"] == "worst_case_gap", "value"].astype(float)
    exact = f" (median gap of the two {_number(100 * gaps.median())}\\,\\%)" if len(gaps) else ""
    radii = sorted(records.loc[records["measure"] == "worst_case_rise", "rho"].dropna().unique())
    shown = _listed([f"{radius:g}" for radius in radii]) or f"{claims['rho']:g}"
    return (
        r"Sharpness is the worst-case rise $\max_{\|\epsilon\|_2\le\rho}L(\theta+\epsilon)-L(\theta)$ of the training "
        rf"loss over the merged weights of the adapted layers~\cite{{foret2021sam,andriushchenko2022}} at $\rho$ = "
        rf"{shown}, judged at $\rho$ = {claims['rho']:g}: the largest that {searched_by(records)} met{exact}, a lower "
        "bound."
    )


def _entry(key: str, fields: Mapping[str, str]) -> str:
    kind = "article" if "journal" in fields else "misc"
    archive = {"archivePrefix": "arXiv"} if "eprint" in fields else {}
    lines = [f"  {name} = {{{value}}}," for name, value in {**fields, **archive}.items()]
    return "\n".join([f"@{kind}{{{key},", *lines, "}", ""])


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def _number(value: float) -> str:
    mantissa, _, power = f"{value:.2g}".partition("e")
    return f"${mantissa}\\times10^{{{int(power)}}}$" if power else mantissa
