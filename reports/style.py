"""How figures look: one colour, marker and line for each method, sizes for print, and intervals over seeds."""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib as mpl
import matplotlib.colors
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from analyses.records import write_atomically

ONE_COLUMN = 3.35
"""Width of one column of a two-column paper, in inches."""
TWO_COLUMNS = 6.9
"""Width of the whole page, in inches."""


@dataclass(frozen=True)
class MethodStyle:
    """Name and marks of a method; colour is never the only difference."""

    label: str
    colour: str
    marker: str
    line: str

    @property
    def marker_size(self) -> float:
        """In points; a star fills less of its box than the other markers."""
        return 7.0 if self.marker == "*" else 4.0

    @property
    def drawn(self) -> str:
        r"""The label for a figure, where it stands as it is: matplotlib reads $ as mathematics and hides leading _.

        >>> MethodStyle("$x_1$", "k", "o", "-").drawn
        '\\$x_1\\$'
        """
        literal = self.label.replace("$", r"\$")
        return f"{_INVISIBLE}{literal}" if literal.startswith("_") else literal


# Colours of Okabe and Ito (2008), which readers with a colour-vision deficiency can tell apart.
_STYLES = {
    "full": MethodStyle("Full FT", "#000000", "o", "-"),
    "sam": MethodStyle("SAM", "#000000", "s", "-."),
    "lora": MethodStyle("LoRA", "#0072B2", "o", "-"),
    "lora_sam": MethodStyle("LoRA-SAM", "#56B4E9", "s", "-."),
    "lora_sam_full": MethodStyle("LoRA-SAM (full space)", "#009E73", "D", "-."),
    "flat_lora": MethodStyle("Flat-LoRA", "#8C6D31", "X", "-."),
    "bilora": MethodStyle("Bi-LoRA", "#D55E00", "*", "-"),
    "dual_lora": MethodStyle("Dual LoRA", "#E69F00", "v", ":"),
    "random_aux": MethodStyle("Random aux.", "#CC79A7", "^", ":"),
    "lora_2r": MethodStyle("LoRA rank 2r", "#999999", "P", ":"),
    # The rungs between full-space SAM and Bi-LoRA, in shades of SAM's green, and the auxiliaries set by iteration.
    "lora_sam_rank": MethodStyle("Full-space SAM, rank r", "#117733", "d", "-"),
    "lora_sam_rank_1": MethodStyle("Full-space SAM, rank 1", "#44AA99", "h", "-"),
    "lora_sam_lag": MethodStyle("Full-space SAM, lagged", "#7FC8A9", "<", "-."),
    "bilora_stale": MethodStyle("Stale auxiliary", "#AA4499", "v", "-."),
    "bilora_fresh_whole": MethodStyle("Fresh aux., whole batch", "#332288", "s", "-"),
    "bilora_fresh_half": MethodStyle("Fresh aux., half", "#4455AA", "^", "-"),
    "bilora_fresh": MethodStyle("Fresh auxiliary", "#882255", "D", "-"),
    "bilora_fresh_eighth": MethodStyle("Fresh aux., an eighth", "#AA6688", "p", "-"),
    "bilora_fresh_one": MethodStyle("Fresh aux., one example", "#CC6677", "o", "-"),
    "full_fresh": MethodStyle("Full FT, fresh aux.", "#555555", "D", "-"),
    "bilora_full_ball": MethodStyle("Bi-LoRA, full ball", "#E07B39", "X", "-."),
    "bilora_inner": MethodStyle("Bi-LoRA, inner ascents", "#B8860B", ">", ":"),
    "bilora_inner_1": MethodStyle("Bi-LoRA, 1 inner ascent", "#E8B04A", ">", ":"),
    "bilora_inner_4": MethodStyle("Bi-LoRA, 4 inner ascents", "#C99700", ">", "-."),
    "bilora_inner_16": MethodStyle("Bi-LoRA, 16 inner ascents", "#8A6500", ">", "-"),
    # Variants of the preset digits-ablation, in colours of Tol's muted scheme.
    "bilora_layerwise": MethodStyle("Bi-LoRA, clip by layer", "#332288", "h", "-"),
    "bilora_noclip": MethodStyle("Bi-LoRA, no clip", "#88CCEE", "<", "-"),
    "bilora_share_a": MethodStyle("Bi-LoRA, shared A", "#44AA99", ">", "-"),
    "bilora_share_b": MethodStyle("Bi-LoRA, shared B", "#117733", "d", "-"),
    "bilora_rho_small": MethodStyle("Bi-LoRA, small rho", "#DDCC77", "p", "-"),
    "bilora_equal_rate": MethodStyle("Bi-LoRA, equal rates", "#882255", "8", "-"),
    "bilora_cosine": MethodStyle("Bi-LoRA, rho by cosine", "#AA4499", "x", "-"),
}


