"""Lightning's hooks, mapped onto our strategies' primitives: the code that all engines share."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...adapters import OptionError, WorkerLostError
from ...adapters.leaving import has_succeeded
from ...adapters.torch.batch_norm import warn_of_batch_norm
from ...adapters.torch.engine import Engine
from . import environment, job
from .compat import layer_sync
from .held import engines_of, hand_over, release
from .joining import ON_DEMAND, share_weights
from .package import fabric_part, trainer_part
from .position import put_back_position, take_out_position
from .recording import Recording
from .reducing import Reducing, ReducingFirst
from .sharing import Sharing
from .sigterm import SigtermWatch

_DDPStrategy: Any = trainer_part("strategies").DDPStrategy
_LightningOptimizer: Any = trainer_part("core.optimizer").LightningOptimizer
_TrainerFn: Any = trainer_part("trainer.states").TrainerFn


class AdapterStrategy(Recording, Reducing, Sharing):
    """Base of Lightning's strategies on ours. Lightning starts processes; we join, split data and reduce.

    Lightning's DDP strategy is the base because Lightning, and its users' code, take it for data-parallel training;
    nothing here runs DistributedDataParallel.

    Args:
        name: the strategy's, as in `create_strategy`.
        options: the engine's.
    """

    def __init__(self, name: str, **options: Any) -> None:
        _DDPStrategy.__init__(self)
        self._stand_for(name, options)

    def _hold_nothing(self) -> None:
        super()._hold_nothing()
        self._share_nothing_yet()
        self._reduce_nothing_yet()
        self._record_nothing_yet()
        self._known: set[int] = set()
        self._stepping = False
        self._step_hooks: list[Any] = []
        self._sigterm: SigtermWatch | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the job and the engine: a copy of a Trainer has joined nothing, and runs the plain module."""
        fresh = object.__new__(type(self))
        fresh._hold_nothing()
        state, module = {**super().__getstate__(), **fresh.__dict__}, self.lightning_module
        return state if module is None else {name: module if v is self.model else v for name, v in state.items()}

    # Workers.

    @property
    def num_nodes(self) -> int:
        return int(_DDPStrategy.num_nodes.fget(self))

    @num_nodes.setter
    def num_nodes(self, number: int) -> None:
        environment.check_nodes(self.cluster_environment, number, self.frontend)
        _DDPStrategy.num_nodes.fset(self, number)

    def setup_environment(self) -> None:
        self.accelerator.setup_device(self.root_device)
        self.setup_distributed()

    def setup_distributed(self) -> None:
        fabric_part("utilities.seed").reset_seed()
        self.set_world_ranks()
        self._join()

    # Precision.

    @property
    def precision_plugin(self) -> Any:
        return _DDPStrategy.precision_plugin.fget(self)

    @precision_plugin.setter
    def precision_plugin(self, plugin: Any) -> None:
        _DDPStrategy.precision_plugin.fset(self, None if plugin is None else self._adopt_precision(plugin))

    def _adopt_precision(self, plugin: Any) -> Any:
        """Make a precision plugin work on this engine: gradients must be reduced before it clips them."""
        plugin.clip_gradients = ReducingFirst(self, plugin)
        return plugin

    # A run.

    def setup(self, trainer: Any) -> None:
        self.accelerator.setup(trainer)
        fitting = trainer.state.fn == _TrainerFn.FITTING
        if fitting:
            self.seam.refuse_differences(self.adapter)
        if fitting and layer_sync(self) is not None:
            self._synchronize_batch_norm()
        self._begin_sharing(trainer)
        if self.world_size > 1:
            self._sigterm = SigtermWatch(trainer)
            self._sigterm.install()
        module = self.lightning_module
        self.model: Any = self.precision_plugin.convert_module(module)
        if fitting:
            release(self.lightning_module)
        if not self.engines or not self.adapter.capabilities.shards:
            self.model_to_device()
        if fitting:
            self.setup_optimizers(trainer)
            self._wrap(trainer)
            if self.adapter.worker.world_size > 1:
                warn_of_batch_norm(module, stacklevel=2)
        elif not self.engines and self.world_size > 1:
            share_weights(module)
        self.setup_precision_plugin()

    def _synchronize_batch_norm(self) -> None:
        if self.root_device.type == "cpu":
            raise OptionError(
                "sync_batchnorm=True: neither PyTorch nor Horovod has a synchronized BatchNorm on the CPU. Leave it "
                "out, or normalize with GroupNorm or LayerNorm"
            )
        self.model = layer_sync(self).apply(self.model)

    def _wrap(self, trainer: Any) -> None:
        """Give module and optimizers to the engine."""
        module = self.lightning_module
        schedules = trainer_part("callbacks").GradientAccumulationScheduler
        steady = module.automatic_optimization and not any(isinstance(c, schedules) for c in trainer.callbacks)
        accumulate = trainer.accumulate_grad_batches if steady else ON_DEMAND
        engines = [self.adapter.engine_for(self.model, optimizer, accumulate) for optimizer in self._trained_with()]
        for engine in engines:
            hand_over(module, engine)
            self.adapter.time_waiting(engine, self.seam)
        self._of_optimizer = {id(engine.optimizer): engine for engine in engines}
        self._known = self._learning()
        for hook in self._step_hooks:
            hook.remove()
        self._step_hooks = []
        if not module.automatic_optimization:
            self._step_hooks = [engine.optimizer.register_step_pre_hook(self._before_step) for engine in engines]

    def _learning(self) -> set[int]:
        """Return the identities of the parameters that are trained now."""
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        return {id(parameter) for group in groups for parameter in group["params"] if parameter.requires_grad}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if not self._learning() <= self._known:
            self._add_unfrozen(batch_idx)

    def _add_unfrozen(self, batch_idx: int) -> None:
        """Let the engine also reduce gradients of parameters that were frozen, or in no optimizer, when it was created.

        Raises:
            OptionError: it is between the micro-batches of a step.
        """
        trainer = self.lightning_module.trainer
        if batch_idx % trainer.accumulate_grad_batches != 0:
            raise OptionError(
                "parameters were unfrozen, or given to an optimizer, between micro-batches of one step: do it at the "
                "start of an epoch"
            )
        release(self.lightning_module)
        self._wrap(trainer)

    def _trained_with(self) -> list[torch.optim.Optimizer]:
        own = {id(parameter) for parameter in self.model.parameters()}
        found = [optimizer for optimizer in self.optimizers if isinstance(optimizer, torch.optim.Optimizer)]
        # Optimizers without any may get parameters, or have theirs unfrozen, later.
        found = [o for o in found if any(p.requires_grad for group in o.param_groups for p in group["params"])]
        for optimizer in found:
            if not {id(p) for group in optimizer.param_groups for p in group["params"]} <= own:
                raise OptionError(
                    "an optimizer of configure_optimizers() holds parameters that the LightningModule does not, so no "
                    "engine would reduce their gradients: make them part of the module"
                )
        return found

    @property
    def engines(self) -> list[Engine]:
        """The engines of the running module, one for each optimizer; none if it was not trained in this process."""
        return engines_of(self.lightning_module)

    def engine_of(self, optimizer: Any) -> Engine | None:
        own = optimizer.optimizer if isinstance(optimizer, _LightningOptimizer) else optimizer
        return self._of_optimizer.get(id(own))

    # A step.

    def backward(self, closure_loss: torch.Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._reduced.clear()
        share = self._share_of_loss()
        if share is not None:
            closure_loss = self.weigh(closure_loss, share.weight, share.total)
        if share is None or share.weight > 0:
            self.note_loss(closure_loss)
        loss: torch.Tensor = super().backward(closure_loss, optimizer, *args, **kwargs)
        return loss

    def optimizer_step(self, optimizer: Any, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        self._stepping = True
        try:
            return super().optimizer_step(optimizer, self.reducing(optimizer, closure), model, **kwargs)
        finally:
            self._stepping = False
            self._reduced.clear()

    def _before_step(self, optimizer: Any, *arguments: Any) -> None:
        """Reduce the gradients for a step of a bare optimizer, which Lightning does not see."""
        if not self._stepping:
            self._reduced.clear()
            self.reduce_gradients(optimizer)

    @contextlib.contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for engine in self.engines:
                stack.enter_context(engine.no_sync())
            yield

    # Checkpoints.

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        take_out_position(checkpoint)
        with self.seam.phase("save"):
            _DDPStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        with self.seam.phase("load"):
            checkpoint: dict[str, Any] = _DDPStrategy.load_checkpoint(self, checkpoint_path, *arguments, **options)
        put_back_position(checkpoint)
        return checkpoint

    # The end.

    def on_train_end(self) -> None:
        if self._sigterm is not None:
            self._sigterm.finish()
        super().on_train_end()

    def on_exception(self, exception: BaseException) -> None:
        super().on_exception(exception)
        if self._adapter is None:
            return
        if isinstance(exception, SystemExit) and has_succeeded(exception) and self.is_alone():
            worker = self.adapter.worker
            way = "sys.exit(0)" if type(exception) is SystemExit else "SIGTERM"  # Lightning raises a subclass
            exception.code = (  # printed, with exit code 1
                f"farandole: worker {worker.rank} of {worker.world_size} left by {way} in the middle of a run, and the "
                "others are still in it"
            )
        job.abandon(self._adapter, exception)

    def is_alone(self) -> bool:
        module = self.lightning_module
        if self._meeting is None or module is None or not _is_interrupted(module):
            return False
        trainer = module.trainer
        loop = trainer.fit_loop.epoch_loop
        where = f"exception in batch {loop.batch_progress.total.ready} after step {trainer.global_step}"
        return not self._meeting.all_come(where, lost=isinstance(sys.exception(), WorkerLostError))

    def has_a_shard(self) -> bool:
        """Whether this worker has only a shard of the training state."""
        return bool(self.adapter.capabilities.shards and self.engines)

    def say_lost(self, path: Any) -> None:
        """Report that this worker alone cannot save a checkpoint."""
        worker = self.adapter.worker
        print(
            f"farandole: checkpoint lost: cannot save to {path}: worker {worker.rank} of {worker.world_size}, which "
            "has only a shard of the state, handles an exception alone",
            file=sys.stderr,
            flush=True,
        )


def _is_interrupted(module: Any) -> bool:
    """Whether the module's Trainer handles an exception."""
    try:
        return bool(module.trainer.interrupted)
    except RuntimeError:  # it has none
        return False
