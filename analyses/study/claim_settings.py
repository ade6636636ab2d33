"""Claims as data: which comparison of which numbers decides a sentence, and the thresholds fixed before the data."""

from __future__ import annotations

from string import Formatter
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, model_validator

from analyses.records.store import COLUMNS
from analyses.study.base import Positive, Settings, near

Family = Literal["outcome", "mechanism", "controls", "cost"]
Direction = Literal["below", "above", "not_below", "not_above", "equivalent"]
SHARE = "recovered_share"
"""The threshold that sentences may name, in braces like a role."""
Threshold = FiniteFloat | Literal["recovered_share", "rise_margin", "loss_margin", "accuracy_margin", "step_ratio"]
"""A number, or the name of the study's setting that holds it."""
_FACTORS = ("rise_margin", "loss_margin", "step_ratio")


class ClaimSpec(Settings):
    r"""One hypothesis: a subject's measure against a reference's, seed by seed.

    Attributes:
        name: Unique among the claims.
        sentence: The claim in words; roles in braces, as in ``{bilora}``, become their labels, and
            ``{recovered_share}`` the study's threshold.
        short: For the opening sentence, with ``{effect}`` where ratio and interval go.
        family: ``outcome`` claims are tested in their order (fallback procedure), those of ``mechanism`` and
            ``controls`` as families of their own under Holm's; ``cost`` is counted exactly and not tested.
        measure: Measure of the records; mean over all rows of a run that ``where`` leaves.
        where: Column and value that rows must have. Worst cases are those of the l2 ball of the claims' radius over all
            weights unless something else stands here.
        subject: Role whose claim it is.
        reference: Role to compare with, or a number.
        reference_measure: Measure of the reference, if another one.
        reference_where: Rows of the reference, if others.
        baseline: With ``share``: role from which subject and reference reduce the measure.
        scale: ``ratio`` of geometric means, ``difference`` of means, or ``share``: what the subject has of the
            reference, or of its reduction from the baseline (nats stay nats; Fieller's interval).
        direction: What the claim says of the effect: ``below`` or ``above`` the limit, ``not_below`` or ``not_above``
            it by more than the margin, or ``equivalent`` within the margin.
        limit: Default 1 for ratios, 0 for differences.
        margin: A factor for ratios, else a difference; what lies within counts as equal.
        unit: Of a difference.
        times: What values are multiplied by before they are compared, 100 for percent.
        worst: Which end of the measure a run that diverged counts as, ``highest`` or ``lowest``. By default the highest
            of losses, rises, curvature and costs, the lowest of accuracies, of others what speaks against the claim.
        weight: Share of the level that the claim starts with, relative to the others of the outcome family.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    sentence: str
    short: str | None = None
    family: Family = "outcome"
    measure: str
    where: dict[str, str | float] = Field(default_factory=dict)
    subject: str
    reference: str | FiniteFloat
    reference_measure: str | None = None
    reference_where: dict[str, str | float] | None = None
    baseline: str | None = None
    scale: Literal["ratio", "difference", "share"]
    direction: Direction
    limit: Threshold | None = None
    margin: Threshold | None = None
    unit: str = ""
    times: Positive = 1.0
    worst: Literal["highest", "lowest"] | None = None
    weight: Annotated[FiniteFloat, Field(ge=0)] = 1.0

    @model_validator(mode="after")
    def _fits_together(self) -> ClaimSpec:
        if not isinstance(self.reference, str) and self.scale != "difference":
            raise ValueError(f"reference: a number ({self.reference:g}) goes with scale difference, not {self.scale}")
        if self.baseline is not None and self.scale != "share":
            raise ValueError(f"baseline: belongs to scale share, not {self.scale}")
        if self.direction in ("not_below", "not_above", "equivalent") and self.margin is None:
            raise ValueError(f"margin: direction {self.direction} needs one")
        if self.scale == "share" and self.direction == "equivalent":
            raise ValueError(
                "direction: equivalent does not go with scale share; use not_below and not_above, two claims"
            )
        if self.scale == "share" and self.limit is None:
            raise ValueError("limit: scale share needs one")
        for name in ("margin", "limit"):
            threshold = getattr(self, name)
            if isinstance(threshold, str) and (self.scale == "ratio") != (threshold in _FACTORS):
                what = "a factor" if threshold in _FACTORS else "no factor"
                raise ValueError(f"{name}: {threshold} is {what}, which does not go with scale {self.scale}")
        least = {"ratio": 1.0}.get(self.scale, 0.0)
        if isinstance(self.margin, float | int) and self.margin < least:
            what = "a factor of at least 1 between ratios" if least else "a difference of at least 0"
            raise ValueError(f"margin: expected {what}, got {self.margin:g}")
        if self.scale == "ratio" and isinstance(self.limit, float | int) and self.limit <= 0:
            raise ValueError(f"limit: expected a ratio above 0, got {self.limit:g}")
        for name, rows in (("where", self.where), ("reference_where", self.reference_where or {})):
            for column, value in rows.items():
                if column in COLUMNS and (COLUMNS[column] == "string") != isinstance(value, str):
                    text = COLUMNS[column] == "string" and isinstance(value, float)
                    wanted = f"text: '{value:g}' in quotation marks" if text else "numbers"
                    raise ValueError(f"{name}: column {column} holds {wanted}, got {value!r}")
                if column not in COLUMNS:
                    raise ValueError(
                        f"{name}: the records have no column {column!r}{near(column, COLUMNS) or ';'} expected some of "
                        f"{', '.join(COLUMNS)}"
                    )
        return self

    @property
    def roles(self) -> list[str]:
        """Roles that a study must fill for the claim to be judged."""
        named = [self.subject, self.reference, self.baseline]
        return list(dict.fromkeys(role for role in named if isinstance(role, str)))


class ClaimFile(Settings):
    """Claims with the columns that fill their roles where these have other names, and the roles' labels in sentences.

    Several sets of roles judge every claim once for each set.
    """

    claims: Annotated[list[ClaimSpec], Field(min_length=1)]
    roles: dict[str, str] | list[dict[str, str]] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _sentences_name_roles(self) -> ClaimFile:
        for claim in self.claims:
            known = {*claim.roles, *self.labels, SHARE}
            for text, allowed in ((claim.sentence, known), (claim.short or "", known | {"effect"})):
                for _, role, _, _ in Formatter().parse(text):
                    if role is not None and role not in allowed:
                        raise ValueError(
                            f"claims.{claim.name}.sentence: {{{role}}} is no role of the claim and has no label; "
                            f"expected some of {', '.join(sorted(allowed))}"
                        )
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> ClaimFile:
        names = [claim.name for claim in self.claims]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"claims: the names {', '.join(twice)} occur twice")
        return self


class ClaimSettings(Settings):
    """Thresholds fixed before the data are seen, and whose claims are judged.

    Two rises count as equal up to a factor of ``rise_margin``, two losses up to ``loss_margin``, two accuracies up to
    ``accuracy_margin`` points; a step may cost ``step_ratio`` times another. ``bundled`` names the bundled claims: the
    paper's (analyses/judging/claims.yaml) or those about the rungs between SAM and Bi-LoRA (ladder.yaml there);
    ``roles`` says which columns they compare, ``file`` holds claims in their place. ``rank_correlations`` asks for
    Kendall's rank correlation of flatness with the test loss over all minima, across and within update rules.
    """

    rho: Positive
    alpha: Annotated[FiniteFloat, Field(gt=0, lt=1)] = 0.05
    recovered_share: FiniteFloat = 0.5
    rise_margin: Annotated[FiniteFloat, Field(gt=1)] = 1.25
    loss_margin: Annotated[FiniteFloat, Field(gt=1)] = 1.1
    accuracy_margin: Positive = 1.0
    step_ratio: Positive = 1.25
    roles: dict[str, str] | list[dict[str, str]] | None = None
    bundled: Literal["claims", "ladder"] = "claims"
    file: ClaimFile | None = None
    rank_correlations: bool = False

    def threshold(self, value: Threshold | None) -> float | None:
        """The number that a threshold means."""
        return float(getattr(self, value)) if isinstance(value, str) else value
