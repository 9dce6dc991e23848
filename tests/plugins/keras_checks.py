"""Other promises of a distributed model, one function each, run by every worker of one job in the same order."""

from __future__ import annotations

import importlib
import itertools
import os
import pkgutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = ""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_scenarios import VALIDATION_X, VALIDATION_Y, X, Y, build, compile_model

from farandole.adapters import (
    Callback,
    CallbackError,
    DataError,
    EngineUnavailableError,
    OptionError,
    Progress,
    Run,
    StepRecord,
    StrategyStateError,
    create_strategy,
)
from farandole.adapters.callback import PHASES
from farandole.adapters.undocumented import Name
from farandole.plugins.keras import (
    BroadcastInitialState,
    GradientCheckpointing,
    LearningRateWarmup,
    MetricAverage,
    WorkerMetrics,
    distribute,
)
from farandole.plugins.metrics import Reader, Window

Check = Callable[[Any, Path], None]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


def made(strategy: Any, make: Callable[[], Any], callbacks: Sequence[Callback] = ()) -> Any:
    with strategy.scope():
        model = make()
    return distribute(model, strategy, callbacks)


def fit(model: Any, x: Any = X, y: Any = Y, **options: Any) -> Any:
    return model.fit(x, y, **{"batch_size": 32, "verbose": 0, "shuffle": False, **options})


def batches() -> Iterator[tuple[Any, Any]]:
    for start in range(0, 96, 32):
        yield X[start : start + 32], Y[start : start + 32]


class Watcher(Callback):
    """Watches everything, and makes a mistake in the method that `wrong` names."""

    watches = frozenset(PHASES)
    wrong = ""

    def __init__(self) -> None:
        self.begun: list[tuple[str, Progress]] = []
        self.ahead: list[Progress] = []
        self.records: list[StepRecord] = []
        self.ended: list[BaseException | None] = []

    def on_begin(self, run: Run) -> None:
        self.begun.append((run.frontend, run.progress))
        self._err("on_begin")

    def on_step_begin(self, progress: Progress) -> None:
        self.ahead.append(progress)
        self._err("on_step_begin")

    def on_step_end(self, step: StepRecord) -> None:
        self.records.append(step)
        self._err("on_step_end")

    def on_end(self, error: BaseException | None) -> None:
        self.ended.append(error)
        self._err("on_end")

    def _err(self, method: str) -> None:
        if method == self.wrong:
            raise ValueError("the mistake")


class Halves(Callback):
    """Changes the model: its last layer starts with half of its weights, and is not trained."""

    def on_prepare(self, model: Any, run: Run) -> None:
        model.layers[-1].kernel.assign(model.layers[-1].kernel / 2)
        model.layers[-1].trainable = False


@check
def what_cannot_work_is_refused(strategy: Any, folder: Path) -> None:
    outside = build()()
    for make, match in [
        (build(jit_compile=True), "jit_compile"),
        (build(run_eagerly=True), "run_eagerly"),
        (lambda: keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), "not compiled"),
    ]:
        with pytest.raises(OptionError, match=match):
            made(strategy, make)
    with pytest.raises(StrategyStateError, match="already"):
        distribute(made(strategy, build()), strategy)
    for callbacks, match in [
        ([Halves()], r"Halves changes the model .* distribute\(model, strategy, callbacks=\[Halves"),
        ([type("Wrong", (Callback,), {"watches": frozenset({"foward"})})()], "Wrong watches 'foward'"),
    ]:
        with pytest.raises(OptionError, match=match):
            fit(made(strategy, build()), callbacks=callbacks)
    with pytest.raises(OptionError, match=r"worker 1 has the callbacks \[\], worker 0 has \[Watcher"):
        fit(made(strategy, build()), callbacks=[Watcher()] if strategy.worker.is_main else [])
    with pytest.raises(OptionError, match="Watcher sees training only"):
        made(strategy, build()).evaluate(X, Y, callbacks=[Watcher()])
    with pytest.raises(AttributeError, match=r"farandole\.plugins\.keras\.distribute\(model, strategy\)"):
        outside.fit(X, Y, verbose=0, callbacks=[Watcher()])
    if strategy.steps_in_control_flow:
        with pytest.raises(OptionError, match="steps_per_execution=2: farandole's callbacks watch each step"):
            fit(made(strategy, build(steps_per_execution=2)), callbacks=[Watcher()])
    if not strategy.owns(outside.variables[0].value):
        with pytest.raises(OptionError, match=r"outside of strategy\.scope"):
            distribute(outside, strategy)
        with strategy.scope():
            late = keras.Sequential([keras.Input((12,)), keras.layers.Dense(4)])
        compile_model(late)
        with pytest.raises(OptionError, match="was compiled outside"):
            distribute(late, strategy)


