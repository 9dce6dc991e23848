"""DeepSpeed ZeRO for Lightning, on the CPU too: `Trainer(strategy="deepspeed_zero_2")`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from os import PathLike
from typing import Any

import torch

from ...adapters import OptionError
from ...adapters.checkpoint.manifest import LossScale
from ...adapters.torch.engines.deepspeed.engine import ZeroEngine
from ...adapters.torch.whole_state import (
    load_whole_optimizer_state,
    load_whole_weights,
    whole_optimizer_state,
    whole_weights,
)
from .compat import before_update, run_steps_in
from .lost_workers import TRAINERS, noticing_lost_workers
from .package import trainer_part
from .strategy import AdapterStrategy
from .zero import computes_in, give, name_of, refuse_given

_strategies: Any = trainer_part("strategies")
_LightningModule: Any = trainer_part("core").LightningModule
_DeepSpeedPrecision: Any = trainer_part("plugins.precision.deepspeed").DeepSpeedPrecision


@noticing_lost_workers(TRAINERS)
class DeepSpeedStrategy(AdapterStrategy, _strategies.DeepSpeedStrategy):  # type: ignore[misc]
    """Optimizer states are sharded (stage 1), and gradients (2), and parameters (3).

    Lightning sees a Lightning DeepSpeedStrategy. Unlike Lightning's own it trains on CPUs, updates with the optimizer
    and scheduler that `configure_optimizers` returns, and writes checkpoints of whole weights and states, as
    `strategy="ddp"` does: any of our strategies, DDP and one process load them, at any number of workers.

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
            name_of(stage, offload),
            config=config,
            find_unused_parameters=find_unused_parameters,
            timeout=timeout,
        )
        self.config = {"zero_optimization": {"stage": stage}}  # Lightning reads it
        run_steps_in(self, self._run_in_engine)
        self._between_updates = False
        self._configured_norm = 0.0

    def _options(self) -> dict[str, Any]:
        return {"precision": computes_in(self.precision_plugin.precision), **super()._options()}

    def _adopt_precision(self, plugin: Any) -> Any:
        computes_in(plugin.precision)
        return ZeroPrecision(plugin.precision, self)

    # The engine.

    @property
    def engine(self) -> ZeroEngine | None:
        """The engine of the running module; `None` if it was not trained in this process."""
        engine = next(iter(self.engines), None)
        assert engine is None or isinstance(engine, ZeroEngine)
        return engine

    def setup(self, trainer: Any) -> None:
        AdapterStrategy.setup(self, trainer)
        if self.engine is not None:
            self.model = self.engine.deepspeed_engine

    def _run_in_engine(self, *inputs: Any, **keywords: Any) -> Any:
        """Run the module through the engine, which gathers partitioned parameters."""
        assert self.engine is not None
        return self.engine.forward(*inputs, **keywords)

    def setup_optimizers(self, trainer: Any) -> None:
        _strategies.DDPStrategy.setup_optimizers(self, trainer)
        if len(self.optimizers) > 1:
            raise OptionError(
                f"configure_optimizers() returned {len(self.optimizers)} optimizers, and DeepSpeed trains with one: "
                "join them to one with several parameter groups, or use strategy='horovod' or 'ddp'"
            )

    def _learning(self) -> set[int]:
        return {id(parameter) for parameter in self.lightning_module.parameters() if parameter.requires_grad}

    def _add_unfrozen(self, batch_idx: int) -> None:
        raise OptionError(
            "parameters were unfrozen during training, and DeepSpeed partitioned the others without them: unfreeze "
            "them before fit(), or use strategy='horovod' or 'ddp'"
        )

    @property
    def handles_gradient_accumulation(self) -> bool:
        return False

    def tensor_init_context(self, empty_init: bool | None = None) -> Any:
        return _strategies.DDPStrategy.tensor_init_context(self, empty_init)

    def model_sharded_context(self) -> Any:
        # At stage 3 parameters are partitioned when they are created; a model that is not trained must be whole.
        if self.lightning_module is not None and self.lightning_module.trainer.state.fn != "fit":
            return _strategies.DDPStrategy.model_sharded_context(self)
        return self.adapter.scope()

    def backward(self, closure_loss: torch.Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not self._between_updates and self.engine is not None:
            self.engine.zero_grad()
        self._between_updates = True
        return AdapterStrategy.backward(self, closure_loss, optimizer, *args, **kwargs)

    def update(self) -> None:
        """Apply the gradients."""
        assert self.engine is not None
        self.engine.update()
        self.engine.clip_grad_norm(self._configured_norm)  # a step's clipping does not hold for the next
        self._between_updates = False

    def _wrap(self, trainer: Any) -> None:
        refuse_given(self.optimizers, "have configure_optimizers() make a new one for each fit()")
        AdapterStrategy._wrap(self, trainer)
        if self.engine is None:
            raise OptionError(
                "configure_optimizers() returned no optimizer that trains a parameter, and DeepSpeed needs one to "
                "shard: return one, or use strategy='horovod' or 'ddp'"
            )
        give(self.engine.optimizer)
        self._configured_norm = self.engine.deepspeed_engine.gradient_clipping()

    def _before_step(self, optimizer: Any, *arguments: Any) -> None:
        if not self._stepping:
            raise OptionError(
                "step() of a bare optimizer, which sees this worker's shard only: step what self.optimizers() returns"
            )

    def teardown(self) -> None:
        if self.engine is None or self.root_device.type == "cpu":
            AdapterStrategy.teardown(self)
            return
        # Lightning would move parameters to the CPU, out of DeepSpeed's buffers.
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()
        self.checkpoint_io.teardown()

    # Checkpoints, whole.

    def lightning_module_state_dict(self) -> dict[str, Any]:
        if self.engine is None:
            state: dict[str, Any] = self.lightning_module.state_dict()
            return state
        return whole_weights(self.adapter, self.engine, self.lightning_module)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        assert self.engine is not None
        return whole_optimizer_state(self.adapter, self.engine)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        if self.engine is None:
            self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)
        else:
            load_whole_weights(self.engine, self.lightning_module, checkpoint["state_dict"], strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        assert self.engine is not None
        (state,) = checkpoint["optimizer_states"]
        load_whole_optimizer_state(self.engine, state)


class ZeroPrecision(_DeepSpeedPrecision):  # type: ignore[misc]
    """Lightning's precision plugin for DeepSpeed, on our engine; it clips in the engine."""

    def __init__(self, precision: str, strategy: DeepSpeedStrategy) -> None:
        super().__init__(precision)
        self._strategy = strategy

    def backward(self, tensor: torch.Tensor, model: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        overridden = getattr(model.backward, "__func__", None) is not _LightningModule.backward
        if overridden or args or kwargs:
            what = "LightningModule.backward" if overridden else "an argument of backward"
            raise OptionError(f"{what}: DeepSpeed runs backward itself and cannot use it; leave it out")
        assert self._strategy.engine is not None
        self._strategy.engine.backward(tensor)

    def optimizer_step(self, optimizer: Any, model: Any, closure: Any, **kwargs: Any) -> Any:
        result = closure()
        before_update(self, model, optimizer)
        self._strategy.update()
        return result

    def state_dict(self) -> dict[str, Any]:
        scale = None if self._strategy.engine is None else self._strategy.engine.loss_scale()
        return {} if scale is None else asdict(scale)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._strategy.engine is not None and state_dict:
            self._strategy.engine.load_loss_scale(LossScale(**state_dict))

    def clip_gradients(
        self, optimizer: Any, clip_val: float | None = 0.0, gradient_clip_algorithm: Any = "norm"
    ) -> None:
        if clip_val and gradient_clip_algorithm == "value":
            raise OptionError("gradient_clip_algorithm='value': DeepSpeed clips by norm only")
        assert self._strategy.engine is not None
        if clip_val and clip_val > 0:
            self._strategy.engine.clip_grad_norm(clip_val)
