"""Checkpointed Keras layers: the same outputs, gradients and state as without, or a refusal."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import pytest
import tensorflow as tf

from farandole.adapters import CallbackError, OptionError, create_strategy
from farandole.plugins.gradient_checkpointing import GradientCheckpointing, plan
from farandole.plugins.gradient_checkpointing.applied import Options
from farandole.plugins.gradient_checkpointing.tensorflow import apply
from farandole.plugins.gradient_checkpointing.tensorflow.layers import layers_by_path
from farandole.plugins.gradient_checkpointing.tensorflow.measure import measure
from farandole.plugins.gradient_checkpointing.tensorflow.recompute import CheckpointedLayer

pytestmark = pytest.mark.usefixtures("no_launcher", "wide")

layers = keras.layers
BOUND = 1e-11
X = np.random.RandomState(0).randn(6, 4).astype("float32")
TOKENS = np.array([[1, 2, 3, 0], [4, 1, 0, 0], [2, 2, 2, 2]])

Model = Any
Build = Callable[[], Model]


@pytest.fixture
def wide() -> Iterator[None]:
    """Compute in float64, so that bounds may be narrow."""
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx("float32")


class Block(keras.layers.Layer):
    """Dropout, statistics, another layer inside, and a residual; counts its traces."""

    def __init__(self, units: int = 4, **options: Any) -> None:
        super().__init__(**options)
        self.dense = layers.Dense(units, activation="gelu")
        self.normalization = layers.BatchNormalization(momentum=0.5)
        self.dropout = layers.Dropout(0.5, seed=3)
        self.traces = 0

    def build(self, shape: Any) -> None:
        self.dense.build(shape)
        self.normalization.build(shape)
        self.dropout.build(shape)

    def call(self, x: Any) -> Any:  # `training` reaches the layers inside through Keras
        self.traces += 1
        return x + self.dropout(self.normalization(self.dense(x)))

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = [Block(), Block(), Block()]
        self.head = layers.Dense(1)

    def build(self, shape: Any) -> None:
        for block in self.blocks:
            block.build(shape)
        self.head.build(shape)
        self.built = True

    def call(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def sequential() -> Model:
    return keras.Sequential(
        [keras.Input((4,)), *(Block(name=f"block_{number}") for number in range(3)), layers.Dense(1)]
    )


def functional() -> Model:
    x = inputs = keras.Input((4,))
    for number in range(3):
        x = Block(name=f"block_{number}")(x)
    return keras.Model(inputs, layers.Dense(1)(x))


def subclassed() -> Model:
    model = Subclassed()
    model.build((None, 4))
    return model


def result(
    model: Model,
    inputs: Any = X,
    loss: Callable[[Any], Any] = lambda y: tf.reduce_sum(tf.square(y)),
    calls: int = 2,
    with_losses: bool = True,
) -> tuple[list[Any], list[Any]]:
    """Return the values of some calls of a model and their gradients, and its state after them."""

    @tf.function(autograph=False)
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            value = loss(model(x, training=True))
            value += sum(model.losses, 0.0) if with_losses else 0.0
        return value, tape.gradient(value, [variable.value for variable in model.trainable_variables])

    found = [tf.nest.map_structure(_dense, step(tf.nest.map_structure(tf.constant, inputs))) for _ in range(calls)]
    return found, [variable.numpy() for variable in model.non_trainable_variables]


def _dense(value: Any) -> Any:
    return None if value is None else tf.convert_to_tensor(value).numpy()


def same(one: Any, other: Any) -> None:
    tf.nest.assert_same_structure(one, other)
    for found, expected in zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True):
        assert (found is None) == (expected is None)
        if found is not None:
            assert np.max(np.abs(found - expected), initial=0) <= BOUND * max(1, np.max(np.abs(expected), initial=0))


def compare(build: Build, asked: Any = "blocks", **options: Any) -> Model:
    """Compare a model without and with checkpointed layers, and return the second."""
    found = []
    for checkpointed in (False, True):
        keras.utils.set_random_seed(7)
        model = build()
        if checkpointed:
            apply(model, Options(layers=asked), strategy=None)  # type: ignore[arg-type]
        found.append(result(model, **options))
    same(*found)
    return model


@pytest.mark.parametrize("build", [sequential, functional, subclassed])
def test_all_kinds_of_models_train_as_without(build: Build) -> None:
    model = compare(build)
    blocks = [layer for layer in layers_by_path(model).values() if isinstance(layer, Block)]
    assert [block.traces for block in blocks] == [2, 2, 2], "forward, and again for backward"


def test_the_reference_is_not_dull() -> None:
    """Another mask would change the gradients, and another call the statistics."""
    keras.utils.set_random_seed(7)
    (first, second), state = result(subclassed())
    assert not np.allclose(first[1][0], second[1][0])
    assert max(np.abs(value).max() for value in state) > 0


def test_paths_are_those_of_attributes_or_names() -> None:
    assert [name for name in layers_by_path(subclassed()) if "." not in name.removeprefix("blocks.")] == [
        "blocks.0",
        "blocks.1",
        "blocks.2",
        "head",
    ]
    assert "block_1.dropout" in layers_by_path(functional())
    assert "block_1.dropout" in layers_by_path(sequential())


def test_nothing_but_the_calls_changes_and_unapply_gives_them_back() -> None:
    keras.utils.set_random_seed(7)
    model = subclassed()
    before = [(variable.path, variable.name) for variable in model.variables]
    applied = apply(model, Options(), strategy=None)  # type: ignore[arg-type]
    assert [(variable.path, variable.name) for variable in model.variables] == before
    assert all("call" in vars(block) for block in model.blocks)
    applied.unapply()
    assert not any("call" in vars(block) for block in model.blocks)
    found = result(model)
    assert [block.traces for block in model.blocks] == [1, 1, 1]
    keras.utils.set_random_seed(7)
    same(found, result(subclassed()))


def test_evaluation_and_eager_calls_compute_once() -> None:
    model = subclassed()
    apply(model, Options(), strategy=None)  # type: ignore[arg-type]
    tf.function(lambda x: model(x, training=False))(X)
    model(X)
    assert [block.traces for block in model.blocks] == [2, 2, 2]


class Attention(keras.layers.Layer):
    """Takes and returns several tensors, some by keyword, and a flag."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.attention = layers.MultiHeadAttention(2, 4, dropout=0.3, seed=1)
        self.normalization = layers.LayerNormalization()

    def build(self, shape: Any) -> None:
        self.attention.build(shape, shape)
        self.normalization.build(shape)

    def call(self, x: Any, *, bias: Any, causal: bool, training: bool = False) -> Any:
        y = self.attention(x["values"], x["values"], use_causal_mask=causal, training=training)
        return {"values": self.normalization(x["values"] + y + bias), "count": x["count"] + 1}


