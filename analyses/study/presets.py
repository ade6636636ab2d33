"""Studies from YAML: bundled ones and files."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from analyses.study.base import StudyError, near, problem_of
from analyses.study.claim_settings import ClaimFile
from analyses.study.reading import read_yaml
from analyses.study.settings import Study

Model = TypeVar("Model", bound=BaseModel)


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
        raise StudyError(
            f"--preset: expected one of {', '.join(preset_names())}; got {name!r}{near(name, preset_names())}"
        )
    return parse_study((resources.files("analyses") / "presets" / f"{name}.yaml").read_text(), source=name)


def example_text() -> str:
    """YAML of a small study of the bundled digits, for a first look at the settings."""
    return (resources.files("analyses") / "templates" / "digits.yaml").read_text()


def load_study(path: Path, *, option: str = "--config") -> Study:
    """Read a study from a YAML file, which a command's option names.

    Raises:
        StudyError: The file cannot be read, or its settings are wrong.
    """
    return parse_study(_text(path, option), source=str(path))


def load_claims(path: Path) -> ClaimFile:
    """Read claims from a YAML file.

    Raises:
        StudyError: The file cannot be read, or its claims are wrong.
    """
    return _parsed(ClaimFile, _text(path, "--claims"), source=str(path))


def parse_study(text: str, *, source: str) -> Study:
    """Read a study from YAML text; every problem is named with its key."""
    return _parsed(Study, text, source=source)


def _text(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise StudyError(f"{option}: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StudyError(f"{option}: {path} is not in UTF-8 (byte {error.start}); save it so") from error


def _parsed(kind: type[Model], text: str, *, source: str) -> Model:
    try:
        return kind.model_validate(read_yaml(text))
    except yaml.YAMLError as error:
        raise StudyError(f"{source}: not valid YAML: {error}") from error
    except ValidationError as error:
        problems = "; ".join(problem_of(problem, kind) for problem in error.errors())
        raise StudyError(f"{source}: {problems}") from None
