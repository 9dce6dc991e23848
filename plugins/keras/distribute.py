"""Make `fit`, `evaluate` and `predict` of one Keras model work on all workers of a strategy."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import keras
import tensorflow as tf

from ...adapters.callback import Callback, Run
from ...adapters.errors import DataError, OptionError, StrategyStateError
from ...adapters.progress import Progress
from ...adapters.seam import Seam
from ...adapters.strategy import Strategy
from ...adapters.tensorflow.library import check_model
from ...adapters.tensorflow.strategy import TensorFlowStrategy
from ...adapters.tensorflow.training import warn_of_batch_norm
from .agreement import Agreement, callbacks_of
from .compat import FitModel
from .data import OTHER_ORDER, check_size, rows_of_batches
from .distribution import Distribution
from .functions import make_functions_of
from .records import StepHooks, parted, refuse_changing
from .seeds import shared_seed

M = TypeVar("M", bound=keras.Model)


def distribute(model: M, strategy: Strategy, callbacks: Sequence[Callback] = ()) -> M:
    """Make a compiled Keras 3 model train on all workers, and return it; nothing else is changed.

    From now on `batch_size` is the global batch, and results are those of one process: every sample comes once, and
    losses and metrics are over all samples, the same on every worker. Give every worker the same data: each reads all
    of them, and trains on its share of each batch. Only rank 0 writes files.

    `fit(callbacks=[...])` takes farandole's callbacks together with Keras's own, and calls them first. A record is of
    one step, with its loss over the global batch (NaN if your own `train_step` updates no metric "loss"), and the
    phases "data" and "update". Keras's files do not hold these callbacks' states: call `state_dict` and
    `load_state_dict` yourself.

    Args:
        model: built and compiled inside `strategy.scope()`.
        strategy: a TensorFlow strategy, entered.
        callbacks: those that change the model (`on_prepare`), called now; they see each `fit` too.

    Raises:
        OptionError: the model is not compiled, was built outside of the scope, is no Keras 3 model, or uses a feature
            that these strategies do not support; the message names an alternative.
        StrategyStateError: the strategy was not entered, or the model is distributed already.
    """
    if strategy.capabilities.framework != "tensorflow":
        raise OptionError(f"strategy {strategy.name!r} is not TensorFlow's: fit needs tf_multiworker or tf_horovod")
    assert isinstance(strategy, TensorFlowStrategy)  # as all strategies of that framework
    with strategy.scope():
        pass  # raises if the strategy was not entered
    check_model(model)
    fitted = FitModel(model)
    if isinstance(fitted.distribution, Distribution):
        raise StrategyStateError(f"the model {model.name!r} is distributed already")
    if not getattr(model, "compiled", False):
        raise OptionError(f"the model {model.name!r} is not compiled: compile it inside strategy.scope() first")
    lasting = Seam(callbacks, strategy.worker)
    lasting.refuse_differences(strategy)
    with strategy.scope():
        lasting.prepare(model, Run(strategy, "keras", Progress()))
    distribution = Distribution(model, strategy)
    distribution.check()
    if strategy.worker.world_size > 1:
        warn_of_batch_norm(model, stacklevel=3)
    fitted.distribution = distribution
    for name in ("train_function", "test_function", "predict_function"):
        setattr(model, name, None)  # compiled before for one process
    fitted.build_if_needed = distribution.build
    make_functions_of(model, strategy.worker, distribution)
    model.fit = _fit(model, strategy, distribution, callbacks)
    model.evaluate = _quiet(model.evaluate, strategy, distribution)
    model.predict = _quiet(model.predict, strategy, distribution)
    return model


def _fit(
    model: Any, strategy: TensorFlowStrategy, distribution: Distribution, lasting: Sequence[Callback]
) -> Callable[..., Any]:
    stock = model.fit

    @functools.wraps(stock)
    def fit(*args: Any, **options: Any) -> Any:
        bound = _bind(stock, args, options)
        distribution.check()
        distribution.tunes_datasets = isinstance(bound.get("x"), tf.data.Dataset)
        check_size("x", bound.get("x"), bound.get("steps_per_epoch"), "steps_per_epoch")
        distribution.rows = rows_of_batches(bound.get("x"), bound.get("batch_size"))
        check_size("validation_data", bound.get("validation_data"), bound.get("validation_steps"), "validation_steps")
        if isinstance(bound.get("callbacks"), keras.callbacks.CallbackList):
            raise OptionError("pass callbacks as a list: a CallbackList cannot be divided among workers")
        own, plugged = parted(bound.get("callbacks"))
        refuse_changing(plugged)
        seam = Seam([*lasting, *plugged], strategy.worker)
        seam.refuse_differences(strategy)
        hooks = [StepHooks(distribution.records)] if seam else []
        bound["callbacks"] = [*hooks, *callbacks_of(own, strategy), Agreement(strategy, distribution.prepare)]
        if not strategy.worker.is_main:
            bound["verbose"] = 0
        with (
            distribution.records.to(seam, model),
            strategy.noticing_lost_workers(),
            shared_seed(strategy),
            _explaining(),
        ):
            history = stock(**bound)
        strategy.barrier()  # rank 0's files are now complete
        return history

    return fit


def _quiet(stock: Callable[..., Any], strategy: TensorFlowStrategy, distribution: Distribution) -> Callable[..., Any]:
    """Return `evaluate` or `predict` with one progress bar for all workers."""

    @functools.wraps(stock)
    def method(*args: Any, **options: Any) -> Any:
        bound = _bind(stock, args, options)
        distribution.check()
        check_size("x", bound.get("x"), bound.get("steps"), "steps")
        distribution.tunes_datasets = isinstance(bound.get("x"), tf.data.Dataset)
        if not strategy.worker.is_main:
            bound["verbose"] = 0
        if not isinstance(bound.get("callbacks"), keras.callbacks.CallbackList):  # fit's own, when it validates
            own, plugged = parted(bound.get("callbacks"))
            if plugged:
                raise OptionError(f"{type(plugged[0]).__name__} sees training only: pass it to fit")
            bound["callbacks"] = callbacks_of(own, strategy)
        with strategy.noticing_lost_workers(), _explaining():
            return stock(**bound)

    return method


def _bind(stock: Callable[..., Any], args: Sequence[Any], options: dict[str, Any]) -> dict[str, Any]:
    arguments = dict(inspect.signature(stock).bind(*args, **options).arguments)
    others: dict[str, Any] = arguments.pop("kwargs", {})
    return {**arguments, **others}


class _explaining:
    """Turn TensorFlow's error of our own check into a `DataError`."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, tf.errors.InvalidArgumentError) and OTHER_ORDER in str(error):
            raise DataError(OTHER_ORDER) from None
