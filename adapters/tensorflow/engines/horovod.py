"""Horovod for TensorFlow (https://arxiv.org/abs/1802.05799)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import tensorflow as tf

from ...capabilities import Capabilities
from ...errors import OptionError
from ...horovod.compat import check, internal_error
from ...horovod.job import HorovodJob
from ...horovod.library import accelerators, import_horovod, require_nccl
from ...lost_worker import horovod_lost_a_peer
from ...roll_call import roll_call
from ..cluster import cluster_addresses
from ..strategy import TensorFlowStrategy
from .multiworker import cluster_store

hvd = import_horovod("tensorflow", "TensorFlow", tf.__version__)
check()

_COMPRESSIONS = ("none", "fp16")
_START_DEADLINE = 60.0  # seconds, under launchers other than horovodrun


class TensorFlowHorovodStrategy(TensorFlowStrategy):
    """Every worker has the whole model, and a Horovod thread averages gradients while the compiled step runs.

    Use it if your cluster runs Horovod or MPI already. Horovod is compiled against the installed TensorFlow:
    `farandole horovod install`.

    Args:
        compression: "fp16" halves the traffic, lossily.
    """

    def __init__(self, compression: Literal["none", "fp16"] = "none", device: str | None = None) -> None:
        super().__init__(device)
        if compression not in _COMPRESSIONS:
            raise OptionError(f"compression={compression!r} must be one of {', '.join(_COMPRESSIONS)}")
        if device == "cuda":
            require_nccl(hvd)
        self._job = HorovodJob(hvd, self.launch)
        self._compression = hvd.Compression.fp16 if compression == "fp16" else hvd.Compression.none
        self.capabilities = Capabilities(
            "tensorflow",
            accelerators=accelerators(hvd),
            # Elastic Horovod lets survivors continue in their processes (horovod/common/elastic.py).
            survives_failure=True,
            exact=compression == "none",
        )

    def sum_in_graph(self, tensors: Sequence[Any], name: str) -> list[Any]:
        # Our own names: Horovod's follow the graph's, which differ if the model differs by rank.
        return [
            hvd.allreduce(
                self._computed(tensor),
                op=hvd.Sum,
                name=f"farandole.{name}.{number}",
                compression=self._compression if name != "eager" else hvd.Compression.none,
                ignore_name_scope=True,
            )
            for number, tensor in enumerate(tensors)
        ]

    def gather_in_graph(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        return hvd.allgather(self._computed(tensor), name=f"farandole.{name}", ignore_name_scope=True)

    def _join(self) -> None:
        super()._join()
        self._job.join(self._broadcast_address, self._barrier)
        self._zero = tf.Variable(0.0, trainable=False)

    def _lost_a_worker(self, error: BaseException) -> bool:
        # TensorFlow reports the errors of Horovod's operations as unknown or aborted.
        kinds = (internal_error(), tf.errors.UnknownError, tf.errors.AbortedError)
        return isinstance(error, kinds) and horovod_lost_a_peer(str(error))

    def _computed(self, tensor: Any) -> Any:
        """Return the tensor as one that is computed in each step.

        TensorFlow folds constants: it would run Horovod's operation on a constant once, while it optimizes the graph.
        Other workers, on which it is not constant, would wait for it in each step.
        """
        if not isinstance(tensor, tf.Tensor) or not (tensor.dtype.is_floating or tensor.dtype.is_integer):
            return tensor
        return tensor if tf.get_static_value(tensor) is None else tensor + tf.cast(self._zero, tensor.dtype)

    def _broadcast_address(self, address: str | None) -> str:
        """Give all workers rank 0's address."""
        cluster = cluster_store()
        if cluster is not None:  # TensorFlow's servers listen at the cluster's addresses
            return str(cluster.broadcast(address, 0))
        addresses = cluster_addresses(self.launch, _START_DEADLINE)
        return str(roll_call(addresses, self.worker.rank, address, _START_DEADLINE)[0])

    def _leave(self, failed: bool) -> None:
        super()._leave(failed)
        self._job.leave(failed)

    def _gather(self, value: Any) -> list[Any]:
        return self._job.gather(value)

    def _broadcast(self, value: Any, root: int) -> Any:
        return self._job.broadcast(value, root)

    def _barrier(self) -> None:
        hvd.allgather_object(None, name="farandole.barrier")
