"""Studies from YAML: bundled ones and files."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import yaml
from pydantic import ValidationError

from analyses.study.base import StudyError
from analyses.study.settings import Study


def preset_names() -> list[str]:
    """Names of the studies that come with the package."""
    folder = resources.files("analyses") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_preset(name: str) -> Study:
    """Read a bundled study.

    Raises:
        StudyError: There is no preset of that name.
    """
    if name not in preset_names():
        raise StudyError(f"--preset: expected one of {', '.join(preset_names())}; got {name!r}")
    return parse_study((resources.files("analyses") / "presets" / f"{name}.yaml").read_text(), source=name)


def load_study(path: Path) -> Study:
    """Read a study from a YAML file.

    Raises:
        StudyError: The file cannot be read, or its settings are wrong.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise StudyError(f"--config: cannot read {path}: {error.strerror}") from error
    return parse_study(text, source=str(path))


def parse_study(text: str, *, source: str) -> Study:
    """Read a study from YAML text; every problem is named with its key."""
    try:
        content = yaml.safe_load(text)
        return Study.model_validate(content)
    except yaml.YAMLError as error:
        raise StudyError(f"{source}: not valid YAML: {error}") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc']) or 'study'}: {problem['msg']}"
            + ("" if isinstance(problem["input"], dict) else f" (got {problem['input']!r})")
            for problem in error.errors()
        )
        raise StudyError(f"{source}: {problems}") from None
