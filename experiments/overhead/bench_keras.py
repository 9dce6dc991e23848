"""One worker of `overhead` on a TensorFlow engine: our step and the raw one, interleaved in one job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...adapters import Batch, create_strategy
from .models_keras import build_data, build_model, build_optimizer, check_same, loss_fn
from .pairs import BATCHES, time_pairs
from .raw_keras import RAW
from .shapes import SHAPES


def bench(strategy_name: str, model_name: str, pairs: int, options: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the seconds that each pair's two steps took on this worker: `{"ours": [...], "raw": [...]}`.

    Raises:
        RuntimeError: the two sides did not train the same model, so their times cannot be compared.
    """
    shape = SHAPES[model_name]
    strategy: Any = create_strategy(strategy_name, **options)
    with strategy, strategy.scope():
        global_batch_size = shape.batch * strategy.worker.world_size
        our_model, raw_model = build_model(shape), build_model(shape)
        training = strategy.prepare(our_model, build_optimizer(), loss_fn)
        data = build_data(shape, BATCHES, strategy.worker.world_size)
        batches = list(training.batches(data, global_batch_size))
        # TensorFlow joins one cluster per process: both sides are in it.
        raw_step = RAW[strategy_name](raw_model, strategy.tf_strategy, global_batch_size)

        def ours(batch: Batch) -> None:
            training.step(batch)

        def raw(batch: Batch) -> None:
            raw_step(*batch.micro[0])

        seconds = time_pairs({"ours": ours, "raw": raw}, batches, pairs)
        check_same(our_model, raw_model)
    return seconds
