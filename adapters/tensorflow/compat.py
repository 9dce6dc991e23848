"""Undocumented names of TensorFlow and Keras that the engines use, and the versions known to have them.

Files are those of TensorFlow 2.21, below `tensorflow/python/`, and of Keras 3.15, below `keras/src/`. Other names that
`fit` needs are in the plugin's `compat`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from ..undocumented import Library, Method, Name, View

TENSORFLOW = Library("TensorFlow", "tensorflow", ("2.21.0",), "pip install tensorflow==2.21.0")
KERAS = Library("Keras", "keras", ("3.15.1",), "pip install keras==3.15.1")


class EagerContext(View):
    """`Context` (eager/context.py), one for each process, with its client of the coordination service."""

    library = TENSORFLOW
    is_initialized = Name("_initialized")
    seed = Name("_seed")
    configure_coordination = Method("configure_coordination_service")
    set_key = Method("set_config_key_value")
    get_key = Method("get_config_key_value")
    delete_key = Method("delete_config_key_value")
    task_states = Method("get_task_states")


class Stage(View):
    """A `tf.data.Dataset` (data/ops/dataset_ops.py)."""

    library = TENSORFLOW
    inputs = Method("_inputs")


class Autograph(View):
    """The module `tf.__internal__.autograph` (autograph/__init__.py)."""

    library = TENSORFLOW
    status = Name("control_status_ctx")
    convert = Name("tf_convert")


class ModelView(View):
    """`keras.Model` (layers/layer.py)."""

    library = KERAS
    flat_layers = Method("_flatten_layers")
    seed_generators = Name("_seed_generators")


class OperationView(View):
    """`keras.Operation` (ops/operation.py), the base of layers: the `keras.RematScope` in which it was made."""

    library = KERAS
    remat_mode = Name("_remat_mode")


class VariableView(View):
    """`keras.Variable` (backend/common/variables.py).

    value: TensorFlow's variable, whatever scope is open; `None` if Keras has not made it yet.
    """

    library = KERAS
    value = Name("_value")


class GraphView(View):
    """`tf.Graph` (framework/ops.py): the functions that its operations call, by name."""

    library = TENSORFLOW
    function = Method("_get_function")


class OptimizerView(View):
    """`keras.optimizers.Optimizer` (optimizers/base_optimizer.py, backend/tensorflow/optimizer.py)."""

    library = KERAS
    trainable_variables = Name("_trainable_variables")
    all_reduce_sum = Method("_all_reduce_sum_gradients")


_MASKS = "keras.src.backend.common.masking"
_GET_MASK, _SET_MASK = (_MASKS, "get_keras_mask"), (_MASKS, "set_keras_mask")
_STATELESS = ("keras.src.backend.common.stateless_scope", "in_stateless_scope")
_BATCH_SIZE = "_batch_size"
_SEEDS = ("_seed", "_seed2")
_RESHUFFLES = "_reshuffle_each_iteration"


def check() -> None:
    """Check what all engines need; it creates nothing, so that devices can still be chosen.

    Raises:
        EngineUnavailableError: the installed TensorFlow or Keras lacks it.
    """
    EagerContext.check_class(TENSORFLOW.load("tensorflow.python.eager.context", "Context"))
    autograph()
    Stage.check_class(tf.data.Dataset)
    for module, stage, names in (
        ("batch_op", "_BatchDataset", (_BATCH_SIZE,)),
        ("batch_op", "_ParallelBatchDataset", (_BATCH_SIZE,)),
        ("shuffle_op", "_ShuffleDataset", (*_SEEDS, _RESHUFFLES)),
    ):
        made = TENSORFLOW.load(f"tensorflow.python.data.ops.{module}", stage)
        for name in names:
            if name not in inspect.unwrap(made.__init__).__code__.co_names:
                raise TENSORFLOW.lacks(f"{stage}.{name}")
    ModelView.check_class(keras.Model)
    OptimizerView.check_class(keras.optimizers.Optimizer)
    GraphView.check_class(tf.Graph)
    for module, name in (_GET_MASK, _SET_MASK, _STATELESS):
        KERAS.load(module, name)


def eager_context() -> EagerContext:
    return EagerContext(TENSORFLOW.load("tensorflow.python.eager.context", "context")())


def autograph() -> Autograph:
    return Autograph(TENSORFLOW.get(TENSORFLOW.get(tf, "__internal__"), "autograph"))


def in_stateless_scope() -> bool:
    """Whether a `keras.StatelessScope` is open, so that variables' values are the scope's."""
    return bool(KERAS.load(*_STATELESS)())


def mask_of(tensor: Any) -> Any:
    """Return a tensor's Keras mask; `None` if it has none."""
    return KERAS.load(*_GET_MASK)(tensor)


def set_mask(tensor: Any, mask: Any) -> None:
    """Give a tensor a Keras mask."""
    KERAS.load(*_SET_MASK)(tensor, mask)


def called_graph(graph: tf.Graph, function: str) -> tf.Graph:
    """Return the graph of a function that an operation of `graph` calls, for example a loop's body."""
    called: tf.Graph = TENSORFLOW.get(GraphView(graph).function(function), "graph")
    return called


def cluster_jobs(spec: tf.train.ClusterSpec) -> list[tuple[str, int]]:
    """Return the cluster's jobs of workers, as in the coordination service, each with its number of tasks."""
    cluster = _of_clusters("normalize_cluster_spec")(spec)
    return [(job, cluster.num_tasks(job)) for job in ("chief", "worker") if job in cluster.jobs]


def coordination_leader(spec: tf.train.ClusterSpec) -> str:
    """Return the task that runs the coordination service (distribute/multi_worker_util.py)."""
    leader: str = _of_clusters("coordination_leader")(_of_clusters("normalize_cluster_spec")(spec))
    return leader


def coordinated_jobs(jobs: Sequence[tuple[str, int]]) -> list[Any]:
    """Return jobs in the coordination service's format."""
    made = TENSORFLOW.load("tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2", "CoordinatedJob")
    return [made(name=name, num_tasks=count) for name, count in jobs]


def _of_clusters(name: str) -> Any:
    return TENSORFLOW.load("tensorflow.python.distribute.multi_worker_util", name)


def batch_size_of(stage: tf.data.Dataset) -> int | None:
    """Return the batch size of this stage of a dataset; `None` if it does not batch."""
    batches = "Batch" in type(stage).__name__ and hasattr(stage, _BATCH_SIZE)
    return int(getattr(stage, _BATCH_SIZE)) if batches else None


def shuffles_without_seed(stage: tf.data.Dataset) -> bool:
    """Whether this stage of a dataset shuffles in another order in each process."""
    if "Shuffle" not in type(stage).__name__ or not hasattr(stage, _SEEDS[0]):
        return False
    return not any(getattr(stage, name) for name in _SEEDS)


def reshuffles(stage: tf.data.Dataset) -> bool:
    """Whether this stage of a dataset shuffles again in each iteration."""
    return bool(getattr(stage, _RESHUFFLES, False))
