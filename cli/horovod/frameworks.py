"""Which PyTorch and TensorFlow are installed, read from their files: importing them takes seconds."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import runpy
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...adapters.errors import EngineUnavailableError, OptionError, did_you_mean

NAMES = ("torch", "tensorflow")
_HOROVOD_NAMES = {"torch": "PYTORCH", "tensorflow": "TENSORFLOW"}
_TENSORFLOW_DISTRIBUTIONS = (
    "tensorflow",
    "tensorflow-cpu",
    "tensorflow-gpu",
    "tensorflow-macos",
    "tf-nightly",
    "tf-nightly-cpu",
)


@dataclass(frozen=True)
class Framework:
    """An installed framework; `cuda` and `rocm` are the toolkit versions it was built with, `None` without."""

    name: str
    version: str
    cuda: str | None = None
    rocm: str | None = None


def switch(name: str) -> bool | None:
    """What Horovod's own variables `HOROVOD_WITH_<name>` and `HOROVOD_WITHOUT_<name>` say; `None` if unset."""
    if os.environ.get(f"HOROVOD_WITHOUT_{name}") == "1":
        return False
    return True if os.environ.get(f"HOROVOD_WITH_{name}") == "1" else None


def select(wanted: Sequence[str] = ()) -> tuple[Framework, ...]:
    """Return the frameworks to build for: the wanted ones, or all installed ones.

    Raises:
        OptionError: a name is unknown.
        EngineUnavailableError: a wanted framework is missing, or all are.
    """
    for name in wanted:
        if name not in NAMES:
            raise OptionError(f"Unknown framework {name!r}; known: {', '.join(NAMES)}.{did_you_mean(name, NAMES)}")
    required = set(wanted) or {name for name in NAMES if switch(_HOROVOD_NAMES[name])}
    allowed = wanted or [name for name in NAMES if switch(_HOROVOD_NAMES[name]) is not False]
    here = installed()
    found = tuple(framework for framework in here if framework.name in allowed)
    missing = sorted(required - {framework.name for framework in found})
    if missing:
        raise EngineUnavailableError(
            f"Cannot build Horovod for {' and '.join(missing)}: not installed here. pip install {' '.join(missing)}"
        )
    if here and not found:
        raise OptionError("HOROVOD_WITHOUT_* leaves no installed framework to build Horovod for. Unset one.")
    if not found:
        raise EngineUnavailableError(
            "Cannot build Horovod: it is built against an installed framework, but neither PyTorch nor TensorFlow is "
            "installed in this environment. Install one first: pip install torch, or pip install tensorflow."
        )
    return found


def installed() -> tuple[Framework, ...]:
    """Return the frameworks of this environment."""
    return tuple(framework for framework in (_torch(), _tensorflow()) if framework)


def variables(frameworks: Collection[Framework]) -> dict[str, str]:
    """Return the environment variables that tell Horovod's build which frameworks to support; never MXNet."""
    names = {framework.name for framework in frameworks}
    chosen = {f"HOROVOD_WITH{'' if name in names else 'OUT'}_{_HOROVOD_NAMES[name]}": "1" for name in NAMES}
    return {**chosen, "HOROVOD_WITHOUT_MXNET": "1"}


def _torch() -> Framework | None:
    facts = _run("torch", "version.py")
    if facts is None:
        return None
    return Framework("torch", str(facts["__version__"]), cuda=facts.get("cuda"), rocm=facts.get("hip"))


def _tensorflow() -> Framework | None:
    facts = _run("tensorflow", "python/platform/build_info.py")
    if facts is None:
        return None
    build = facts.get("build_info", {})
    cuda = str(build.get("cuda_version", "unknown")) if build.get("is_cuda_build") else None
    rocm = str(build.get("rocm_version", "unknown")) if build.get("is_rocm_build") else None
    for name in _TENSORFLOW_DISTRIBUTIONS:
        try:
            return Framework("tensorflow", importlib.metadata.version(name), cuda=cuda, rocm=rocm)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Framework("tensorflow", "unknown", cuda=cuda, rocm=rocm)


def _run(package: str, file: str) -> dict[str, Any] | None:
    """Run a small generated file of a package and return its globals; `None` if it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / file
    try:
        return runpy.run_path(str(path))
    except OSError as error:
        raise EngineUnavailableError(
            f"{package} is broken: it is installed without {path}. Install it again: "
            f"pip install --force-reinstall {package}"
        ) from error