class Transformer(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = layers.Embedding(6, 4, mask_zero=True)
        self.blocks = [Attention(), Attention()]
        self.bias = layers.Dense(4)

    def build(self, shape: Any) -> None:
        for part in (self.embedding, *self.blocks, self.bias):
            part.build((*shape, 4) if part is not self.embedding else shape)
        self.built = True

    def call(self, tokens: Any, training: bool = False) -> Any:
        x = self.embedding(tokens)
        state = {"values": x, "count": tf.zeros((), tf.int32)}
        for block in self.blocks:
            state = block(state, bias=self.bias(x), causal=True, training=training)
        return state["values"] * tf.cast(state["count"], tf.float64)


def transformer() -> Model:
    model = Transformer()
    model.build((None, 4))
    return model


def test_keywords_structures_and_numbers_without_gradients() -> None:
    compare(transformer, "blocks.*", inputs=TOKENS)


def test_masks_reach_recurrent_layers_and_loops_are_recomputed() -> None:
    def build() -> Model:
        inner = [layers.Embedding(6, 4, mask_zero=True), layers.GRU(4, dropout=0.3, seed=2, return_sequences=True)]
        outer = keras.Sequential(inner, name="outer")
        return keras.Sequential([keras.Input((4,), dtype="int32"), outer, layers.LSTM(3, dropout=0.2, seed=4)])

    compare(build, ["outer", layers.LSTM], inputs=TOKENS)


def test_losses_that_layers_add_keep_their_gradients() -> None:
    class Penalized(layers.Dense):
        def call(self, x: Any) -> Any:
            y = super().call(x)
            self.add_loss(0.1 * tf.reduce_sum(tf.square(y)))
            return y

    def build() -> Model:
        options = {"kernel_regularizer": "l2", "activity_regularizer": "l1"}
        inner = keras.Sequential([Penalized(4, **options), layers.Dense(4, activity_regularizer="l2")])
        return keras.Sequential([keras.Input((4,)), inner, Penalized(4, **options), layers.Dense(1)])

    compare(build, ["sequential*", "penalized*"])


def test_a_layer_may_be_called_twice() -> None:
    def build() -> Model:
        shared, inputs = Block(name="shared"), keras.Input((4,))
        return keras.Model(inputs, layers.Dense(1)(shared(shared(inputs))))

    compare(build, "shared")


def test_what_an_unused_output_depends_on_has_no_gradient() -> None:
    class Two(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__(name="two")
            self.used, self.unused = layers.Dense(4), layers.Dense(4)

        def build(self, shape: Any) -> None:
            self.used.build(shape)
            self.unused.build(shape)

        def call(self, x: Any) -> Any:
            self.add_loss(tf.reduce_mean(self.unused(x)))
            return self.used(x), self.unused(x)

    def build() -> Model:
        inputs = keras.Input((4,))
        return keras.Model(inputs, Two()(layers.Dense(4)(inputs)))

    compare(build, "two", loss=lambda both: tf.reduce_mean(both[0]), with_losses=False)


def test_sparse_and_missing_gradients_stay_so() -> None:
    class Cut(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__(name="cut")
            self.embedding, self.unused, self.stopped = layers.Embedding(9, 4), layers.Dense(4), layers.Dense(4)

        def build(self, shape: Any) -> None:
            self.embedding.build(shape)
            self.unused.build((None, 4))
            self.stopped.build((None, 4))

        def call(self, tokens: Any) -> Any:
            x = self.embedding(tokens)
            self.unused(x)
            return x + tf.stop_gradient(self.stopped(x))

    def build() -> Model:
        inputs = keras.Input((4,), dtype="int32")
        return keras.Model(inputs, layers.Dense(1)(Cut()(inputs)))

    model = compare(build, "cut", inputs=TOKENS)
    kinds: list[str] = []

    @tf.function(autograph=False)
    def look(x: Any) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x))
        gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
        kinds.extend(type(gradient).__name__ for gradient in gradients)

    look(TOKENS)
    assert kinds[:5] == ["IndexedSlices"] + ["NoneType"] * 4


def test_draws_without_a_generator_of_the_layers_own_are_repeated() -> None:
    class Noise(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return x * keras.random.uniform(tf.shape(x))

    compare(
        lambda: keras.Sequential([keras.Input((4,)), layers.Dense(4), Noise(name="noise"), layers.Dense(1)]), "noise"
    )


def test_mixed_precision_is_the_layers_own() -> None:
    def build() -> Model:
        blocks = [
            keras.Sequential([layers.Dense(4, dtype="mixed_bfloat16"), layers.Dropout(0.5, dtype="mixed_bfloat16")])
            for _ in range(2)
        ]
        return keras.Sequential([keras.Input((4,)), *blocks, layers.Dense(1, dtype="float32")])

    compare(build)


def test_frozen_layers() -> None:
    def build() -> Model:
        model = subclassed()
        model.blocks[1].trainable = False
        model.blocks[2].dense.trainable = False
        return model

    compare(build)


class Unrepeatable(keras.layers.Layer):
    def __init__(self, kind: str) -> None:
        super().__init__(name="unrepeatable")
        self.kind = kind
        self.calls = 0

    def build(self, shape: Any) -> None:
        self.weight = self.add_weight(shape=(4,), initializer="ones", name="weight")
        self.counter = tf.Variable(0, trainable=False)

    def call(self, x: Any) -> Any:
        if self.kind == "tensorflow's generator":
            return x * tf.random.uniform(tf.shape(x), dtype=x.dtype)
        if self.kind == "a loop with tensorflow's generator":
            return tf.while_loop(
                lambda x: tf.reduce_sum(x) < 0, lambda x: (x + tf.random.uniform((), dtype=x.dtype),), (x,)
            )[0]
        if self.kind == "numpy's generator":
            return x * np.random.rand(4)
        if self.kind == "a generator made in call":
            return keras.random.dropout(x, 0.5, seed=keras.random.SeedGenerator(1))
        if self.kind == "a trained weight":
            self.weight.assign(self.weight / 2)
            return x * self.weight
        if self.kind == "tensorflow's variable":
            self.counter.assign_add(1)
            return x * self.weight
        if self.kind == "other shapes":
            self.calls += 1
            return tf.tile(x, [1, 1 + self.calls % 2])[:, :4]
        raise AssertionError(self.kind)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("tensorflow's generator", "'unrepeatable' runs TensorFlow's RandomUniform .*keras.random.SeedGenerator"),
        ("a loop with tensorflow's generator", "'unrepeatable' runs TensorFlow's RandomUniform"),
        ("numpy's generator", "'unrepeatable' computes something else when it is called again .*random"),
        ("a generator made in call", "'unrepeatable' changes '.*seed_generator_state' in its forward pass.*build"),
        ("a trained weight", "'unrepeatable' changes '.*weight.*' in its forward pass"),
        ("tensorflow's variable", "'unrepeatable' runs TensorFlow's AssignAddVariableOp"),
        ("other shapes", "'unrepeatable' computes something else when it is called again"),
    ],
)
def test_what_cannot_be_repeated_is_refused(kind: str, message: str) -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4), Unrepeatable(kind)])
    CheckpointedLayer(model.layers[1], "unrepeatable")
    with pytest.raises(OptionError, match=message):
        result(model, calls=1)


