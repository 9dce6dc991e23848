"""The table of strategies: a name, where its class is, its preset options, and one line on what it is.

Rows name their class as text, so that listing strategies imports no framework. Third parties add rows through the
entry-point group `farandole.strategies`: the entry point's name is the strategy's, its object a `Strategy` subclass.
"""

from __future__ import annotations

import importlib
import inspect
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any

from .capabilities import Framework
from .errors import EngineUnavailableError, OptionError, UnknownStrategyError, did_you_mean
from .launch.start import STRATEGY_VARIABLE
from .strategy import Strategy

ENTRY_POINT_GROUP = "farandole.strategies"


@dataclass(frozen=True)
class Requirement:
    """A distribution that an engine needs, a module whose import proves that it works, and how to install it."""

    distribution: str
    module: str
    fix: str


_TORCH = Requirement("torch", "torch", "pip install 'farandole[torch]'")
_DEEPSPEED = Requirement("deepspeed", "deepspeed", "pip install 'farandole[deepspeed]' --no-build-isolation")
_HOROVOD = Requirement("horovod", "horovod.torch", "farandole horovod install")
_TENSORFLOW = Requirement("tensorflow", "tensorflow", "pip install 'farandole[tensorflow]'")
_TENSORFLOW_HOROVOD = Requirement("horovod", "horovod.tensorflow", "farandole horovod install")


@dataclass(frozen=True)
class StrategyRow:
    """One strategy by name: `target` is `module:Class`, `launcher` the engine's own program that starts workers.

    `framework` is whose models it trains; for an entry point it is a guess, as nothing is imported.
    """

    name: str
    target: str
    description: str
    launcher: str | None = "torchrun"
    requirements: tuple[Requirement, ...] = (_TORCH,)
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    entry_point: EntryPoint | None = None
    framework: Framework = "torch"

    def load(self) -> type[Strategy]:
        """Import the strategy's class, and with it the engine.

        Raises:
            EngineUnavailableError: the engine is not installed, or its import fails; the message names the fix.
        """
        try:
            if self.entry_point is not None:
                loaded: type[Strategy] = self.entry_point.load()
                return loaded
            module, _, attribute = self.target.partition(":")
            loaded = getattr(importlib.import_module(module, package=__package__), attribute)
            return loaded
        except ModuleNotFoundError as error:
            for requirement in self.requirements:
                if (error.name or "").split(".")[0] == requirement.module.split(".")[0]:
                    raise EngineUnavailableError(
                        f"strategy {self.name!r} needs {requirement.distribution}, which is not installed. "
                        f"Install it with: {requirement.fix}"
                    ) from None
            raise


def _deepspeed_row(name: str, description: str, *, stage: int, offload: bool = False) -> StrategyRow:
    # torchrun starts the workers: deepspeed's own launcher overrides CUDA_VISIBLE_DEVICES, and meets at a fixed port.
    options = MappingProxyType({"stage": stage, "offload": offload})
    target = ".torch.engines.deepspeed.strategy:DeepSpeedStrategy"
    return StrategyRow(name, target, description, requirements=(_TORCH, _DEEPSPEED), options=options)


