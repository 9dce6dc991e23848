"""The names by which Trainer and Fabric know our strategies."""

from __future__ import annotations

from typing import Any

from ...adapters import strategy_rows
from .deepspeed import DeepSpeedStrategy
from .horovod import HorovodStrategy
from .package import trainer_part


def register() -> None:
    """Add our names to Lightning's; its own (`ddp`, `fsdp`, `deepspeed_stage_2`) stay Lightning's."""
    rows = strategy_rows()
    registry: Any = trainer_part("strategies").StrategyRegistry
    for name in ("horovod", *(name for name in rows if name.startswith("deepspeed_zero_"))):
        row = rows[name]
        strategy = HorovodStrategy if name == "horovod" else DeepSpeedStrategy
        registry.register(name, strategy, description=row.description, override=True, **row.options)