def test_what_keras_recomputes_itself_is_refused() -> None:
    with keras.RematScope("full"):
        model = sequential()
    with pytest.raises(OptionError, match=r"made inside of keras.RematScope"):
        apply(model, Options(), strategy=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["operators", "offload"])
def test_options_of_torch_are_refused(option: str) -> None:
    with pytest.raises(OptionError, match=f"{option} is for PyTorch only"):
        apply(sequential(), Options(**{option: True}), strategy=None)  # type: ignore[arg-type]


def losses_of(model: Model, callbacks: Sequence[Any]) -> list[float]:
    with create_strategy("tf_local") as strategy:
        training = strategy.prepare(
            model,
            keras.optimizers.AdamW(0.01),
            lambda m, x: tf.reduce_mean(tf.square(m(x, training=True))),
            callbacks=callbacks,
        )
        data = np.random.RandomState(1).randn(24, 4).astype("float32")
        return [float(training.step(batch)) for batch in training.batches(data, 7, epochs=3)]


def test_a_loop_takes_the_callback() -> None:
    found = []
    for callbacks in ([], [GradientCheckpointing("block_*")]):
        keras.utils.set_random_seed(7)
        model = functional()
        found.append([losses_of(model, callbacks), [variable.numpy() for variable in model.weights]])
    same(*found)
    assert model.layers[1].traces == 2
    callbacks[0].unapply()
    assert "call" not in vars(model.layers[1])


