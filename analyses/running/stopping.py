"""When a study has enough seeds: fixed beforehand, or decided look by look."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ValidationError

from analyses.judging.claims import evidence_of
from analyses.judging.looks import P_VALUES, Look, Looks
from analyses.records import DIVERGED, RecordsError, read_json, write_json
from analyses.study import Cell, ClaimSettings, Study, StudyError, StudyFolder
from analyses.study.base import problem_of

LOOKS = "looks.json"
"""File of the looks, in a study's folder."""


@dataclass(frozen=True)
class Stopping:
    """Grow a study block by block until every outcome claim is decided.

    Attributes:
        max_seeds: Most seeds; the level is spent over the way there.
        block: Seeds added between two looks.
        hours: Time after which no further block is begun; None for no limit.
    """

    max_seeds: int
    block: int = 3
    hours: float | None = None

    def sizes(self, first: int) -> list[int]:
        """Seeds at the looks, from the study's own number on.

        >>> Stopping(max_seeds=12).sizes(5)
        [5, 8, 11, 12]
        """
        return [*range(first, self.max_seeds, self.block), self.max_seeds]


class _Kept(BaseModel):
    """What is written down of the looks."""

    looks: list[Look]
    max_seeds: int | None
    runs: dict[str, str] = {}


def looked_at(records: pd.DataFrame, study: Study, folder: StudyFolder, stopping: Stopping | None) -> Looks:
    """The folder's looks with the present one, which is written down before anything is made of it.

    A look at no more seeds than the last one takes its place.

    Raises:
        StudyError: The folder's looks were planned otherwise.
    """
    kept, runs = recorded_looks(folder.root / LOOKS, study.claims), _runs(study)
    looked = read_json(folder.root / LOOKS).get("runs") or {} if kept else {}
    if any(name in looked and looked[name] != run for name, run in runs.items()):
        kept = None  # the looks were at runs of other settings
    refuse_other_plan(kept, stopping)
    evidence = evidence_of(records, study.claims)
    trained = records[records["measure"].isin(["train_loss", DIVERGED])]  # rounds of step costs are no seeds
    measured = int(trained["seed"].nunique())  # a look at seeds that failed is none
    p_values = {key: [getattr(one, name) for name in P_VALUES] for key, one in evidence.items()}
    now = Look(min(study.seeds, measured or study.seeds), p_values)
    earlier = [look for look in kept.looks if look.seeds < now.seeds] if kept else []
    looks = Looks([*earlier, now], stopping.max_seeds if stopping else None, study.claims.alpha)
    rule = "group-sequential" if stopping else "fixed"
    given = [asdict(look) for look in looks.looks]
    content = {"rule": rule, "max_seeds": looks.max_seeds, "looks": given, "runs": looked | runs if kept else runs}
    write_json(folder.root / LOOKS, content)
    return looks


def _runs(study: Study) -> dict[str, str]:
    """Names of the first seed's runs, which change with the settings that made them, by column and size."""
    cells = [Cell(method, 0, size) for method in study.methods for size in study.train_sizes]
    return {f"{cell.method}-n{cell.train_size}": study.run_name(cell) for cell in cells}


def refuse_other_plan(kept: Looks | None, stopping: Stopping | None) -> None:
    """Refuse to change the rule of a study after looks at it: its error rate would be nobody's.

    Raises:
        StudyError: It would.
    """
    planned = stopping.max_seeds if stopping else None
    if kept is None or kept.max_seeds == planned:
        return
    if kept.max_seeds is None:
        raise StudyError(
            f"--until-decided: the study was looked at with a fixed number of seeds ({kept.looks[-1].seeds}) already; "
            "begin it in a folder of its own (copy runs/, recordings/ and measurements/ to repeat no work)"
        )
    raise StudyError(
        f"--max-seeds: the looks at this study were planned for {kept.max_seeds} seeds, got "
        f"{planned or 'a fixed number'}; go on with --until-decided --max-seeds {kept.max_seeds}"
    )


def recorded_looks(path: Path, settings: ClaimSettings) -> Looks | None:
    """What `looked_at` wrote; None if nothing."""
    if not path.exists():
        return None
    lost = "move it away to go on: the earlier looks are then forgotten, and the levels no longer allow for them"
    try:
        kept = _Kept.model_validate(read_json(path))
    except RecordsError as error:
        raise RecordsError(f"{str(error).partition(';')[0]}; {lost}") from error
    except ValidationError as error:
        raise RecordsError(f"{path}: no looks at a study: {problem_of(error.errors()[0], _Kept)}; {lost}") from None
    return Looks(kept.looks, kept.max_seeds, settings.alpha)


def until_decided(
    audit: Callable[[int], list[dict[str, Any]]],
    stopping: Stopping,
    first: int,
    reached: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Audit with more and more seeds until no outcome claim is undecided or the budget ends.

    Args:
        audit: Audits with a number of seeds; the judged claims.
        stopping: The rule.
        first: Seeds of the first look.
        reached: Seeds that an earlier, interrupted audit had begun; there is no look at fewer.
        clock: Seconds.
    """
    began = clock()
    for seeds in [size for size in stopping.sizes(first) if size >= min(reached, stopping.max_seeds)]:
        judged = audit(seeds)
        undecided = [one for one in judged if one["family"] == "outcome" and one["verdict"] == "undecided"]
        if not undecided or (stopping.hours is not None and clock() - began >= 3600 * stopping.hours):
            return
