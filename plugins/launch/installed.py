"""Whether what a strategy needs is installed, read from files: importing an engine takes seconds."""

from __future__ import annotations

import importlib.util
import json
from importlib.machinery import ModuleSpec
from pathlib import Path

from ...adapters.errors import EngineUnavailableError
from ...adapters.registry import Requirement, StrategyRow

# Horovod notes in horovod/metadata.json which frameworks it was built for (its CMakeLists.txt write it).
HOROVOD_FRAMEWORKS = {"horovod.torch": "pytorch", "horovod.tensorflow": "tensorflow"}


def check_installed(row: StrategyRow) -> None:
    """Raise `EngineUnavailableError` where a requirement of this strategy is missing or misbuilt."""
    for requirement in row.requirements:
        found = problem(requirement)
        if found is not None:
            what, fix = found
            raise EngineUnavailableError(
                f"strategy {row.name!r} needs {requirement.distribution}, which is {what}. Mend it with: {fix}"
            )


def problem(requirement: Requirement) -> tuple[str, str] | None:
    """Return what a requirement is ("not installed") and the command that mends it; `None` where no fault is seen."""
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
    """Find a top-level package that can be imported; a folder of that name without code is none."""
    spec = importlib.util.find_spec(name)
    return spec if spec is not None and spec.origin is not None else None


def horovod_frameworks(spec: ModuleSpec) -> dict[str, str] | None:
    """Return the frameworks that this Horovod was built for, with their versions; `None` where it does not say."""
    try:
        found = json.loads((Path(spec.origin or "").parent / "metadata.json").read_text())
    except (OSError, ValueError):
        return None
    return {name: version for name, version in found.items() if name != "dummy"}
