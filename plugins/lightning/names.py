"""The names by which Trainer and Fabric know our strategies."""

from __future__ import annotations

import importlib
from typing import Any, Self

from ...adapters import EngineUnavailableError, LauncherError, UnknownStrategyError, strategy_rows
from ...adapters.errors import did_you_mean
from .deepspeed import DeepSpeedStrategy
from .environment import in_place_of_refused
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
            options = ", ".join(f"{option}={value!r}" for option, value in row.options.items())
            known = _Name(name, registry, list(rows), f"{kind.__name__}({options})")
            registry.register(known, kind, description=row.description, override=True, **row.options)
    if other() is not None:
        _refuse_in_other(list(rows))


def _refuse_in_other(names: list[str]) -> None:
    """Make the other Lightning's Trainer refuse our names: it could not use our classes."""

    def refuse() -> None:
        raise EngineUnavailableError(
            f"this process has imported both lightning and pytorch_lightning, and farandole.plugins.lightning serves "
            f"{NAME} here: import only one of them, or use Trainer and LightningModule from {NAME}"
        )

    for module, attribute in OTHER_REGISTRIES:
        registry = getattr(importlib.import_module(module), attribute)
        for name in names:
            registry.register(name, refuse, description="served by farandole", override=True)


class _Name(str):
    """One of our names, which raises better errors than Lightning, before Lightning creates the strategy.

    Lightning compares the user's name with each registered one, and for an unknown name only refers to a web page. Then
    it chooses an environment, which refuses `srun -n 2`.
    """

    _registry: Any
    _ours: list[str]
    _object: str  # how to write the strategy as an object

    def __new__(cls, name: str, registry: Any, ours: list[str], written: str) -> Self:
        made = super().__new__(cls, name)
        made._registry, made._ours, made._object = registry, ours, written
        return made

    __hash__ = str.__hash__

    def __eq__(self, name: object) -> bool:
        if super().__eq__(name) is True:
            self._refuse_srun()
            return True
        hint = did_you_mean(name, self._ours) if isinstance(name, str) and name not in self._registry else ""
        if hint:
            raise UnknownStrategyError(f"Lightning knows no strategy {name!r}.{hint}")
        return False

    def __ne__(self, name: object) -> bool:
        return not self == name

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)  # Trainers keep all names, and may be copied

    def _refuse_srun(self) -> None:
        environment = in_place_of_refused()
        if environment is not None:
            raise LauncherError(
                f"{environment.launch.launcher} started {environment.world_size()} workers in a Slurm job without "
                f"--ntasks-per-node, and Lightning refuses that before it creates a strategy by name: pass "
                f"strategy={self._object} of farandole.plugins.lightning, or give --ntasks-per-node to srun or sbatch"
            )