# Update rules, in Okabe and Ito's colours: the columns of one rule share its colour.
_RULES = {
    "sgd": ("SGD", "#0072B2"),
    "momentum": ("SGD, momentum", "#56B4E9"),
    "adamw": ("AdamW", "#D55E00"),
    "lion": ("Lion", "#CC79A7"),
    "sam": ("SAM", "#000000"),
    "asam": ("ASAM", "#009E73"),
}
_INVISIBLE = "\u200b"
_OTHERS = ("#332288", "#117733", "#882255", "#AA4499", "#44AA99", "#DDCC77", "#661100", "#888888")
_OTHER_MARKERS = "xh<>dp8H"
_OWN: ContextVar[Mapping[str, MethodStyle]] = ContextVar("own styles", default=MappingProxyType({}))
_APART: ContextVar[Mapping[str, MethodStyle]] = ContextVar("styles told apart", default=MappingProxyType({}))
_OWN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C6D31")
_OWN_MARKERS = "osD^vXPp"


@contextmanager
def styles_of(names: Iterable[str]) -> Iterator[None]:
    """Inside, these names are no methods of a study: each is its own label, with marks by its place, in this order."""
    styles = {}
    for number, name in enumerate(names):
        turn, place = divmod(number, len(_OWN_COLOURS))
        line = ("-", "-.", ":")[turn % 3]
        styles[name] = MethodStyle(name, _OWN_COLOURS[place], _OWN_MARKERS[(place + turn) % 8], line)
    token = _OWN.set(styles)
    try:
        yield
    finally:
        _OWN.reset(token)


@contextmanager
def told_apart(methods: Iterable[str]) -> Iterator[None]:
    """Inside, no two of a study's methods share colour and marker: of two that would, the later gets others."""
    taken: set[tuple[str, str]] = set()
    styles = {}
    free = itertools.product(_OTHERS, _OTHER_MARKERS)  # 64: beyond them marks repeat
    for method in method_order(methods):
        style = method_style(method)
        while (style.colour, style.marker) in taken and (other := next(free, None)) is not None:
            style = replace(style, colour=other[0], marker=other[1])
        taken.add((style.colour, style.marker))
        styles[method] = style
    token = _APART.set(styles)
    try:
        yield
    finally:
        _APART.reset(token)


