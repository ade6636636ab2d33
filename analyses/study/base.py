"""What settings have in common."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator
from pydantic_core import ErrorDetails

Positive = Annotated[FiniteFloat, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class StudyError(ValueError):
    """Settings or a folder that no study can be made of; shown to the user as one message."""


def near(name: str, known: Iterable[str]) -> str:
    """The known name that a misspelt one is closest to, as a question; empty without one.

    >>> near("measure", ["measures", "methods"])
    "; did you mean 'measures'?"
    """
    found = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {found[0]!r}?" if found else ""


def problem_of(problem: ErrorDetails, kind: type[BaseModel]) -> str:
    """One problem that pydantic found in settings of a kind, in a user's words."""
    place = ".".join(str(part) for part in problem["loc"]) or "study"
    if problem["type"] == "extra_forbidden":
        meant = near(str(problem["loc"][-1]), keys_at(kind, problem["loc"][:-1]))
        return f"{place}: there is no such key{meant or ';'} docs/study.md has them all"
    got = "" if isinstance(problem["input"], dict) else f" (got {problem['input']!r})"
    return f"{place}: {problem['msg'].removeprefix('Value error, ')}{got}"


def keys_at(kind: type[BaseModel], place: tuple[int | str, ...]) -> set[str]:
    """Keys of the settings that lie at a place."""
    kinds = {kind}
    for part in place:
        inside = {
            found
            for one in kinds
            if part in one.model_fields
            for found in _kinds_in(one.model_fields[str(part)].annotation)
        }
        kinds = inside or kinds  # names, numbers and tags lie between settings
    return {key for one in kinds for key in one.model_fields}


def _kinds_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _kinds_in(part)


class Settings(BaseModel):
    """Base of all settings: unknown keys are refused, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, given: Any) -> Any:
        for name, field in cls.model_fields.items() if isinstance(given, dict) else ():
            if isinstance(given.get(name), bool) and not _may_be(bool, field.annotation):
                raise ValueError(f"{name}: expected no true or false, got {given[name]}; a number, say")
        return given


def _may_be(kind: type, annotation: Any) -> bool:
    """Whether an annotation names a type, among others."""
    return annotation in (kind, Any) or any(_may_be(kind, part) for part in get_args(annotation))
