"""Base of all TensorFlow engines: the device, nested reductions, and how a model is prepared."""

from __future__ import annotations

import contextlib
import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from ..errors import OptionError, StrategyStateError
from ..launch.gpu import gpu_of
from ..strategy import ReduceOp, Strategy
from ..structure import map_structure
from ..training import StepOptions, Training
from ..worker import Worker
from .compat import check
from .library import check_keras, context_is_initialized


class TensorFlowStrategy(Strategy):
    """Base of the TensorFlow engines, which supply `sum_in_graph` and the collectives on objects.

    A worker is a process with one device: on a machine with several GPUs, start a worker for each.

    Args:
        device: "cpu" or "cuda". By default a GPU if there is one: the only one that this worker sees, or the one with
            its local rank.

    steps_in_control_flow: whether a step may run inside a loop or a branch of a compiled function.
    """

    steps_in_control_flow = True
    _followed: ClassVar[str] = ""  # the name of the last strategy that was left in this process

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        check_keras()
        check()
        self._asked = device
        self._device = "/CPU:0"
        self._trainings = itertools.count()
        self._compiled_sum = tf.function(self._sum, autograph=False)

    @property
    def device(self) -> str:
        """The device of this worker, as TensorFlow names it: "/CPU:0" or "/GPU:0", the only one that it sees."""
        return self._device

    @property
    def tf_strategy(self) -> tf.distribute.Strategy:
        """TensorFlow's own strategy, whose scope creates variables; the default one if the engine has none."""
        return tf.distribute.get_strategy()

    def run(self, replica_step: Callable[..., Any], args: Sequence[Any] = ()) -> Any:
        """Run `replica_step(*args)` as this worker's replica; inside it `sum_in_graph` may be called."""
        return replica_step(*args)

    @abstractmethod
    def sum_in_graph(self, tensors: Sequence[Any], name: str) -> list[Any]:
        """Add up tensors or `tf.IndexedSlices` over all workers, as part of a step that every worker runs.

        `name` is the same on all workers, and unique among the step's sums.
        """

    @abstractmethod
    def gather_in_graph(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        """Concatenate tensors that may differ in length along their first dimension, in rank order."""

    def next_training(self) -> int:
        """Return the number of a new training, the same on every worker."""
        return next(self._trainings)

    def owns(self, variable: Any) -> bool:
        """Whether a variable was created where this engine needs it: inside `scope()`."""
        return True

    def prepare_optimizer(self, optimizer: Any) -> None:
        """Make a Keras optimizer apply gradients as they are: they are reduced already."""

    def start_from_rank_0(self, variables: Sequence[tf.Variable]) -> None:
        """Give rank 0's values of the variables to all workers."""
        if self.worker.world_size == 1:
            return
        main = self.worker.is_main
        for dtype in dict.fromkeys(variable.dtype for variable in variables):
            own = [variable for variable in variables if variable.dtype == dtype]
            if dtype.is_floating or dtype.is_integer:
                wide = tf.int64 if dtype.is_integer else tf.float32 if dtype.size < 4 else dtype
                values = [tf.cast(variable.read_value(), wide) for variable in own]
                sent = self.sum_eagerly([value if main else tf.zeros_like(value) for value in values])
                for variable, value in zip(own, sent, strict=True):
                    variable.assign(tf.cast(value, dtype))
            else:
                for variable, value in zip(own, self.broadcast([v.numpy() for v in own]), strict=True):
                    variable.assign(value)

    def sum_eagerly(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Add up tensors over all workers, outside of a step."""
        with self.noticing_lost_workers():
            return list(self._compiled_sum(*tensors))

    def _sum(self, *tensors: tf.Tensor) -> list[tf.Tensor]:
        def replica(*own: tf.Tensor) -> list[tf.Tensor]:
            # A function's arguments have no device, but TensorFlow's strategy finds the replicas by devices.
            return self.sum_in_graph([tf.identity(tensor) for tensor in own], "eager")

        return list(self.run(replica, tensors))

    def _join(self) -> None:
        if context_is_initialized():
            self._device = "/GPU:0" if tf.config.list_logical_devices("GPU") and self._asked != "cpu" else "/CPU:0"
            self._refuse_late()
            return
        gpus = tf.config.list_physical_devices("GPU") if self._asked != "cpu" else []
        chosen = _choose_gpu(self._asked, gpus, self.worker)
        tf.config.set_visible_devices([] if chosen is None else [chosen], "GPU")
        if chosen is not None:
            tf.config.experimental.set_memory_growth(chosen, True)
            self._device = "/GPU:0"

    def _refuse_late(self) -> None:
        """Raise `StrategyStateError` if the engine, or this worker's GPU, must be chosen before any operation."""
        if self.worker.local_world_size > 1 and len(tf.config.list_logical_devices("GPU")) > 1:
            raise self._too_late()

    def _too_late(self) -> StrategyStateError:
        if self._followed:
            return StrategyStateError(
                f"strategy {self.name!r} cannot follow {self._followed!r} in one process: TensorFlow chooses devices "
                "and cluster once, before its first operation. Enter it first, or in a new process"
            )
        return StrategyStateError(
            f"a TensorFlow operation ran before strategy {self.name!r} was entered, which chooses devices and cluster: "
            "create the strategy and enter its `with` block before any tensor, variable, model or random seed of "
            "TensorFlow's"
        )

    def _leave(self, failed: bool) -> None:
        TensorFlowStrategy._followed = self.name

    @contextlib.contextmanager
    def _scope(self) -> Iterator[None]:
        with self.tf_strategy.scope() if self.tf_strategy is not tf.distribute.get_strategy() else _nothing():
            yield

    def _prepare(
        self,
        model: Any,
        optimizer: Any,
        loss_fn: Callable[[Any, Any], Any],
        options: StepOptions,
    ) -> Training:
        from .training import TensorFlowTraining

        return TensorFlowTraining(self, model, optimizer, loss_fn, options)

    def _reduce(self, value: Any, op: ReduceOp) -> Any:
        leaves: list[Any] = []
        map_structure(leaves.append, value)
        if op in ("max", "min"):
            combine = np.maximum if op == "max" else np.minimum
            everyone = self._gather([_wide(leaf) for leaf in leaves])
            reduced = [combine.reduce([own[number] for own in everyone]) for number in range(len(leaves))]
        else:
            summed = self.sum_eagerly([tf.constant(_wide(leaf)) for leaf in leaves])
            divisor = self.worker.world_size if op == "mean" else None
            reduced = [tensor.numpy() if divisor is None else tensor.numpy() / divisor for tensor in summed]
        finished = iter(_like(leaf, np.asarray(array), op) for leaf, array in zip(leaves, reduced, strict=True))
        return map_structure(lambda _: next(finished), value)


def _wide(leaf: Any) -> np.ndarray[Any, Any]:
    """Return a leaf as an array for summing: half precision would round each partial sum."""
    if not isinstance(leaf, (bool, int, float, np.ndarray, np.generic, tf.Tensor, tf.Variable)):
        raise OptionError(f"cannot reduce a {type(leaf).__name__}: only tensors, arrays and numbers, nested or not")
    # NumPy alone does not know TensorFlow's bfloat16.
    array = np.asarray(leaf.numpy() if isinstance(leaf, (tf.Tensor, tf.Variable)) else leaf)
    if array.dtype.kind == "c":
        raise OptionError("cannot reduce complex numbers: reduce their real and imaginary parts")
    if array.dtype.kind in "biu":
        return array.astype(np.int64)
    return array.astype(np.float64 if array.dtype == np.float64 else np.float32)


def _like(leaf: Any, array: np.ndarray[Any, Any], op: ReduceOp) -> Any:
    """Return a reduced array in its leaf's own type; a mean of integers is a float, and their sum has 64 bits."""
    if isinstance(leaf, (tf.Tensor, tf.Variable)):
        return tf.cast(array, leaf.dtype) if _keeps_type(leaf.dtype, op) else tf.constant(array)
    if isinstance(leaf, (np.ndarray, np.generic)) and _keeps_type(tf.as_dtype(leaf.dtype), op):
        array = array.astype(leaf.dtype)
    return array if isinstance(leaf, np.ndarray) else array.item()


def _keeps_type(dtype: tf.DType, op: ReduceOp) -> bool:
    return dtype.is_floating or (op in ("max", "min") and not dtype.is_bool)


def _choose_gpu(asked: str | None, gpus: Sequence[Any], worker: Worker) -> Any:
    if asked not in (None, "cpu", "cuda"):
        raise OptionError(f"device={asked!r} must be 'cpu' or 'cuda'; which GPU follows from the launcher")
    if not gpus:
        if asked == "cuda":
            raise OptionError("device='cuda' was asked for, but TensorFlow finds no CUDA GPU on this machine")
        return None
    return gpus[gpu_of(worker, len(gpus))]


@contextlib.contextmanager
def _nothing() -> Iterator[None]:
    yield
