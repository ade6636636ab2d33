"""The reference of a study's YAML keys, docs/study.md, from the settings themselves.

python -m analyses.study.reference > docs/study.md
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from analyses.study.base import Settings
from analyses.study.claim_settings import ClaimFile, ClaimSettings, ClaimSpec
from analyses.study.data_settings import DataTask
from analyses.study.measure_settings import (
    AlignmentSettings,
    CurvatureSettings,
    DynamicsSettings,
    MeasureSettings,
    SpectrumSettings,
    SurfaceSettings,
    WorstCaseSettings,
)
from analyses.study.optimizer_settings import OptimizerSettings
from analyses.study.settings import (
    AdapterSettings,
    MethodSettings,
    Study,
    TrainingSettings,
    TuningDesign,
    TuningSettings,
)
from analyses.study.task_settings import DigitsTask, MinilmSentimentTask, OwnTask

SECTIONS: dict[str, type[Settings]] = {
    "the study": Study,
    "task: of your own model and data": DataTask,
    "task: digits": DigitsTask,
    "task: minilm_sentiment": MinilmSentimentTask,
    "task: of your own code": OwnTask,
    "training": TrainingSettings,
    "adapters": AdapterSettings,
    "methods.NAME": MethodSettings,
    "training.optimizer, methods.NAME.optimizer": OptimizerSettings,
    "measures": MeasureSettings,
    "measures.worst_case": WorstCaseSettings,
    "measures.curvature": CurvatureSettings,
    "measures.spectrum": SpectrumSettings,
    "measures.alignment": AlignmentSettings,
    "measures.surface": SurfaceSettings,
    "measures.dynamics": DynamicsSettings,
    "claims": ClaimSettings,
    "claims.file, or a file for --claims": ClaimFile,
    "claims.file.claims": ClaimSpec,
    "tuning": TuningSettings,
    "tuning.design": TuningDesign,
}

_INTRODUCTION = """# Every key of a study

<!-- Written by `python -m analyses.study.reference > docs/study.md`; a test holds it to the settings. -->

A study is one YAML file, read safely; unknown keys are refused with their names. `landscape init` writes a commented
one for the bundled digits, `landscape init --model FOLDER --data FILE` one for your own model and data;
`landscape audit --config study.yaml --dry-run` says what it would take. Radii are in the units of the weights, losses
and rises in nats (squared units of the label for `regression`), lengths in tokens. An own task is a class with the
methods of `analyses.tasks.base.Task`.
"""


def reference() -> str:
    """Markdown with a section for each group of settings: what it means, and every key with its values and default."""
    return "\n".join([_INTRODUCTION, *(_section(title, model) for title, model in SECTIONS.items())])


def _section(title: str, model: type[Settings]) -> str:
    prose, meanings = _parts(inspect.getdoc(model) or "")
    lines = [f"## {title}", "", _markdown(prose), ""]
    with_meaning = bool(meanings)
    lines += ["| key | values | default |" + (" meaning |" if with_meaning else "")]
    lines += ["| --- | --- | --- |" + (" --- |" if with_meaning else "")]
    schema = model.model_json_schema()
    for name, field in model.model_fields.items():
        values = _values(schema["properties"][name], schema.get("$defs", {}))
        cells = [f"`{name}`", values, _default(field.get_default(call_default_factory=True))]
        cells += [_markdown(meanings.get(name, ""))] if with_meaning else []
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _parts(text: str) -> tuple[str, dict[str, str]]:
    """The prose of a docstring, and the meanings that it lists under Attributes."""
    prose, _, attributes = text.partition("\nAttributes:\n")
    meanings, name = {}, ""
    for line in textwrap.dedent(attributes).splitlines():
        if found := re.match(r"(\w+): (.*)", line):
            name = found[1]
            meanings[name] = found[2]
        elif line.strip():
            meanings[name] += f" {line.strip()}"
    return prose.strip(), meanings


def _markdown(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")


def _values(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """The values of a key in words, from its JSON schema."""
    if "$ref" in schema:
        target = definitions[schema["$ref"].rsplit("/", 1)[1]]
        return _values(target, definitions) if "enum" in target else "keys of its own, see below"
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_values(option, definitions) for option in options))
    if named := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return ", ".join(f"`{value}`" for value in named)
    kind = schema.get("type")
    if kind == "array":
        return f"list: {_values(schema.get('items', {}), definitions)}"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"mapping: {_values(inner, definitions)}" if isinstance(inner, dict) and inner else "mapping"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false", "null": "null"}
    return " ".join([words.get(str(kind), "anything"), *_limits(schema)])


def _limits(schema: dict[str, Any]) -> Iterator[str]:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    for key, sign in signs.items():
        if key in schema:
            yield f"{sign} {schema[key]:g}"


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "its defaults"
    return f"`{json.dumps(value)}`"


if __name__ == "__main__":
    print(reference(), end="")
