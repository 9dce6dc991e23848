"""Horovod for Fabric: `Fabric(strategy="horovod")`."""

from __future__ import annotations

from typing import Any, Literal

import torch

from ....adapters import OptionError
from ....adapters.torch.batch_norm import warn_of_batch_norm
from ..held import hand_over
from ..joining import ON_DEMAND
from ..lost_workers import FABRICS, noticing_lost_workers
from ..package import fabric_part
from .strategy import FabricAdapterStrategy, check_owned

_DDPStrategy: Any = fabric_part("strategies").DDPStrategy
_NOT_REDUCED = ("bf16-true", "transformer-engine")


@noticing_lost_workers(FABRICS)
class FabricHorovodStrategy(FabricAdapterStrategy):
    """A replica on every worker; Horovod all-reduces the gradients when the optimizer steps or is clipped.

    Until then gradients are local, with and without `fabric.no_backward_sync()`.

    Args:
        compression: "fp16" halves the traffic, lossily.
        num_groups: all-reduce gradients in this many groups; 0 lets Horovod fuse them as they come.
    """

    def __init__(self, compression: Literal["none", "fp16"] = "none", num_groups: int = 0) -> None:
        super().__init__("horovod", compression=compression, num_groups=num_groups)

    @property
    def precision(self) -> Any:
        return super().precision

    @precision.setter
    def precision(self, plugin: Any) -> None:
        if plugin is not None and plugin.precision in _NOT_REDUCED:
            raise OptionError(
                f"precision={plugin.precision!r}: Horovod cannot all-reduce bfloat16 gradients; use 'bf16-mixed', "
                "whose gradients are float32"
            )
        _DDPStrategy.precision.fset(self, plugin)

    def setup_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        wanted = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        owners = [known for known in self.modules if any(id(p) in wanted for p in known.module.parameters())]
        modules = [known.module for known in owners]
        check_owned(optimizer, modules)
        whole = modules[0] if len(modules) == 1 else torch.nn.ModuleList(modules)
        if self.world_size > 1:
            warn_of_batch_norm(whole, stacklevel=4)
        engine = self.adapter.engine_for(whole, optimizer, ON_DEMAND)
        self._forget_unused()
        self._of_optimizer[id(optimizer)] = engine
        for known in owners:
            known.has_optimizer = True
            hand_over(known.module, engine)
        return optimizer

    def _forget_unused(self) -> None:
        """Release the engines and optimizers of modules that are no longer in use."""
        in_use = {id(known.module) for known in self.modules}
        self._of_optimizer = {
            number: engine
            for number, engine in self._of_optimizer.items()
            if any(id(part) in in_use for part in engine.module.modules())
        }

    def optimizer_step(self, optimizer: Any, **kwargs: Any) -> Any:
        if "closure" in kwargs:
            kwargs["closure"] = self.reducing(optimizer, kwargs["closure"])
        else:
            self.reduce_gradients(optimizer)
        return super().optimizer_step(optimizer, **kwargs)

    def clip_gradients_norm(self, module: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        self.reduce_gradients(optimizer)
        return super().clip_gradients_norm(module, optimizer, *args, **kwargs)

    def clip_gradients_value(self, module: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        self.reduce_gradients(optimizer)
        return super().clip_gradients_value(module, optimizer, *args, **kwargs)
