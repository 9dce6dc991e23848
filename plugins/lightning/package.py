"""Which Lightning to plug into: `lightning`, or the older import `pytorch_lightning`.

Both contain the same classes, and an object of one does not work with the other. So this module chooses one on import:
the one that the program has imported already, else `lightning` if it is installed.
"""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from packaging.version import Version

from ...adapters import EngineUnavailableError

OLDEST = Version("2.5.0")
"""In 2.4 an epoch that is resumed in its middle continues at another batch."""
_FABRIC = {"lightning": "lightning.fabric", "pytorch_lightning": "lightning_fabric"}
_TRAINER = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}


def _choose() -> str:
    for modules in (_TRAINER, _FABRIC):
        for name, module in modules.items():
            if module in sys.modules:
                return name
    for name in _TRAINER:
        if find_spec(name) is not None:
            return name
    raise EngineUnavailableError(
        "farandole.plugins.lightning needs Lightning, which is not installed. Install it with: "
        "pip install 'farandole[lightning]'"
    )


def _version_of(name: str) -> Version | None:
    distribution = name.replace("_", "-")
    try:
        found = Version(version(distribution))
    except PackageNotFoundError:
        return None
    if found < OLDEST:
        raise EngineUnavailableError(
            f"farandole.plugins.lightning needs {distribution}>={OLDEST}, and this is {found}. "
            f"Install a newer one with: pip install -U {distribution}"
        )
    return found


NAME = _choose()
"""The package that this process imports: `lightning` or `pytorch_lightning`."""

VERSION = _version_of(NAME)
"""Its version; `None` for a checkout on the path."""

OTHER_REGISTRIES = [
    (f"{module}.strategies", attribute)
    for parts, attribute in ((_TRAINER, "StrategyRegistry"), (_FABRIC, "STRATEGY_REGISTRY"))
    for name, module in parts.items()
    if name != NAME
]
"""Where the other Lightning keeps its names."""


TRAINER, FABRIC = _TRAINER[NAME], _FABRIC[NAME]
"""The modules that the Trainer, and Fabric, are in."""


def trainer_part(module: str) -> Any:
    """Import a module of the part that the Trainer is in: `trainer_part("strategies")`."""
    return importlib.import_module(f"{TRAINER}.{module}")


def fabric_part(module: str) -> Any:
    """Import a module of the part that Fabric is in."""
    return importlib.import_module(f"{FABRIC}.{module}")


def other() -> str | None:
    """Return the name of the other Lightning, if this process has imported it too."""
    for name, module in _TRAINER.items():
        if name != NAME and module in sys.modules:
            return name
    return None
