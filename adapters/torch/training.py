"""A training step and its data, the same on every PyTorch engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from typing import Any, SupportsFloat

import torch

from ..batches import Batch, Batches
from ..checkpoint.save import Saver
from ..errors import OptionError
from ..evaluation import SampleMean
from ..order import GlobalOrder, check_batch_size
from ..pending import Pending
from ..progress import Progress
from ..random_seed import mix
from ..training import StepOptions, Training
from ..weighting import total_of, weight_of
from . import checkpoint
from .batch_norm import warn_of_batch_norm
from .data import StepLoader, order_of, to_device
from .engine import LossModule
from .evaluation import evaluation_mode
from .ignored_labels import IgnoredLabels
from .pending_reductions import EarlierReduction
from .placeholder import check_placeholder_gradients, without_side_effects
from .strategy import TorchStrategy
from .weighing import is_placeholder_not_finite, weigh


class TorchTraining(Training):
    """A PyTorch model on one engine."""

    _strategy: TorchStrategy

    def __init__(
        self,
        strategy: TorchStrategy,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: Callable[[Any, Any], torch.Tensor],
        options: StepOptions,
    ) -> None:
        super().__init__(strategy, options)
        self._seam.prepare(model, self._run())
        _check(model, optimizer, options.scheduler)
        self._number = strategy.next_training()
        self.model = strategy.place(model)
        self.scheduler = options.scheduler
        if strategy.broadcast(bool(optimizer.state)):  # before an engine shards it
            optimizer.load_state_dict(strategy.broadcast(optimizer.state_dict()))
        self.engine = strategy.engine_for(LossModule(model, loss_fn), optimizer, options.accumulate)
        strategy.models.add(model)
        strategy.time_waiting(self.engine, self._seam)
        self.optimizer = self.engine.optimizer
        strategy.own_steps.refuse_others(self.optimizer, strategy)
        self._groups = len(self.optimizer.param_groups)
        self._frozen = [parameter for parameter in self.model.parameters() if not parameter.requires_grad]
        self._earlier_loss = EarlierReduction()
        self._earlier_weight = EarlierReduction()
        self._ignored = IgnoredLabels(model, loss_fn)
        self._saver = Saver(strategy, lambda storage, keep: checkpoint.TorchSave(storage, self, strategy, keep))
        strategy.settle_before_leaving(self._earlier_loss.settle)
        strategy.settle_before_leaving(self._earlier_weight.settle)
        if strategy.worker.world_size > 1:
            warn_of_batch_norm(model, stacklevel=4)

    def _step(self, batch: Batch) -> Pending:
        if len(batch.micro) != self._options.accumulate:
            raise OptionError(
                f"the batch has {len(batch.micro)} micro-batches, but accumulate={self._options.accumulate}"
            )
        if any(parameter.requires_grad for parameter in self._frozen):
            raise OptionError(
                "a parameter requires a gradient that was frozen when the model was prepared, and engines do not "
                "reduce it: unfreeze it before prepare(), with a learning rate of 0 in its own group until it trains"
            )
        self._update_groups()
        with self._strategy.models.frozen_beside(self.model), self._strategy.own_steps.updating():
            return self._train(batch)

    def _train(self, batch: Batch) -> Pending:
        clip_norm = self._options.clip_norm
        engine = self.engine
        with engine.waiting():
            self._earlier_loss.settle()
        if batch.random_seed is not None:
            _seed(batch.random_seed, self._strategy.device)
        engine.zero_grad()
        last = len(batch.micro) - 1
        placeholder_not_finite = False
        total: torch.Tensor | None = None
        for number, (micro_batch, weight) in enumerate(zip(batch.micro, batch.weights, strict=True)):
            with contextlib.ExitStack() as stack:
                if number < last:
                    stack.enter_context(engine.no_sync())
                if weight == 0:
                    stack.enter_context(without_side_effects(self.model))
                with self._seam.phase("forward", number):
                    loss = engine.forward(micro_batch)
                _check_loss(loss)
                with engine.waiting():
                    weight_of_all = total_of(batch)
                placeholder_not_finite |= is_placeholder_not_finite(loss, weight)
                if weight > 0:
                    weighted = loss.detach().to(torch.float64) * (weight / weight_of_all)
                    total = weighted if total is None else total + weighted
                with self._seam.phase("backward", number):
                    engine.backward(weigh(loss, weight, weight_of_all, self._strategy.worker.world_size))
        # After backward, so that it competes with backward for no processor: DDP on two cores took 2.5 % longer.
        own = torch.zeros((), dtype=torch.float64) if total is None else total
        loss_sum = self._start_sum(own, "loss", self._earlier_loss)
        with self._seam.phase("update"):
            with engine.waiting():
                engine.reduce_gradients()
            if placeholder_not_finite:
                check_placeholder_gradients(engine)
            if clip_norm is not None:
                engine.clip_grad_norm(clip_norm)
            elif self._options.grad_norm:
                engine.measure_grad_norm()
            engine.update()
            if self._options.grad_norm:
                self._grad_norm = Pending(engine.grad_norm().item)
            if self.scheduler is not None and not engine.skipped:
                self.scheduler.step()
        return loss_sum

    def batches(
        self,
        dataset: Any,
        global_batch_size: int,
        *,
        epochs: int = 1,
        seed: int = 0,
        start: Progress | None = None,
        shuffle: bool = True,
        weight: Callable[[Any], SupportsFloat] | None = None,
        **loader_options: Any,
    ) -> Batches:
        worker = self._strategy.worker
        check_batch_size("global_batch_size", global_batch_size, worker.world_size)
        self._strategy.check_batch(global_batch_size, self._options.accumulate)
        order = order_of(dataset, global_batch_size, seed, shuffle)
        may_fork = not self._strategy.capabilities.threads
        begin = self._position.begin(start, epochs)
        remaining = order.remaining(begin, epochs)
        loader = StepLoader(dataset, order, worker, self._options.accumulate, begin, epochs, loader_options, may_fork)
        self._position.begun(begin)
        return Batches(self._batches(loader, order, weight, begin.loop), remaining, self._seam)

    def _batches(
        self, loader: StepLoader, order: GlobalOrder, weight: Callable[[Any], SupportsFloat] | None, loop: int
    ) -> Iterator[Batch]:
        worker = self._strategy.worker
        for epoch, step, counts, data in loader:
            micro = tuple(to_device(micro_batch, self._strategy.device) for micro_batch in data)
            weights = tuple(float(count) for count in counts)
            samples = None if weight is None else sum(counts)
            global_weight: SupportsFloat = float(order.size(step))
            if weight is None and worker.is_main and max(self._options.accumulate, worker.world_size) > 1:
                self._ignored.look_at(micro, stacklevel=3)
            if weight is not None:
                weights = tuple(
                    weight_of(own, weight) if count else 0.0 for own, count in zip(micro, counts, strict=True)
                )
                with self._strategy.noticing_lost_workers():
                    self._earlier_weight.settle()
                own = torch.tensor(sum(weights), dtype=torch.float64)
                global_weight = self._start_sum(own, "weight", self._earlier_weight)
            seed = mix(order.seed, epoch, step, worker.rank)
            yield Batch(micro, weights, global_weight, order.after(epoch, step, loop), seed, samples=samples)

    def evaluate(self, dataset: Any, fn: Callable[[Any, Any], Any], batch_size: int, **loader_options: Any) -> Any:
        strategy = self._strategy
        check_batch_size("batch_size", batch_size, strategy.worker.world_size)
        order = order_of(dataset, batch_size, 0, False)
        may_fork = not strategy.capabilities.threads
        loader = StepLoader(dataset, order, strategy.worker, 1, Progress(), 1, loader_options, may_fork)
        mean = SampleMean()
        with strategy.noticing_lost_workers(), evaluation_mode(self.model), torch.no_grad():
            for _, _, (count,), (micro_batch,) in loader:
                mean.add(self.engine.forward(to_device(micro_batch, strategy.device), fn), count)
        return mean.over_workers(strategy)

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, value in self.model.state_dict(keep_vars=True).items():
            if isinstance(value, torch.Tensor):
                with self._strategy.noticing_lost_workers():
                    whole = self.engine.whole(value) if isinstance(value, torch.nn.Parameter) else value.detach()
                yield name, whole.cpu()

    def save(
        self,
        path: str | PathLike[str],
        progress: Progress,
        extras: Mapping[str, Any] | None = None,
        *,
        wait: bool = True,
        keep: int | None = None,
    ) -> None:
        with self._strategy.noticing_lost_workers(), self._seam.phase("save"):
            self._update_groups()
            self._saver.save(path, progress, extras, wait, keep)

    def load(self, path: str | PathLike[str]) -> Progress:
        with self._strategy.noticing_lost_workers(), self._seam.phase("load"):
            self._update_groups()
            self._saver.settle()
            progress = checkpoint.load(self._strategy, path, self)
        self._position.load(progress)
        return progress

    def _update_groups(self) -> None:
        """Give the engine the optimizer's parameters added since `prepare`; all workers call it."""
        if len(self.optimizer.param_groups) != self._groups:
            self.engine.update_groups()
            _check_optimizer(self.model, self.optimizer)
            self._groups = len(self.optimizer.param_groups)

    def _start_sum(self, value: torch.Tensor, name: str, earlier: EarlierReduction) -> Pending:
        flat = value.to(self._strategy.device).reshape(1)
        finish = self._strategy.start_all_reduce(flat, "sum", f"training{self._number}.{name}")
        earlier.replace(finish)

        def read() -> float:
            with self._strategy.noticing_lost_workers():
                return finish().item()

        return Pending(read)


def _seed(seed: int, device: torch.device) -> None:
    """Seed the streams of a model on `device`; `torch.manual_seed` would visit every backend."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)


def _check(model: torch.nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
    if isinstance(optimizer, torch.optim.LBFGS):
        raise OptionError(
            "LBFGS evaluates the model several times a step, which no engine here can: use another optimizer"
        )
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise OptionError("ReduceLROnPlateau follows a metric: leave out scheduler and call its step(metric) yourself")
    if any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):  # of a DTensor
        raise OptionError(
            "the model's parameters are shards (DTensors), as strategy 'fsdp' leaves them: build a new model, and load "
            "a checkpoint into it"
        )
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    if not trained:
        raise OptionError("the model has no parameter that requires a gradient: there is nothing to train")
    _check_optimizer(model, optimizer)


def _check_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    updated = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not updated <= {id(parameter) for parameter in model.parameters()}:
        raise OptionError(
            "the optimizer holds parameters that the model does not: no engine would reduce their gradients. "
            "Make them part of the model, and build the optimizer from model.parameters()."
        )


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        kind = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise OptionError(f"loss_fn must return the mean loss of a micro-batch, a scalar tensor, but returned {kind}")
