"""The names by which Trainer and Fabric know our strategies."""

from __future__ import annotations

import importlib
from typing import Any

from ...adapters import EngineUnavailableError, UnknownStrategyError, strategy_rows
from ...adapters.errors import did_you_mean
from .deepspeed import DeepSpeedStrategy
from .fabric import FabricDeepSpeedStrategy, FabricHorovodStrategy
from .horovod import HorovodStrategy
from .package import NAME, OTHER_REGISTRIES, fabric_part, other, trainer_part


def register() -> None:
    """Add our names to Lightning's; its own (`ddp`, `fsdp`, `deepspeed_stage_2`) stay Lightning's."""
    rows = {
        name: row for name, row in strategy_rows().items() if name == "horovod" or name.startswith("deepspeed_zero_")
    }
    for registry, horovod, deepspeed in (
        (trainer_part("strategies").StrategyRegistry, HorovodStrategy, DeepSpeedStrategy),
        (fabric_part("strategies").STRATEGY_REGISTRY, FabricHorovodStrategy, FabricDeepSpeedStrategy),
    ):
        for name, row in rows.items():
            kind = horovod if name == "horovod" else deepspeed
            registry.register(name, kind, description=row.description, override=True, **row.options)
        _explain_unknown(registry, list(rows))
    if other() is not None:
        _refuse_in_other(list(rows))


def _refuse_in_other(names: list[str]) -> None:
    """Have the Trainer of the Lightning that was not chosen refuse our names: it could not use our classes."""

    def refuse() -> None:
        raise EngineUnavailableError(
            f"this process has imported both lightning and pytorch_lightning, and farandole.plugins.lightning serves "
            f"{NAME} here: import one of them only, or take Trainer and LightningModule from {NAME}"
        )

    for module, attribute in OTHER_REGISTRIES:
        registry = getattr(importlib.import_module(module), attribute)
        for name in names:
            registry.register(name, refuse, description="served by farandole", override=True)


def _explain_unknown(registry: Any, names: list[str]) -> None:
    # Lightning asks this one object for its names, and lists none of ours in its error.
    registry.available_strategies = lambda: _Known(list(registry.keys()), names)


class _Known(list[str]):
    """Lightning's list of the names it knows, which says what was meant by one that is nearly ours.

    It only asks whether a name is among them, and answers with a page of the web where it is not. It asks this of a
    strategy object too, before it complains of what a first Trainer has set on one that is used twice.
    """

    def __init__(self, names: list[str], ours: list[str]) -> None:
        super().__init__(names)
        self._ours = ours

    def __contains__(self, name: object) -> bool:
        refuse_second_use = getattr(name, "refuse_second_use", None)
        if refuse_second_use is not None:
            refuse_second_use()
        found = super().__contains__(name)
        hint = "" if found or not isinstance(name, str) else did_you_mean(name, self._ours)
        if hint:
            raise UnknownStrategyError(f"Lightning knows no strategy {name!r}.{hint}")
        return found
