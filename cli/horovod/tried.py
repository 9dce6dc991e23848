"""The table of framework versions with which Horovod was built and tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from packaging.version import InvalidVersion, Version

from .frameworks import Framework

TRIED: Mapping[str, tuple[str, ...]] = {"torch": ("2.13.0", "2.14.1"), "tensorflow": ("2.21.0",)}


def note(frameworks: Sequence[Framework]) -> str | None:
    """Return a line about frameworks newer than all tested ones, or `None`."""
    newer = [framework for framework in frameworks if _is_newer(framework)]
    if not newer:
        return None
    parts = [f"{framework.name} {framework.version} (tried up to {TRIED[framework.name][-1]})" for framework in newer]
    return f"Newer than any version that this build was tried with: {', '.join(parts)}. Building anyway."


def table() -> str:
    """Return the table in a line, for people."""
    return "; ".join(f"{name} {', '.join(versions)}" for name, versions in TRIED.items())


def _is_newer(framework: Framework) -> bool:
    try:
        # A local version, such as +cpu, is not newer.
        return Version(Version(framework.version).public) > Version(TRIED[framework.name][-1])
    except InvalidVersion:
        return False