def method_style(method: str) -> MethodStyle:
    """Marks of a method.

    ``lora_r2``, ``lora_r4`` … are shades of their method, darker with the rank. Other names that are not known here
    get marks that depend on the name alone.

    >>> method_style("bilora_r8").label, method_style("bilora_half_rate").label
    ('Bi-LoRA, r = 8', 'Bi-LoRA, half rate')
    >>> method_style("lora_sam_rank_r8").label
    'Full-space SAM, rank 8'
    """
    for given in (_OWN.get(), _APART.get()):
        if method in given:
            return given[method]
    if method in _STYLES:
        return _STYLES[method]
    rule, _, variant = method.partition("_")
    if rule in _RULES and variant:
        label, colour = _RULES[rule]
        marker = _OWN_MARKERS[zlib.crc32(variant.encode()) // 3 % 8]
        return MethodStyle(f"{label}, {variant.replace('_', ' ')}", colour, marker, "-")
    number = zlib.crc32(method.encode())
    marker = _OTHER_MARKERS[number // 8 % len(_OTHER_MARKERS)]
    known = max((name for name in _STYLES if method.startswith(f"{name}_")), key=len, default=None)
    if known is None:
        return MethodStyle(method, _OTHERS[number % len(_OTHERS)], marker, "-")
    base, rest = _STYLES[known], method.removeprefix(f"{known}_")
    if not re.fullmatch(r"r\d+", rest):
        return MethodStyle(f"{base.label}, {rest.replace('_', ' ')}", _OTHERS[number % len(_OTHERS)], marker, "-")
    octave = int(math.log2(max(1, int(rest[1:]))))
    lightness = max(0.0, 0.7 - 0.175 * octave)
    colour = mpl.colors.to_hex([(1 - lightness) * x + lightness for x in mpl.colors.to_rgb(base.colour)])
    marker = _OTHER_MARKERS[octave % len(_OTHER_MARKERS)]
    label = f"{base.label[:-1]}{rest[1:]}" if base.label.endswith(" r") else f"{base.label}, r = {rest[1:]}"
    return MethodStyle(label, colour, marker, base.line)


def method_order(methods: Iterable[str]) -> list[str]:
    """Known methods in their usual order, then the others by name; numbers in a name count as numbers.

    >>> method_order(["lora_r16", "lora_r2", "bilora", "lora"])
    ['lora', 'bilora', 'lora_r2', 'lora_r16']
    """
    present = set(methods)
    if own := _OWN.get():
        return [name for name in own if name in present]
    others = sorted(present - _STYLES.keys(), key=lambda name: [int(x) if x.isdigit() else x for x in _parts(name)])
    return [name for name in _STYLES if name in present] + others


def _parts(name: str) -> list[str]:
    """Text and digits by turns, text first."""
    return re.split(r"(\d+)", name)


def plot_context() -> AbstractContextManager[None]:
    """Settings for print: legible type, embedded fonts, no chart junk."""
    return mpl.rc_context(
        {
            "font.size": 8,
            "axes.labelsize": 8,
            "axes.titlesize": 8,
            "legend.fontsize": 7,
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "lines.linewidth": 1.2,
            "lines.markersize": 4,
            "legend.frameon": False,
            "pdf.fonttype": 42,
            "svg.hashsalt": "bilora-landscape",
            "figure.constrained_layout.use": True,
        }
    )


def mean_interval(values: pd.Series | Iterable[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % Student-t interval; NaN width for fewer than two finite values."""
    array = np.asarray(list(values), dtype=float)
    array = array[np.isfinite(array)]
    if len(array) == 0:
        return float("nan"), float("nan")
    if len(array) == 1:
        return float(array[0]), float("nan")
    error = array.std(ddof=1) / np.sqrt(len(array))
    return float(array.mean()), float(stats.t.ppf(0.975, len(array) - 1) * error)


def geometric_interval(values: pd.Series | Iterable[float]) -> tuple[float, float, float]:
    """Geometric mean of positive values and the ends of the 95 % Student-t interval of their mean logarithm.

    >>> [round(number, 3) for number in geometric_interval([1.0, 4.0])]
    [2.0, 0.0, 13365.301]
    """
    centre, half = mean_interval(np.log(np.asarray(list(values), dtype=float)))
    return float(np.exp(centre)), float(np.exp(centre - half)), float(np.exp(centre + half))


FORMATS = ("pdf", "svg", "png")
"""Of figures. PNG for a screen, the others for print."""
_METADATA: Mapping[str, Mapping[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}


def save_figure(figure: Figure, folder: Path, name: str, formats: Sequence[str] = FORMATS) -> Path:
    """Save in every format and return the PNG's path; the bytes do not depend on the date."""
    with plot_context():  # the type of the embedded fonts is read when the file is written
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # what is laid out once need not be for every format
        for suffix in formats:
            save = partial(figure.savefig, dpi=200, metadata=_METADATA.get(suffix))
            write_atomically(folder / f"{name}.{suffix}", save)
    return folder / f"{name}.png"