def test_eager_steps_are_refused() -> None:
    tf.config.run_functions_eagerly(True)
    try:
        with pytest.raises(CallbackError, match="for compiled steps"):
            losses_of(sequential(), [GradientCheckpointing()])
    finally:
        tf.config.run_functions_eagerly(False)


def kept_in_a_step(model: Model) -> int:
    """Return the bytes that the backward pass of a compiled step takes from its forward pass, counted anew."""
    kept: dict[str, int] = {}

    def step(x: Any) -> None:
        graph = tf.compat.v1.get_default_graph()
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(model(x, training=True)))
        made = {operation.name for operation in graph.get_operations()}
        tape.gradient(loss, [variable.value for variable in model.trainable_variables])
        for operation in graph.get_operations():
            for tensor in operation.inputs if operation.name not in made else ():
                while tensor.op.type in ("Identity", "IdentityN", "Reshape"):
                    tensor = tensor.op.inputs[tensor.value_index]
                if tensor.op.name in made and tensor.op.type not in ("Const", "ReadVariableOp") and tensor.shape.rank:
                    kept[tensor.name] = tensor.shape.num_elements() * tensor.dtype.size

    tf.function(step, autograph=False).get_concrete_function(tf.TensorSpec((6, 4), tf.float64))
    return sum(kept.values())