@check
def names_that_an_upgrade_took_away_are_told(strategy: Any, folder: Path) -> None:
    plugin = importlib.import_module("farandole.plugins.keras")
    for owner, name, look in (
        ("tensorflow.python.eager.context:Context", "get_task_states", create_strategy),
        ("tensorflow.python.data.ops.shuffle_op", "_ShuffleDataset", create_strategy),
        ("keras.src.layers.layer:Layer", "_flatten_layers", create_strategy),
        ("keras.src.backend.tensorflow.trainer:TensorFlowTrainer", "_make_function", lambda: importlib.reload(plugin)),
    ):
        library = {"tensorflow": "TensorFlow", "keras": "Keras"}[owner.partition(".")[0]]
        look()
        with pytest.MonkeyPatch.context() as patch:
            patch.delattr(pkgutil.resolve_name(owner), name)
            told = rf"^{library} \d.* has no \S+\.{name}, .* pip install \w+==\d"
            with pytest.raises(EngineUnavailableError, match=told):
                look()
    with pytest.MonkeyPatch.context() as patch:  # what only objects have
        patch.setattr("farandole.plugins.keras.compat.FitModel.distribution", Name("_no_such_name"))
        with pytest.raises(EngineUnavailableError, match=r"^Keras \d.* has no \w+\._no_such_name, "):
            made(strategy, build())


@check
def models_of_keras_2_are_refused_by_name(strategy: Any, folder: Path) -> None:
    tf_keras = pytest.importorskip("tf_keras")
    with strategy.scope():
        model = tf_keras.Sequential([tf_keras.layers.Dense(1, input_shape=(2,))])
        model.compile("sgd", "mse")
    with pytest.raises(OptionError, match=r"Keras 2 \(tf-keras\)"):
        distribute(model, strategy)
    with pytest.raises(OptionError, match=r"Keras 2 \(tf-keras\)"):
        strategy.prepare(model, model.optimizer, lambda m, x: m(x))


@check
def losses_that_workers_would_divide_apart_are_refused(strategy: Any, folder: Path) -> None:
    def summed() -> Any:
        model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(1)])
        model.compile("sgd", keras.losses.MeanSquaredError(reduction="sum"))
        return model

    def masked() -> Any:
        model = keras.Sequential([keras.Input((12,)), keras.layers.Embedding(9, 4, mask_zero=True)])
        model.compile("sgd", "mse")
        return model

    with pytest.raises(OptionError, match="reduction='sum'"):
        fit(made(strategy, summed), y=Y.astype("float32"))
    with pytest.raises(OptionError, match="reduction='sum'"):
        made(strategy, summed).evaluate(X, Y.astype("float32"), batch_size=32, verbose=0)
    again = made(strategy, build())
    with strategy.scope():
        again.compile("sgd", "sparse_categorical_crossentropy", jit_compile=True)
    for method, data in ((again.evaluate, (X, Y)), (again.predict, (X,))):
        with pytest.raises(OptionError, match="jit_compile=True"):
            method(*data, batch_size=32, verbose=0)
    with pytest.raises(OptionError, match="mask"):
        made(strategy, masked)