BUILT_IN = (
    StrategyRow(
        "local", ".torch.engines.local:LocalStrategy", "one process of plain PyTorch, the reference", launcher=None
    ),
    StrategyRow("ddp", ".torch.engines.ddp:DDPStrategy", "PyTorch DistributedDataParallel: a replica on every worker"),
    StrategyRow(
        "fsdp",
        ".torch.engines.fsdp.strategy:FSDPStrategy",
        "PyTorch FSDP2: all of the training state is sharded",
    ),
    StrategyRow(
        "horovod",
        ".torch.engines.horovod:HorovodStrategy",
        "Horovod: a replica on every worker, gradients all-reduced by Horovod",
        launcher="horovodrun",
        requirements=(_TORCH, _HOROVOD),
    ),
    _deepspeed_row("deepspeed_zero_1", "DeepSpeed ZeRO: optimizer states are sharded", stage=1),
    _deepspeed_row("deepspeed_zero_2", "DeepSpeed ZeRO: optimizer states and gradients", stage=2),
    _deepspeed_row("deepspeed_zero_3", "DeepSpeed ZeRO: optimizer states, gradients and parameters", stage=3),
    _deepspeed_row("deepspeed_zero_2_offload", "as deepspeed_zero_2, optimizer on the CPU", stage=2, offload=True),
    _deepspeed_row(
        "deepspeed_zero_3_offload", "as deepspeed_zero_3, optimizer and parameters on the CPU", stage=3, offload=True
    ),
    StrategyRow(
        "tf_local",
        ".tensorflow.engines.local:TensorFlowLocalStrategy",
        "one process of plain TensorFlow, the reference",
        launcher=None,
        requirements=(_TENSORFLOW,),
        framework="tensorflow",
    ),
    StrategyRow(
        "tf_multiworker",
        ".tensorflow.engines.multiworker:MultiWorkerStrategy",
        "TensorFlow MultiWorkerMirroredStrategy: a replica on every worker",
        launcher="tf_config",
        requirements=(_TENSORFLOW,),
        framework="tensorflow",
    ),
    StrategyRow(
        "tf_horovod",
        ".tensorflow.engines.horovod:TensorFlowHorovodStrategy",
        "Horovod for TensorFlow: a replica on every worker",
        launcher="horovodrun",
        requirements=(_TENSORFLOW, _TENSORFLOW_HOROVOD),
        framework="tensorflow",
    ),
)


@cache
def strategy_rows() -> Mapping[str, StrategyRow]:
    """Return all rows by name: the built-in ones, then those of other distributions."""
    rows = {row.name: row for row in BUILT_IN}
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        if entry_point.name in rows:
            owner = entry_point.dist.name if entry_point.dist is not None else entry_point.value
            raise OptionError(
                f"{owner} registers a strategy named {entry_point.name!r}, a name in use: uninstall or rename it"
            )
        summary = entry_point.dist.metadata["Summary"] if entry_point.dist is not None else None
        rows[entry_point.name] = StrategyRow(
            entry_point.name, entry_point.value, summary or entry_point.value, entry_point=entry_point
        )
    return MappingProxyType(rows)


def strategy_row(name: str) -> StrategyRow:
    """Return one row.

    Raises:
        UnknownStrategyError: no such name; the message suggests the nearest one.
    """
    rows = strategy_rows()
    if name not in rows:
        raise UnknownStrategyError(
            f"there is no strategy {name!r}.{did_you_mean(name, rows)} Registered: {', '.join(rows)}"
        )
    return rows[name]


def create_strategy(name: str | None = None, **options: Any) -> Strategy:
    """Create a strategy by its registered name, with the engine's options as keywords.

    Without a name it creates the one that `farandole run --strategy` started this process for.

    Raises:
        UnknownStrategyError: no such name, or none was given here or to `farandole run`.
        OptionError: an option that the engine does not have, or a value that it does not accept.
        EngineUnavailableError: the engine is not installed or was built without what the strategy needs.
        LauncherError: the environment contradicts itself.
    """
    asked = os.environ.get(STRATEGY_VARIABLE)
    if name and asked and name != asked:
        warnings.warn(
            f"this program creates strategy {name!r}, but was started for {asked!r} "
            f"({STRATEGY_VARIABLE}, as `farandole run` sets it): create_strategy() without a name uses that one",
            stacklevel=2,
        )
    name = name or asked
    if not name:
        raise UnknownStrategyError(
            "no strategy was named: create_strategy('ddp') names one, "
            f"and so does `farandole run --strategy ddp`, or {STRATEGY_VARIABLE}=ddp"
        )
    row = strategy_row(name)
    strategy_class = row.load()
    known = [parameter for parameter in inspect.signature(strategy_class).parameters if parameter not in row.options]
    for option in options:
        if option not in known:
            listed = f"Its options: {', '.join(known)}" if known else "It has none."
            raise OptionError(f"strategy {name!r} has no option {option!r}.{did_you_mean(option, known)} {listed}")
    strategy = strategy_class(**row.options, **options)
    strategy.name, strategy.options = name, {**row.options, **options}
    return strategy
