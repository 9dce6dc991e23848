"""The names by which Trainer and Fabric know our strategies."""

from __future__ import annotations

from typing import Any

from ...adapters import strategy_rows
from .deepspeed import DeepSpeedStrategy
from .fabric import FabricDeepSpeedStrategy, FabricHorovodStrategy
from .horovod import HorovodStrategy
from .package import fabric_part, trainer_part


def register() -> None:
    """Add our names to Lightning's; its own (`ddp`, `fsdp`, `deepspeed_stage_2`) stay Lightning's."""
    rows = strategy_rows()
    trainers: Any = trainer_part("strategies").StrategyRegistry
    fabrics: Any = fabric_part("strategies").STRATEGY_REGISTRY
    for name in ("horovod", *(name for name in rows if name.startswith("deepspeed_zero_"))):
        row = rows[name]
        kinds: Any = (HorovodStrategy, FabricHorovodStrategy)
        if name != "horovod":
            kinds = (DeepSpeedStrategy, FabricDeepSpeedStrategy)
        for registry, kind in zip((trainers, fabrics), kinds, strict=True):
            registry.register(name, kind, description=row.description, override=True, **row.options)
