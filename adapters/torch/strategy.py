"""Base of all PyTorch engines: the device, nested reductions, and how a model is prepared."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from .. import entry
from ..errors import OptionError
from ..lost_worker import gloo_lost_a_peer
from ..seam import Seam
from ..strategy import ReduceOp, Strategy
from ..structure import map_structure
from ..training import StepOptions, Training
from .compat import check
from .device import choose_device
from .engine import Engine, model_of
from .meta import allocate
from .optimizer_guard import OwnSteps
from .parameter_types import refuse_complex
from .side_models import SideModels

Finish = Callable[[], torch.Tensor]

# Texts of NCCL's errors, and of torch's watchdog for it.
_NCCL = ("remote process exited", "NCCL communicator was aborted", "Watchdog caught collective operation timeout")


class TorchStrategy(Strategy):
    """Base of the PyTorch engines, which supply `wrap`, `start_all_reduce` and the collectives on objects.

    models: those that are trained, each by a training of its own.
    own_steps: of the trainings' optimizers.

    Args:
        device: "cpu", "cuda", or a GPU by number ("cuda:1"). By default a GPU if there is one: the only one that this
            worker sees, or the one with its local rank.
    """

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        check()
        self._trainings = itertools.count()
        self.models = SideModels()
        self.own_steps = OwnSteps()
        self._settlers: list[Callable[[], Callable[[], object] | None]] = []
        self._engines: weakref.WeakSet[Engine] = weakref.WeakSet()
        self._device = choose_device(device, self.worker)

    @property
    def device(self) -> torch.device:
        """The device of this worker: the CPU, or one GPU."""
        return self._device

    def place(self, module: torch.nn.Module) -> torch.nn.Module:
        """Move a model to where `wrap` takes it: this device. On workers other than rank 0 it may be without values.

        Raises:
            OptionError: it is on the meta device on rank 0.
        """
        allocate(module, self._device, self.worker)
        return module.to(self._device)

    def engine_for(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, accumulate: int = 1) -> Engine:
        """Put `module` on an engine, as `wrap` does; all frontends call this.

        Raises:
            OptionError: it has parameters that the engine does not train.
        """
        refuse_complex(model_of(module), self)
        return self.wrap(module, optimizer, accumulate)

    @abstractmethod
    def wrap(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, accumulate: int = 1) -> Engine:
        """Put `module`, which `place` returned, on the engine; all start from rank 0's parameters and buffers.

        The engine's part of `engine_for`. `accumulate` is the number of backward passes before each update.
        """

    def check_batch(self, global_batch_size: int, accumulate: int) -> None:
        """Raise `OptionError` if the engine was configured for batches of another size."""

    @abstractmethod
    def start_all_reduce(self, tensor: torch.Tensor, op: ReduceOp, name: str) -> Finish:
        """Start to reduce `tensor` in place ("sum", "max" or "min"); the returned function waits and returns it.

        Only one reduction of a name may run at a time; engines that plan by name reuse the plan.
        """

    def time_waiting(self, engine: Engine, seam: Seam) -> None:
        """Report the waiting of steps for other workers to the seam, if a callback watches it.

        Not on CUDA, where the stream waits, and not the host.
        """
        if seam.watches("wait") and self._device.type == "cpu" and self.worker.world_size > 1:
            engine.time_waiting(partial(seam.note, "wait"))

    def next_training(self) -> int:
        """Return the number of a new training, the same on every worker."""
        return next(self._trainings)

    def settle_before_leaving(self, settle: Callable[[], object], keep: bool = True) -> None:
        """Call `settle()` before the job is left: it waits for a reduction that may not have been read yet.

        Args:
            keep: whether to keep the object of this method alive until then; not for engines, which hold modules.
        """
        self._settlers = [known for known in self._settlers if known() is not None]
        self._settlers.append((lambda: settle) if keep else weakref.WeakMethod(settle))

    def release_after_leaving(self, engine: Engine) -> None:
        """Make the engine release its module when the job is left: its hooks would keep both alive."""
        self._engines.add(engine)

    def _release_engines(self) -> None:
        while self._engines:
            self._engines.pop().release()

    def _lost_a_worker(self, error: BaseException) -> bool:
        """Whether torch.distributed lost a worker; every engine may use it, also beside Horovod."""
        text = str(error)
        if isinstance(error, dist.DistBackendError) and any(words in text for words in _NCCL):
            return True
        return isinstance(error, (dist.DistNetworkError, dist.DistStoreError)) or (
            isinstance(error, RuntimeError) and gloo_lost_a_peer(text)
        )

    def _leave(self, failed: bool) -> None:
        if failed:
            entry.close_later(self._release_engines)
        else:
            for settle in filter(None, [known() for known in self._settlers]):
                settle()
            self._release_engines()
        self._settlers.clear()

    def _join(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)

    def _scope(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def _prepare(
        self,
        model: Any,
        optimizer: Any,
        loss_fn: Callable[[Any, Any], Any],
        options: StepOptions,
    ) -> Training:
        from .training import TorchTraining

        return TorchTraining(self, model, optimizer, loss_fn, options)

    def _reduce(self, value: Any, op: ReduceOp) -> Any:
        started = [_Leaf(self, leaf, op, f"leaf{number}") for number, leaf in enumerate(_leaves(value))]
        finished = iter([leaf.finish() for leaf in started])
        return map_structure(lambda _: next(finished), value)


class _Leaf:
    """One tensor, array or number in an all-reduce, converted back into its own type."""

    def __init__(self, strategy: TorchStrategy, value: Any, op: ReduceOp, name: str) -> None:
        self._value = value
        self._divisor = strategy.worker.world_size if op == "mean" else None
        self._is_own_value = op in ("max", "min")
        tensor = _as_tensor(value)
        self._dtype = tensor.dtype
        tensor = tensor.detach().to(device=strategy.device, dtype=_wide(tensor.dtype), copy=True)
        self._shape = tensor.shape
        self._finish = strategy.start_all_reduce(tensor.reshape(-1), "sum" if op == "mean" else op, name)

    def finish(self) -> Any:
        tensor = self._finish().reshape(self._shape)
        if self._divisor is not None:
            tensor = (tensor if tensor.is_floating_point() else tensor.double()) / self._divisor
        # A sum of integers may need all 64 bits, as in torch.sum.
        if self._dtype.is_floating_point or (self._is_own_value and self._dtype != torch.bool):
            tensor = tensor.to(self._dtype)
        if isinstance(self._value, torch.Tensor):
            return tensor.to(self._value.device)
        array = tensor.cpu().numpy()
        return array if isinstance(self._value, np.ndarray) else array.item()


def _leaves(value: Any) -> list[Any]:
    leaves: list[Any] = []
    map_structure(leaves.append, value)
    return leaves


def _as_tensor(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float64)
    if isinstance(value, (bool, int, np.ndarray, np.generic)):
        return torch.as_tensor(np.asarray(value))
    raise OptionError(f"cannot reduce a {type(value).__name__}: only tensors, arrays and numbers, nested or not")


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type for sums: half precision would round each partial sum, and engines support few integer types."""
    if dtype.is_floating_point:
        return torch.float64 if dtype == torch.float64 else torch.float32
    if dtype.is_complex:
        raise OptionError("cannot reduce complex numbers: reduce their real and imaginary parts")
    return torch.int64
