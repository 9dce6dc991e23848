"""Lightning's hooks, mapped onto the primitives of a strategy of ours: what all engines share."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...adapters import DataError, OptionError
from ...adapters.torch.batch_norm import warn_of_batch_norm
from ...adapters.torch.engine import Engine
from ...adapters.torch.stand_in import without_side_effects
from . import environment, job
from .data import Share, ShareLoader, ShareSampler, plan_of, rebuild, refuse_different_plans
from .joining import ON_DEMAND, Joining, engines_of
from .package import fabric_part, trainer_part
from .position import TrainingPosition, put_back_position, take_out_position
from .reducing import Reducing
from .sigterm import SigtermWatch
from .unshared import watch

_DDPStrategy: Any = trainer_part("strategies").DDPStrategy
_TrainerFn: Any = trainer_part("trainer.states").TrainerFn


class AdapterStrategy(Joining, Reducing, _DDPStrategy):  # type: ignore[misc]
    """Base of Lightning's strategies on ours. Lightning starts processes, and we join, share out data and reduce.

    Lightning's own DDP strategy is the base because it is what Lightning, and its users' code, take for data-parallel
    training; nothing here runs DistributedDataParallel.

    Args:
        name: of the strategy, as in `create_strategy`.
        options: the engine's.
    """

    def __init__(self, name: str, **options: Any) -> None:
        _DDPStrategy.__init__(self)
        self._stand_for(name, options)
        self._own_sampling = False
        self._shares: dict[ShareLoader, Share] = {}  # of the batches being trained on
        self._shares_used = False
        self._evaluated: Share | None = None
        self._reduce_nothing_yet()
        self._known: set[int] = set()
        self._stepping = False
        self._step_hooks: list[Any] = []
        self._sigterm: SigtermWatch | None = None

    # Who and where.

    @property
    def num_nodes(self) -> int:
        return int(self._num_nodes)

    @num_nodes.setter
    def num_nodes(self, number: int) -> None:
        environment.check_nodes(self.cluster_environment, number, self.frontend)
        self._num_nodes = number

    def _configure_launcher(self) -> None:
        self._claim()
        super()._configure_launcher()

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
        """Make a precision plugin work on this engine: what it clips has to be reduced by then."""
        clip_gradients = plugin.clip_gradients

        def reduce_and_clip(optimizer: Any, *args: Any, **kwargs: Any) -> None:
            self.reduce_gradients(optimizer)
            clip_gradients(optimizer, *args, **kwargs)

        plugin.clip_gradients = reduce_and_clip
        return plugin

    # A run.

    def setup(self, trainer: Any) -> None:
        self.accelerator.setup(trainer)
        fitting = trainer.state.fn == _TrainerFn.FITTING
        if fitting and self._layer_sync:
            self._synchronize_batch_norm()
        self._take_over_sampling(trainer)
        self._shares.clear()
        self._evaluated = None
        module = self.lightning_module
        self.model: Any = self.precision_plugin.convert_module(module)
        if fitting:
            self._release(self.lightning_module)
        if not self.engines or not self.adapter.capabilities.shards:
            self.model_to_device()
        if fitting:
            self.setup_optimizers(trainer)
            self._wrap(trainer)
            if self.adapter.worker.world_size > 1:
                self._sigterm = SigtermWatch(trainer)
                self._sigterm.install()
                warn_of_batch_norm(module, stacklevel=2)
        elif not self.engines and self.world_size > 1:
            self._share_weights(module)
        self.setup_precision_plugin()

    def _synchronize_batch_norm(self) -> None:
        if self.root_device.type == "cpu":
            raise OptionError(
                "sync_batchnorm=True: neither PyTorch nor Horovod has a synchronized BatchNorm on the CPU. Leave it "
                "out, or normalize with GroupNorm or LayerNorm"
            )
        self.model = self._layer_sync.apply(self.model)

    def _take_over_sampling(self, trainer: Any) -> None:
        # Lightning would put its own sampler in before it asks us, and the user's would not be seen any more.
        connector = trainer._accelerator_connector
        if connector.use_distributed_sampler:
            connector.use_distributed_sampler = False
            self._own_sampling = True

    def _wrap(self, trainer: Any) -> None:
        """Hand module and optimizers to the engine."""
        module = self.lightning_module
        schedules = trainer_part("callbacks").GradientAccumulationScheduler
        steady = module.automatic_optimization and not any(isinstance(c, schedules) for c in trainer.callbacks)
        accumulate = trainer.accumulate_grad_batches if steady else ON_DEMAND
        engines = [self.adapter.wrap(self.model, optimizer, accumulate) for optimizer in self._trained_with()]
        engines_of[module] = engines
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
            self._take_up_unfrozen(batch_idx)

    def _take_up_unfrozen(self, batch_idx: int) -> None:
        """Have the engine reduce gradients of parameters too that were frozen, or in no optimizer, when it was made.

        Raises:
            OptionError: gradients of other micro-batches are being added up.
        """
        trainer = self.lightning_module.trainer
        if batch_idx % trainer.accumulate_grad_batches != 0:
            raise OptionError(
                "parameters were unfrozen, or given to an optimizer, between micro-batches of one step: do it at the "
                "start of an epoch"
            )
        self._release(self.lightning_module)
        self._wrap(trainer)

    def _trained_with(self) -> list[torch.optim.Optimizer]:
        own = {id(parameter) for parameter in self.model.parameters()}
        found = [optimizer for optimizer in self.optimizers if isinstance(optimizer, torch.optim.Optimizer)]
        found = [optimizer for optimizer in found if optimizer.param_groups]
        for optimizer in found:
            if not {id(p) for group in optimizer.param_groups for p in group["params"]} <= own:
                raise OptionError(
                    "an optimizer of configure_optimizers() holds parameters that the LightningModule does not: no "
                    "engine would reduce their gradients. Make them part of the module."
                )
        return found

    def _share_weights(self, module: torch.nn.Module) -> None:
        trainer_part("overrides.distributed")._sync_module_states(module)

    @property
    def engines(self) -> list[Engine]:
        """The engines of the module that is being run, one for each optimizer; none where it was not trained here."""
        return engines_of.get(self.lightning_module, [])

    def engine_of(self, optimizer: Any) -> Engine | None:
        return self._of_optimizer.get(id(getattr(optimizer, "_optimizer", optimizer)))

    # A step.

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self._shares_used = True
        with contextlib.ExitStack() as stack:
            if self._counts_for_nothing():
                stack.enter_context(without_side_effects(self.lightning_module))
                self._log_without_weight()
            return super().training_step(*args, **kwargs)

    def backward(self, closure_loss: torch.Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._reduced.clear()
        share = self._share_of_loss()
        if share is not None:
            closure_loss = self.weigh(closure_loss, share.weight, share.total)
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
        """Reduce the gradients for the step of a bare optimizer, which Lightning does not see."""
        if not self._stepping:
            self._reduced.clear()
            self.reduce_gradients(optimizer)

    @contextlib.contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for engine in self.engines:
                stack.enter_context(engine.no_sync())
            yield

    def _counts_for_nothing(self) -> bool:
        return bool(self._shares) and all(share.weight == 0 for share in self._shares.values())

    def _share_of_loss(self) -> Share | None:
        """Return which share of the workers' batch the loss is of."""
        shares = list(self._shares.values())
        if not shares:
            return None
        first = shares[0]
        if any(share.weight * first.total != first.weight * share.total for share in shares[1:]):
            raise DataError(
                "the loaders of one training step have shares of different sizes on this worker, so that its loss has "
                "no one weight: choose batch sizes that divide the datasets, or drop_last=True"
            )
        return first

    # Evaluation.

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        self._look_at_evaluated()
        return super().validation_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        self._look_at_evaluated()
        return super().test_step(*args, **kwargs)

    def _look_at_evaluated(self) -> None:
        if self._evaluated is not None and self._evaluated.weight == 0:
            self._log_without_weight()

    def _log_without_weight(self) -> None:
        results = self.lightning_module.trainer._results
        if results is not None:
            results.batch_size = 0

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        # A mean of integers is rounded off otherwise, and with it the number of samples that a logged mean is over.
        if isinstance(tensor, torch.Tensor) and not tensor.is_floating_point() and reduce_op in ("mean", "avg"):
            tensor = tensor.double()
        return super().reduce(tensor, group, reduce_op)

    # Data.

    def process_dataloader(self, dataloader: Any) -> Any:
        trainer, worker = self.lightning_module.trainer, self.adapter.worker
        ours = self._own_sampling and isinstance(dataloader, torch.utils.data.DataLoader)
        seed_workers = fabric_part("utilities.data")._auto_add_worker_init_fn
        seed = self.adapter.broadcast(int(os.environ.get("PL_GLOBAL_SEED", 0)))
        plan = plan_of(dataloader, worker, seed, self.adapter.broadcast, trainer.training) if ours else None
        if plan is None and worker.world_size == 1:
            return dataloader
        if plan is None:
            seed_workers(dataloader, self.global_rank)
            copies = ours and isinstance(dataloader.dataset, torch.utils.data.IterableDataset)
            return watch(dataloader, self.adapter, trainer.training, refuse_copies=copies)
        sampler = ShareSampler(plan, worker, alone=dataloader.batch_sampler is None)
        refuse_different_plans(plan, self.adapter)
        loader = rebuild(dataloader, sampler, trainer.predicting)
        seed_workers(loader, self.global_rank)  # Lightning would give this to the loader around it
        if not trainer.training:
            if plan.stand_ins() > 0 and worker.is_main:
                warnings.warn(
                    f"the last batch has no samples for {plan.stand_ins()} worker(s), which repeat one: logged means "
                    "leave it out, metric objects and predictions do not. A larger batch size avoids it",
                    stacklevel=2,
                )
            return ShareLoader(loader, sampler, self._note_evaluated)
        return ShareLoader(loader, sampler, self._note_trained, TrainingPosition(trainer.fit_loop))

    def on_train_start(self) -> None:
        super().on_train_start()
        loop = self.lightning_module.trainer.fit_loop
        # Loaders that were asked for before the checkpoint was read, as estimated_stepping_batches does, know of none.
        loop._load_combined_loader_states()
        shared = [loader for loader in loop._combined_loader.flattened if isinstance(loader, ShareLoader)]
        if shared and loop.max_batches == float("inf"):
            raise DataError(
                "one of the loaders of a training step has no length, and Lightning then reads the next batch before "
                "this one is trained on, so that nobody knows its weight: give all of them a length"
            )
        if TrainingPosition(loop).is_resumed():
            for loader in shared:
                loader.resume_by_count(loop.epoch_progress.current.processed)

    # Checkpoints.

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        take_out_position(checkpoint)
        _DDPStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        checkpoint: dict[str, Any] = _DDPStrategy.load_checkpoint(self, checkpoint_path, *arguments, **options)
        put_back_position(checkpoint)
        return checkpoint

    def _note_trained(self, loader: ShareLoader, share: Share | None) -> None:
        if self._shares_used:
            self._shares.clear()
            self._shares_used = False
        if share is None:
            self._shares.pop(loader, None)
        else:
            self._shares[loader] = share

    def _note_evaluated(self, loader: ShareLoader, share: Share | None) -> None:
        self._evaluated = share

    # The end.

    def on_train_end(self) -> None:
        if self._sigterm is not None:
            self._sigterm.settle()
        super().on_train_end()

    def on_exception(self, exception: BaseException) -> None:
        super().on_exception(exception)
        if self._adapter is not None:
            job.abandon(self._adapter, exception)
