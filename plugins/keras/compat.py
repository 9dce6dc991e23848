"""Undocumented names of Keras that `fit` uses; those that the engines use are in `adapters.tensorflow.compat`.

Files are those of Keras 3.15, below `keras/src/`.
"""

from __future__ import annotations

import keras

from ...adapters.tensorflow.compat import KERAS
from ...adapters.undocumented import Method, Name, View


class FitModel(View):
    """`keras.Model` on TensorFlow (backend/tensorflow/trainer.py, trainers/trainer.py).

    distribution: used as its `tf.distribute.Strategy`.
    compiled_loss: the losses given to `compile`; `None` if there were none.
    """

    library = KERAS
    distribution = Name("_distribute_strategy")
    compiled_loss = Name("_compile_loss")
    make_function = Method("_make_function")
    open_optionals = Method("_autoconvert_optionals")
    build = Method("_symbolic_build")
    build_if_needed = Method("_maybe_symbolic_build")


class CompiledLoss(View):
    """`CompileLoss` (trainers/compile_utils.py)."""

    library = KERAS
    losses = Name("_flat_losses")


class EpochIterator(View):
    """`TFEpochIterator` (backend/tensorflow/trainer.py)."""

    library = KERAS
    dataset = Name("_distributed_dataset")
    num_batches = Name("num_batches")


class ScheduledOptimizer(View):
    """`keras.optimizers.Optimizer` (optimizers/base_optimizer.py)."""

    library = KERAS
    learning_rate = Name("_learning_rate")  # a number's variable, or the schedule itself


def check() -> None:
    """Check what the class of models has.

    Raises:
        EngineUnavailableError: the installed Keras lacks it.
    """
    if keras.backend.backend() == "tensorflow":  # with others, `distribute` cannot be used
        FitModel.check_class(keras.Model)
