"""For users of `model.fit`: a compiled Keras 3 model on any TensorFlow strategy.

from farandole.adapters import create_strategy
from farandole.plugins.keras import distribute

with create_strategy("tf_multiworker") as strategy:
    with strategy.scope():
        model = build_model()
        model.compile("adam", "mse", metrics=["mae"])
    distribute(model, strategy)
    model.fit(x, y, batch_size=64, epochs=3, validation_data=(x_test, y_test))
"""

from ..gradient_checkpointing import GradientCheckpointing
from ..metrics import WorkerMetrics
from .callbacks import BroadcastInitialState, LearningRateWarmup, MetricAverage
from .compat import check
from .distribute import distribute

check()

__all__ = [
    "BroadcastInitialState",
    "GradientCheckpointing",
    "LearningRateWarmup",
    "MetricAverage",
    "WorkerMetrics",
    "distribute",
]