@check
def data_that_workers_do_not_share_are_refused(strategy: Any, folder: Path) -> None:
    rank = strategy.worker.rank
    model = made(strategy, build())
    unknown = tf.data.Dataset.from_tensor_slices((X, Y)).filter(lambda x, y: True).batch(32)
    with pytest.raises(DataError, match="unknown size"):
        model.fit(unknown, verbose=0)
    with pytest.raises(DataError, match="infinite size"):
        model.evaluate(tf.data.Dataset.from_tensor_slices((X, Y)).batch(32).repeat(), verbose=0)
    with pytest.raises(DataError, match=r"generator.*PyDataset"):
        model.fit(batches(), verbose=0)
    model.fit(unknown, steps_per_epoch=3, verbose=0)
    with pytest.raises(DataError, match="different samples"):
        fit(model, X[rank : 96 + rank], Y[rank : 96 + rank])
    with pytest.raises(DataError, match="different samples"):
        fit(model, X[rank * 20 : 20 + rank * 20], Y[rank * 20 : 20 + rank * 20])
    other = made(strategy, build())
    wide = X if rank == 0 else np.concatenate([X, X], 1)
    with pytest.raises(DataError, match="must look alike"):
        fit(other, wide)
    with pytest.raises(DataError, match=r"worker 1 has 2 batches of .* worker 0 has 1 batches of"):
        fit(model, X[: 32 * (rank + 1)], Y[: 32 * (rank + 1)])

    class Fewer(keras.Sequential):  # type: ignore[misc]
        def train_step(self, data: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(self(data[0]))
            variables = self.trainable_variables[rank:]
            self.optimizer.apply(tape.gradient(loss, variables), variables)
            return {"loss": loss}

    def fewer() -> Any:
        net = Fewer([keras.Input((12,)), keras.layers.Dense(4)])
        compile_model(net)
        return net

    with pytest.raises(DataError, match=r"worker 1 has 1 gradients of AdamW, worker 0 has 2 .*the same variables"):
        fit(made(strategy, fewer))


@check
def shuffles_without_a_seed_are_the_same_everywhere(strategy: Any, folder: Path) -> None:
    from tensorflow.python.eager import context

    model = made(strategy, build())
    context.context()._seed = None  # as in a program that set none
    fit(model, epochs=2, shuffle=True)
    assert context.global_seed() is None, "fit left a global seed behind"
    tf.random.set_seed(strategy.worker.rank)
    fit(model, epochs=2, shuffle=True)
    assert context.global_seed() == strategy.worker.rank


@check
def a_metric_read_by_one_worker_alone_is_global(strategy: Any, folder: Path) -> None:
    model = made(strategy, build())
    loss = fit(model).history["loss"][0]
    if strategy.worker.is_main:
        assert float(model.metrics[0].result()) == pytest.approx(loss, rel=1e-6)
        assert float(model.get_metrics_result()["loss"]) == pytest.approx(loss, rel=1e-6)
    strategy.barrier()


@check
def one_worker_stops_all(strategy: Any, folder: Path) -> None:
    class Clock(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1 and strategy.worker.rank == strategy.worker.world_size - 1:
                self.model.stop_training = True

    assert len(fit(made(strategy, build()), epochs=5, callbacks=[Clock()]).history["loss"]) == 2


@check
def data_that_end_too_soon_are_an_error(strategy: Any, folder: Path) -> None:
    """A step without data changes nothing: no weight decays, no update is counted, no metric is reset."""
    whole, short = made(strategy, build()), made(strategy, build())
    fit(whole, batches(), None, batch_size=None, steps_per_epoch=3)
    with pytest.raises(DataError, match="ran out"):
        fit(short, batches(), None, batch_size=None, steps_per_epoch=4)
    for mine, other in zip(short.variables, whole.variables, strict=True):
        assert np.array_equal(mine.numpy(), other.numpy()), mine.path
    assert int(short.optimizer.iterations.numpy()) == 3
    assert short.get_metrics_result() == whole.get_metrics_result()


@check
def a_step_is_compiled_once(strategy: Any, folder: Path) -> None:
    """Keras runs a step in Python only to compile it: neither another epoch nor another `fit` does."""
    calls = []

    class Counting(keras.Sequential):  # type: ignore[misc]
        def train_step(self, data: Any) -> Any:
            calls.append("train")
            return super().train_step(data)

        def test_step(self, data: Any) -> Any:
            calls.append("test")
            return super().test_step(data)

    def make() -> Any:
        model = Counting([keras.Input((12,)), keras.layers.Dense(4)])
        compile_model(model)
        return model

    model = made(strategy, make)
    fit(model, epochs=2, validation_data=(VALIDATION_X, VALIDATION_Y))
    fit(model, x=X[:40], y=Y[:40], validation_data=(VALIDATION_X, VALIDATION_Y))
    assert sorted(calls) == ["test", "train"]
    calls.clear()
    sizes = (16, 24, 8, 12)  # of batches that divide the samples, and so tell their size to what compiles the step
    for size in sizes:
        fit(model, x=X[:48], y=Y[:48], batch_size=size)
    assert not calls, "the step was compiled for any number of samples already"
    another = made(strategy, make)
    for size in sizes:
        fit(another, x=X[:48], y=Y[:48], batch_size=size)
    assert calls == ["train", "train"], "Keras compiles for the first size, and with the second for any"


@check
def workers_start_from_rank_0(strategy: Any, folder: Path) -> None:
    model = made(strategy, build())
    for variable in model.trainable_variables:
        variable.assign(tf.ones_like(variable) * (strategy.worker.rank + 2.0))
    model.optimizer.learning_rate = 0.0
    fit(model, x=X[:4], y=Y[:4])
    assert all((np.asarray(weight) == 2.0).all() for weight in model.get_weights())


@check
def batch_normalization_warns_once(strategy: Any, folder: Path) -> None:
    def make(synchronized: bool) -> Any:
        model = keras.Sequential(
            [keras.Input((12,)), keras.layers.BatchNormalization(synchronized=synchronized), keras.layers.Dense(4)]
        )
        compile_model(model)
        return model

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(made(strategy, lambda: make(False)), epochs=2)
    assert sum("BatchNormalization" in str(warning.message) for warning in caught) == 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made(strategy, lambda: make(True))
    assert not any("BatchNormalization" in str(warning.message) for warning in caught)


@check
def mixed_precision_is_respected(strategy: Any, folder: Path) -> None:
    def make() -> Any:
        keras.utils.set_random_seed(9)
        model = keras.Sequential(
            [
                keras.Input((12,)),
                keras.layers.Dense(8, "gelu", dtype="mixed_bfloat16"),
                keras.layers.Dense(4, dtype="float32"),
            ]
        )
        compile_model(model)
        return model

    model = made(strategy, make)
    losses = fit(model, epochs=4).history["loss"]
    assert losses[-1] < losses[0] and {variable.dtype for variable in model.trainable_variables} == {"float32"}
    assert model.layers[0].compute_dtype == "bfloat16"


@check
def callbacks_that_horovods_users_know(strategy: Any, folder: Path) -> None:
    worker = strategy.worker
    rates: list[float] = []

    class Note(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            rates.append(float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)))

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["rank"] = float(worker.rank)

    metrics = WorkerMetrics(folder / "run", every=2)
    warmup = LearningRateWarmup(strategy, 0.01, warmup_epochs=2, policy="linear")
    model = made(strategy, build())
    history = fit(model, x=X[:96], y=Y[:96], epochs=3, callbacks=[warmup, Note(), MetricAverage(strategy), metrics])
    target, start = 0.01 * worker.world_size, 0.01
    expected = [start + (target - start) * step / 6 for step in range(6)] + [target] * 3
    assert rates == pytest.approx(expected, rel=1e-6)
    assert history.history["rank"] == pytest.approx([(worker.world_size - 1) / 2] * 3)
    strategy.barrier()
    windows = [record for record in Reader(folder / "run").poll() if isinstance(record, Window)]
    assert metrics.folder == folder / "run"
    for rank in range(worker.world_size):
        assert sum(window.steps for window in windows if window.rank == rank) == 9
    assert sum(window.samples or 0 for window in windows) == 3 * 96
    parts = {f"{name}_ms" for name in ("data", "forward", "backward", "update", "communication", "wait", "other")}
    for window in windows:
        assert parts <= window.values.keys() and window.values["forward_ms"].mean > 0
        assert sum(window.values[part].mean for part in parts) == pytest.approx(window.values["step_ms"].mean, rel=1e-3)
    last = worker.world_size - 1
    for variable in model.trainable_variables:
        variable.assign(tf.ones_like(variable) * (worker.rank + 2.0))
    broadcast = BroadcastInitialState(strategy, root=last)
    broadcast.set_model(model)
    broadcast.on_train_begin()
    assert all((np.asarray(weight) == last + 2.0).all() for weight in model.trainable_weights)
    with pytest.raises(OptionError, match="policy"):
        LearningRateWarmup(strategy, 0.01, policy="cubic")  # type: ignore[arg-type]


@check
def callbacks_of_farandoles_see_each_step(strategy: Any, folder: Path) -> None:
    rank, watchers, plain = strategy.worker.rank, [Watcher(), Watcher()], made(strategy, build())
    model = made(strategy, build(), [watchers[0], Halves()])
    assert np.allclose(model.layers[-1].kernel, plain.layers[-1].kernel / 2)
    frozen = np.array(model.layers[-1].kernel)
    lengths = (32, 32, 32, 1)
    history = fit(model, epochs=2, callbacks=[keras.callbacks.TerminateOnNaN(), watchers[1]]).history
    assert np.array_equal(model.layers[-1].kernel, frozen) and set(history) == {"loss", "accuracy", "top2"}
    after = [Progress(0, 1), Progress(0, 2), Progress(0, 3), Progress(1), Progress(1, 1), Progress(1, 2)]
    after += [Progress(1, 3), Progress(2)]
    for watcher in watchers:
        assert watcher.begun == [("keras", Progress())] and watcher.ended == [None]
        assert watcher.ahead == [record.progress for record in watcher.records] == after
        losses = np.array([float(record.loss) for record in watcher.records]).reshape(2, 4)
        assert (losses * lengths).sum(1) / 97 == pytest.approx(history["loss"], rel=1e-6)
        assert strategy.gather(losses.tolist()) == [losses.tolist()] * strategy.worker.world_size
        samples = np.array(strategy.gather([record.samples for record in watcher.records]))
        assert samples.sum(0).tolist() == [*lengths] * 2
        for record in watcher.records:
            assert [phase.name for phase in record.phases] == ["data", "forward", "backward", "wait", "update"]
            assert all(one.end == after.start for one, after in itertools.pairwise(record.phases))
            assert all(phase.start <= phase.end for phase in record.phases)
    # It changes nothing: a model without it, and then with it, trains like one that never had it.
    thawed = [made(strategy, build()) for _ in range(2)]
    fit(thawed[0], epochs=2)
    fit(thawed[1])
    fit(thawed[1], initial_epoch=1, epochs=2, callbacks=[watcher := Watcher()])
    assert watcher.begun == [("keras", Progress(1))]
    for mine, other in zip(*(model.get_weights() for model in thawed), strict=True):
        assert np.allclose(mine, other, atol=1e-6)
    for method in ("on_begin", "on_step_begin", "on_step_end", "on_end"):
        watcher, other = Watcher(), Watcher()
        watcher.wrong = method
        with pytest.raises(CallbackError, match=rf"Watcher.{method} on worker {rank} raised ValueError: the mistake"):
            fit(thawed[1], x=X[:32], y=Y[:32], callbacks=[other, watcher])
        assert len(watcher.ended) == 1
        assert [type(error) for error in other.ended] == [type(None) if method == "on_end" else CallbackError]


class Block(keras.layers.Layer):
    """A residual with statistics and dropout, whose layers Keras builds in fit; counts how often it is traced."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(12, kernel_initializer=keras.initializers.GlorotUniform(seed=seed))
        self.normalization = keras.layers.BatchNormalization(momentum=0.5)
        self.dropout = keras.layers.Dropout(0.3, seed=seed)
        self.traces = 0

    def call(self, x: Any) -> Any:
        self.traces += 1
        return x + self.dropout(self.normalization(self.dense(x)))


class Blocks(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = [Block(seed) for seed in range(3)]
        self.head = keras.layers.Dense(4, kernel_initializer=keras.initializers.GlorotUniform(seed=9))

    def call(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@check
def checkpointed_layers_fit_as_without(strategy: Any, folder: Path) -> None:
    def make() -> Any:
        model = Blocks()
        compile_model(model)
        return model

    found, traces = [], []
    for callbacks in ([], [GradientCheckpointing("blocks.*")]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of BatchNormalization
            model = made(strategy, make, callbacks)
        history = fit(model, epochs=2, validation_data=(VALIDATION_X, VALIDATION_Y)).history
        found.append([*history.values(), *model.get_weights()])
        traces.append(model.blocks[0].traces)
    for other, own in zip(*found, strict=True):
        assert np.allclose(own, other, atol=1e-6, rtol=1e-6)
    assert traces[1] == traces[0] + 1, "it is traced again for the backward pass only"
    with pytest.raises(OptionError, match=r"distribute\(model, strategy, callbacks=\[GradientCheckpointing"):
        fit(model, callbacks=[GradientCheckpointing()])


@check
def a_run_that_was_cut_off_goes_on(strategy: Any, folder: Path) -> None:
    class Cut(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                raise InterruptedError("cut off")

    backup = folder / "backup"
    whole = fit(made(strategy, build()), epochs=4).history["loss"]
    model = made(strategy, build())
    with pytest.raises(InterruptedError):
        fit(model, epochs=4, callbacks=[keras.callbacks.BackupAndRestore(backup), Cut()])
    strategy.barrier()
    rest = fit(made(strategy, build()), epochs=4, callbacks=[keras.callbacks.BackupAndRestore(backup)])
    assert rest.history["loss"] == pytest.approx(whole[2:], rel=1e-5)


@check
def predictions_of_several_outputs(strategy: Any, folder: Path) -> None:
    def make() -> Any:
        keras.utils.set_random_seed(3)
        inputs = keras.Input((12,))
        model = keras.Model(inputs, {"a": keras.layers.Dense(2)(inputs), "b": keras.layers.Dense(3)(inputs)})
        model.compile("sgd", "mse")
        return model

    model = made(strategy, make)
    predicted = model.predict(VALIDATION_X, batch_size=32, verbose=0)  # the last batch has one sample
    expected = model(VALIDATION_X)
    assert {name: value.shape for name, value in predicted.items()} == {"a": (33, 2), "b": (33, 3)}
    assert all(np.allclose(predicted[name], expected[name], atol=1e-6) for name in predicted)
