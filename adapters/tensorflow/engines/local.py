"""Plain TensorFlow in one process: the reference for the other TensorFlow engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from ...capabilities import Capabilities
from ...errors import LauncherError
from ..strategy import TensorFlowStrategy


class TensorFlowLocalStrategy(TensorFlowStrategy):
    """Plain TensorFlow in one process, without an engine: the reference for its other strategies.

    Use it to write and debug a program, and if one process is enough. Several workers are refused.

    Raises:
        LauncherError: a launcher started several workers, and each would train on all data.
    """

    capabilities = Capabilities("tensorflow", accelerators=frozenset({"cpu", "cuda"}))

    def __init__(self, device: str | None = None) -> None:
        super().__init__(device)
        if self.worker.world_size > 1:
            raise LauncherError(
                f"strategy 'tf_local' is one process, but {self.launch.launcher} started {self.worker.world_size} "
                "workers: choose another strategy, for example 'tf_multiworker', or start one worker"
            )

    def sum_in_graph(self, tensors: Sequence[Any], name: str) -> list[Any]:
        return list(tensors)

    def gather_in_graph(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        return tensor

    def _gather(self, value: Any) -> list[Any]:
        return [value]

    def _broadcast(self, value: Any, root: int) -> Any:
        return value

    def _barrier(self) -> None:
        pass