@pytest.mark.parametrize("checkpointed", [0, 1, 3])
def test_a_step_keeps_what_was_predicted(checkpointed: int) -> None:
    model = subclassed()
    wrapped = [CheckpointedLayer(block, f"blocks.{number}") for number, block in enumerate(model.blocks)]
    measured = kept_of(model, wrapped, tf.TensorSpec((6, 4), tf.float64))
    for layer in wrapped[checkpointed:]:
        layer.active = False
    predicted = measured.other_bytes + sum(
        cost.input_bytes if layer.active else cost.activation_bytes
        for layer, cost in zip(wrapped, measured.costs, strict=True)
    )
    assert kept_in_a_step(model) == pytest.approx(predicted, rel=0.05)


def kept_of(model: Model, layers_of_it: Sequence[CheckpointedLayer], batch: Any) -> Any:
    measured = measure(
        model, layers_of_it, batch, lambda m, x: tf.reduce_sum(tf.square(m(x, training=True))), timed=True
    )
    return measured


def test_what_layers_keep_is_counted_in_the_graph() -> None:
    blocks = [keras.Sequential([layers.Dense(16, activation="tanh"), layers.Dense(4)]) for _ in range(3)]
    model = keras.Sequential([keras.Input((4,)), *blocks, layers.Dense(1)])
    wrapped = [CheckpointedLayer(block, block.name) for block in blocks]
    measured = kept_of(model, wrapped, tf.TensorSpec((6, 4), tf.float64))
    # The input (6, 4), and what tanh returns (6, 16), of which both derivatives are made.
    assert [cost.activation_bytes for cost in measured.costs] == [8 * 6 * (4 + 16)] * 3
    assert [cost.input_bytes for cost in measured.costs] == [8 * 6 * 4] * 3
    assert measured.other_bytes == measured.tail_bytes == 8 * 6 * (4 + 1)  # the last layer's input, the square's
    assert all(cost.seconds > 0 for cost in measured.costs)


def test_a_budget_is_planned_before_the_first_step_and_again_for_larger_batches() -> None:
    checkpointing = GradientCheckpointing("blocks.*", budget=0.7)
    model = subclassed()
    with create_strategy("tf_local") as strategy:
        training = strategy.prepare(
            model,
            keras.optimizers.SGD(0.01),
            lambda m, x: tf.reduce_mean(tf.square(m(x, training=True))),
            callbacks=[checkpointing],
        )
        data = np.random.RandomState(1).randn(24, 4).astype("float32")
        bytes_of = []
        for size in (6, 4, 12):
            for batch in training.batches(data, size):
                training.step(batch)
            bytes_of.append(checkpointing.plan.without_bytes)
    plan = checkpointing.plan
    assert bytes_of[0] == bytes_of[1] and 1.8 * bytes_of[0] < bytes_of[2] <= 2 * bytes_of[0]
    assert 0 < len(plan.layers) < 3 and plan.predicted_bytes <= 0.7 * plan.without_bytes
    traces = {f"blocks.{number}": block.traces - (number == 0) for number, block in enumerate(model.blocks)}  # timed
    (kept,) = {traces[name] for name in traces if name not in plan.layers}
    assert {traces[name] for name in plan.layers} == {kept + 2}, "recomputed in both compiled steps"


def test_a_budget_below_the_floor_says_the_floor() -> None:
    with pytest.raises(OptionError, match=r"budget=10 is 10 bytes .* give at least"):
        losses_of(subclassed(), [GradientCheckpointing("blocks.*", budget=10)])


def test_a_plan_trains_nothing() -> None:
    keras.utils.set_random_seed(7)
    model = subclassed()
    before = [variable.numpy() for variable in model.variables]
    found = plan(model, X, lambda m, x: tf.reduce_mean(m(x, training=True)), "blocks.*", budget=0.7)
    assert len(found.costs) == 3 and 0 < len(found.layers) < 3
    assert "blocks.0" in str(found)
    same(before, [variable.numpy() for variable in model.variables])
    assert not any("call" in vars(block) for block in model.blocks)
    model.compile("sgd", "mse")
    assert plan(model, (X, X[:, :1]), layers="blocks.*").without_bytes >= found.without_bytes
