"""The tests with the oldest and the newest libraries that pyproject.toml allows: `make matrix`, or one session of it.

The lock's versions are those of `make test`. What follows `--` goes to pytest: `nox -s oldest -- tests/landscape`.
"""

from __future__ import annotations

import nox

nox.needs_version = ">=2024.4"
nox.options.error_on_missing_interpreters = False
_OLD = ("torch", "transformers", "peft")
_PROJECT = nox.project.load_toml("pyproject.toml")["project"]


@nox.session(python="3.10")
def oldest(session: nox.Session) -> None:
    """The lowest versions of torch, transformers and peft, and the newest of the rest that go with them."""
    listed = [*_PROJECT["dependencies"], *_PROJECT["optional-dependencies"]["train"]]
    floors = dict(requirement.split(">=") for requirement in listed)
    _tested(session, [f"{name}=={floors[name]}.*" for name in _OLD])


@nox.session(python=["3.12", "3.13"])
def newest(session: nox.Session) -> None:
    """The newest of everything."""
    _tested(session, ["--upgrade"])


def _tested(session: nox.Session, versions: list[str]) -> None:
    session.install(*versions, "--editable", ".[dev]")
    session.run("python", "-m", "pip", "list")
    session.run("pytest", *session.posargs)
