"""Find what is installed in files: importing an engine takes seconds."""

from __future__ import annotations

import importlib.util
import json
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ...adapters.errors import EngineUnavailableError
from ...adapters.registry import Requirement, StrategyRow

_DISTRIBUTIONS = (
    "farandole",
    "torch",
    "horovod",
    "deepspeed",
    "tensorflow",
    "tensorflow-cpu",
    "keras",
    "lightning",
    "numpy",
    "scikit-learn",
)

# Horovod's build writes its frameworks into horovod/metadata.json.
HOROVOD_FRAMEWORKS = {"horovod.torch": "pytorch", "horovod.tensorflow": "tensorflow"}


def check_installed(row: StrategyRow) -> None:
    """Raise `EngineUnavailableError` if a requirement of this strategy is missing or misbuilt."""
    for requirement in row.requirements:
        found = problem(requirement)
        if found is not None:
            what, fix = found
            raise EngineUnavailableError(
                f"strategy {row.name!r} needs {requirement.distribution}, which is {what}. Fix it with: {fix}"
            )


def problem(requirement: Requirement) -> tuple[str, str] | None:
    """Return a requirement's problem ("not installed") and the command that fixes it, or `None`."""
    spec = package(requirement.module.split(".")[0])
    if spec is None:
        return "not installed", requirement.fix
    framework = HOROVOD_FRAMEWORKS.get(requirement.module)
    built_for = horovod_frameworks(spec)
    if framework is not None and built_for is not None and framework not in built_for:
        others = " and ".join(f"{name} {version}" for name, version in built_for.items()) or "no framework"
        return f"installed, but built for {others}, not for {framework}", f"{requirement.fix} --force"
    return None


def package(name: str) -> ModuleSpec | None:
    """Find a top-level package that can be imported; a folder of that name without code does not count."""
    spec = importlib.util.find_spec(name)
    return spec if spec is not None and spec.origin is not None else None


def horovod_frameworks(spec: ModuleSpec) -> dict[str, str] | None:
    """Return the frameworks that this Horovod was built for, with their versions; `None` if unknown."""
    try:
        found = json.loads((Path(spec.origin or "").parent / "metadata.json").read_text())
    except (OSError, ValueError):
        return None
    return {name: version for name, version in found.items() if name != "dummy"}


def versions() -> dict[str, str]:
    """Return the versions of the installed distributions that a report of a run names."""
    found = {}
    for distribution in _DISTRIBUTIONS:
        try:
            found[distribution] = version(distribution)
        except PackageNotFoundError:
            continue
    return found
