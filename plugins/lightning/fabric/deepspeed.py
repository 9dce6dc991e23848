"""DeepSpeed ZeRO for Fabric, on the CPU too: `Fabric(strategy="deepspeed_zero_2")`."""

from __future__ import annotations

import contextlib
from os import PathLike
from typing import Any, cast

import torch

from ....adapters import OptionError, StrategyStateError
from ....adapters.torch.batch_norm import warn_of_batch_norm
from ....adapters.torch.engines.deepspeed.compat import is_partitioned
from ....adapters.torch.engines.deepspeed.engine import ZeroEngine
from ....adapters.torch.whole_state import (
    load_whole_optimizer_state,
    load_whole_weights,
    whole_optimizer_state,
    whole_weights,
)
from ..compat import OneModel, set_no_backward_sync
from ..held import hand_over, release
from ..lost_workers import FABRICS, noticing_lost_workers
from ..package import fabric_part
from ..zero import computes_in, give, name_of, refuse_given
from .module import Called, SetUpModule, ZeroModule
from .optimizer import kept
from .strategy import FabricAdapterStrategy, check_owned

_strategies: Any = fabric_part("strategies")
_DDPStrategy: Any = _strategies.DDPStrategy


@noticing_lost_workers(FABRICS)
class FabricDeepSpeedStrategy(OneModel, FabricAdapterStrategy, _strategies.DeepSpeedStrategy):  # type: ignore[misc]
    """Optimizer states are sharded (stage 1), and gradients (2), and parameters (3).

    Fabric sees a Fabric DeepSpeedStrategy. Unlike Fabric's own it trains on CPUs, updates with the optimizer that
    `fabric.setup` gets, clips by `fabric.clip_gradients`, and writes checkpoints of whole weights and states, as
    `strategy="ddp"` does: any of our strategies, DDP and one process load them, at any number of workers.

    It trains one model with one optimizer. A model that is set up without an optimizer is whole on every worker.

    Args:
        stage: of ZeRO, 1 to 3.
        offload: keep the optimizer's shard on the CPU, and at stage 3 the parameters' too.
        config: DeepSpeed's own settings, a dict or the path of a JSON file.
        find_unused_parameters: let workers use different parameters in a step.
        timeout: seconds that a collective may take.
    """

    def __init__(
        self,
        stage: int = 2,
        offload: bool = False,
        config: dict[str, Any] | str | PathLike[str] | None = None,
        find_unused_parameters: bool = True,
        timeout: float = 1800,
    ) -> None:
        super().__init__(
            name_of(stage, offload), config=config, find_unused_parameters=find_unused_parameters, timeout=timeout
        )
        self.config = {"zero_optimization": {"stage": stage}}  # Fabric reads it
        if stage > 1:
            set_no_backward_sync(self, None)  # gradients are sharded
        self._configured_norm = 0.0
        self._stepped = False

    def _options(self) -> dict[str, Any]:
        return {"precision": computes_in(self.precision.precision), **super()._options()}

    # Modules and optimizers.

    @property
    def model(self) -> ZeroModule | None:
        """The model that is trained."""
        return next((known for known in self.modules if isinstance(known, ZeroModule)), None)

    def _training(self) -> ZeroModule:
        model = self.model
        if model is None:
            raise StrategyStateError(
                "no model was set up for training: set it up with its optimizer, by fabric.setup(model, optimizer)"
            )
        return model

    def setup_module_and_optimizers(
        self, module: torch.nn.Module, optimizers: list[torch.optim.Optimizer], scheduler: Any = None
    ) -> tuple[SetUpModule, list[Any], Any]:
        if len(optimizers) > 1 or self.model is not None:
            what = f"{len(optimizers)} optimizers" if len(optimizers) > 1 else "a second model while one is in use"
            raise OptionError(
                f"fabric.setup() with {what}, and DeepSpeed trains one model with one optimizer: join them into one, "
                "or use strategy='horovod' or 'ddp'"
            )
        (optimizer,) = optimizers
        refuse_given(optimizers, "make a new one for each fabric.setup()")
        check_owned(optimizer, [module])
        release(module)
        if self.world_size > 1:
            warn_of_batch_norm(module, stacklevel=4)
        engine = cast(ZeroEngine, self.adapter.engine_for(Called(module), optimizer))
        give(optimizer)
        hand_over(module, engine)
        self._configured_norm = engine.deepspeed_engine.gradient_clipping()
        served = kept(optimizer, self)
        self._of_optimizer = {id(served): engine}
        self._stepped = False
        return self._known(ZeroModule(module, self._shares, engine)), [served], scheduler

    def setup_module(self, module: torch.nn.Module) -> SetUpModule:
        if any(map(is_partitioned, module.parameters())):
            raise OptionError(
                "fabric.setup(model) without an optimizer, of a model with partitioned parameters: build it "
                "outside fabric.init_module(), or set it up with its optimizer"
            )
        return FabricAdapterStrategy.setup_module(self, module)

    def module_init_context(self, empty_init: bool | None = None) -> Any:
        return self.adapter.scope() if self.zero_stage_3 else _DDPStrategy.module_init_context(self, empty_init)

    def module_sharded_context(self) -> contextlib.AbstractContextManager[None]:
        return self.adapter.scope() if self.zero_stage_3 else contextlib.nullcontext()

    # A step.

    def backward(self, tensor: torch.Tensor, module: Any, *args: Any, **kwargs: Any) -> None:
        model = self._training()
        if module is not model:
            raise OptionError("fabric.backward(loss, model=...) names a model that was set up without an optimizer")
        if self._stepped:
            raise StrategyStateError(
                "fabric.backward() after optimizer.step(): call optimizer.zero_grad() in between, because DeepSpeed "
                "cannot add to a step's gradients"
            )
        FabricAdapterStrategy.backward(self, tensor, model, *args, **kwargs)

    def optimizer_step(self, optimizer: Any, **kwargs: Any) -> Any:
        result = kwargs["closure"]() if "closure" in kwargs else None
        model = self._training()
        self.reduce_gradients(optimizer)
        model.engine.update()
        model.engine.clip_grad_norm(self._configured_norm)
        model.pending = 0
        self._stepped = True
        return result

    def zero_grad(self, set_to_none: bool) -> None:
        """Drop the gradients of the last step.

        Raises:
            OptionError: `set_to_none` is False.
            StrategyStateError: there was no step.
        """
        model = self._training()
        if not set_to_none:
            raise OptionError("optimizer.zero_grad(set_to_none=False): DeepSpeed cannot set gradients to zero")
        if model.pending:
            raise StrategyStateError(
                "optimizer.zero_grad() between fabric.backward() and optimizer.step(): DeepSpeed cannot drop gradients "
                "that it has begun to reduce. Leave the batch out before backward"
            )
        model.engine.zero_grad()
        self._stepped = False

    def clip_gradients_norm(
        self, module: Any, optimizer: Any, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = True
    ) -> None:
        """Let the next update clip. DeepSpeed knows the norm only then, so it cannot be returned.

        If a gradient is not finite, the update raises an error.
        """
        if norm_type != 2 or not max_norm > 0:
            raise OptionError(
                f"fabric.clip_gradients(max_norm={max_norm}, norm_type={norm_type}): DeepSpeed clips at an L2 norm "
                "above 0 only"
            )
        self._training().engine.clip_grad_norm(float(max_norm))

    def clip_gradients_value(self, module: Any, optimizer: Any, clip_val: float) -> None:
        raise OptionError("fabric.clip_gradients(clip_val=...): DeepSpeed clips by norm only; pass max_norm")

    # Checkpoints, whole.

    def get_module_state_dict(self, module: torch.nn.Module) -> dict[str, Any]:
        if isinstance(module, ZeroModule):
            return whole_weights(self.adapter, module.engine, module.module)
        return FabricAdapterStrategy.get_module_state_dict(self, module)

    def load_module_state_dict(self, module: torch.nn.Module, state_dict: Any, strict: bool = True) -> None:
        if isinstance(module, ZeroModule):
            load_whole_weights(module.engine, module.module, state_dict, strict)
        else:
            FabricAdapterStrategy.load_module_state_dict(self, module, state_dict, strict)

    def get_optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return whole_optimizer_state(self.adapter, self.engine_of(optimizer))

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Restore an optimizer's whole state."""
        load_whole_optimizer_state(self._training().engine, state)

    def save_checkpoint(self, path: Any, state: Any, storage_options: Any = None, filter: Any = None) -> None:
        _DDPStrategy.save_checkpoint(self, path, state, storage_options, filter)

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        found: dict[str, Any] = _DDPStrategy.load_checkpoint(self, *args, **kwargs)
        return found
