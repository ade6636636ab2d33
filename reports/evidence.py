"""A claim's evidence as small drawings in the page: its interval against the limit, and its runs."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from reports.tables import UNBOUNDED, significant

WIDTH, HEIGHT = 220, 26
_SLOPE_WIDTH, _SLOPE_HEIGHT, _SIDE, _TOP = 300, 170, 70, 22
_HALF = 22
"""Characters that half of a drawing of slopes holds."""
_LEAST_RATIO = 2.0
"""An axis of ratios reaches at least from half to double."""


def interval_bar(claim: Mapping[str, Any], claims: Sequence[Mapping[str, Any]]) -> Markup:
    """Effect, 95 % interval, limit and band of equivalence; ratios of a page on one logarithmic axis.

    Args:
        claim: A judged claim.
        claims: All that are shown; those of the same unit share the axis.
    """
    if claim["effect"] is None:
        word = UNBOUNDED if claim.get("n") else "undefined"
        return Markup(f'<span class="note">{word}</span>')
    ratio = claim["unit"] == "ratio"
    sharing = [one for one in claims if one["unit"] == "ratio"] if ratio else [claim]
    place = _axis(sharing, ratio)
    parts = []
    band = _band(claim, ratio)
    if band is not None:
        left, right = place(band[0]), place(band[1])
        parts.append(f'<rect class="band" x="{left:.1f}" y="3" width="{max(right - left, 1):.1f}" height="20"/>')
    limit = place(claim["limit"])
    parts.append(f'<line class="limit" x1="{limit:.1f}" x2="{limit:.1f}" y1="1" y2="25"/>')
    if claim["low"] is not None and claim["high"] is not None:
        parts.append(
            f'<line class="interval" x1="{place(claim["low"]):.1f}" x2="{place(claim["high"]):.1f}" y1="13" y2="13"/>'
        )
    parts.append(f'<circle class="effect" cx="{place(claim["effect"]):.1f}" cy="13" r="4"/>')
    low, high = claim["low"], claim["high"]
    ends = "" if None in (low, high) else f", 95 % interval {significant(low)} to {significant(high)}"
    label = f"Effect {significant(claim['effect'])}{ends}; limit {significant(claim['limit'])}"
    if band is not None:
        label += f"; equivalent from {significant(band[0])} to {significant(band[1])}"
    return _drawing("bar", WIDTH, HEIGHT, label, parts)


def slope_plot(claim: Mapping[str, Any]) -> Markup:
    """The two values of every run, joined by a line; empty where a claim compares with a number.

    Args:
        claim: A judged claim; from files of the time before pairs were kept, nothing is drawn.
    """
    pairs = [pair for pair in claim.get("pairs", []) if None not in (pair["subject"], pair["reference"])]
    if not pairs or len({pair["reference"] for pair in pairs}) == 1:
        return Markup("")
    values = [pair[side] for pair in pairs for side in ("subject", "reference")]
    logarithmic = min(values) > 0 and max(values) > 3 * min(values)
    height = _between(values, _SLOPE_HEIGHT - 18, _TOP + 8, logarithmic)
    left, right = _SIDE, _SLOPE_WIDTH - _SIDE
    parts = []
    for pair in pairs:
        start, end = height(pair["reference"]), height(pair["subject"])
        down = "down" if pair["subject"] < pair["reference"] else "up"
        parts.append(
            f'<g class="{down}"><title>seed {pair["seed"]}, {pair["train_size"]} examples: '
            f"{significant(pair['reference'])} → {significant(pair['subject'])}</title>"
            f'<line x1="{left}" x2="{right}" y1="{start:.1f}" y2="{end:.1f}"/>'
            f'<circle cx="{left}" cy="{start:.1f}" r="3"/><circle cx="{right}" cy="{end:.1f}" r="3"/></g>'
        )
    for value in (min(values), max(values)):
        parts.append(f'<text x="{left - 8}" y="{height(value) + 4:.1f}" text-anchor="end">{significant(value)}</text>')
    subject, reference = _sides(claim["comparison"])
    parts.append(f'<text x="2" y="12" text-anchor="start">{escape(_shortened(reference))}</text>')
    parts.append(f'<text x="{_SLOPE_WIDTH - 2}" y="12" text-anchor="end">{escape(_shortened(subject))}</text>')
    lower, lost = sum(pair["subject"] < pair["reference"] for pair in pairs), len(claim["pairs"]) - len(pairs)
    label = f"{lower} of {len(pairs)} runs lie lower in {subject} than in {reference}"
    label += "; logarithmic axis" if logarithmic else ""
    label += f"; {lost} without a finite value are not drawn" if lost else ""
    return _drawing("slopes", _SLOPE_WIDTH, _SLOPE_HEIGHT, label, parts)


def _shortened(text: str) -> str:
    """As much of a name as half of the drawing holds; its label has the whole one."""
    return text if len(text) <= _HALF else f"{text[: _HALF - 1]}…"


def methods_option(claim: Mapping[str, Any]) -> str:
    """The option of a command that trains and measures the columns of a claim alone, quoted for a shell."""
    columns = claim.get("columns", [])
    return shlex.join(["--methods", *columns]) if columns else ""


def _sides(comparison: str) -> tuple[str, str]:
    for between in (" / ", " − ", " of ", ", against "):
        if between in comparison:
            subject, _, reference = comparison.partition(between)
            return subject, reference
    return comparison, ""


def _band(claim: Mapping[str, Any], ratio: bool) -> tuple[float, float] | None:
    margin, limit = claim["margin"], claim["limit"]
    if margin is None or claim["family"] == "cost" or (ratio and not (margin > 0 and limit > 0)):
        return None
    width = abs(math.log(margin)) if ratio else abs(margin)
    return (limit * math.exp(-width), limit * math.exp(width)) if ratio else (limit - width, limit + width)


def _axis(claims: Sequence[Mapping[str, Any]], ratio: bool) -> Callable[[float], float]:
    ends = [one[key] for one in claims for key in ("effect", "low", "high", "limit") if one[key] is not None]
    ends += [end for one in claims for end in _band(one, ratio) or ()]
    if ratio:
        ends = [end for end in ends if end > 0] + [1 / _LEAST_RATIO, _LEAST_RATIO]
    return _between(ends, 6, WIDTH - 6, ratio)


def _between(values: Sequence[float], first: float, last: float, logarithmic: bool) -> Callable[[float], float]:
    """A map of the values' range onto [first, last]; what lies outside is put at its ends."""
    scale: Callable[[float], float] = math.log if logarithmic else float
    low, high = scale(min(values)), scale(max(values))

    def place(value: float) -> float:
        if logarithmic and value <= 0:
            return first
        share = (scale(value) - low) / (high - low) if high > low else 0.5
        return first + min(1.0, max(0.0, share)) * (last - first)

    return place


def _drawing(kind: str, width: int, height: int, label: str, parts: Sequence[str]) -> Markup:
    return Markup(
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
