"""TensorFlow's MultiWorkerMirroredStrategy (https://www.tensorflow.org/guide/distributed_training)."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import tensorflow as tf

from ... import entry
from ...capabilities import Capabilities
from ...errors import LauncherError, OptionError, StrategyStateError
from ...launch.tf_config import START_DEADLINE_VARIABLE, read_tf_config
from ...roll_call import Address, Lines, roll_call
from ..cluster import cluster_addresses, tf_config
from ..compat import OptimizerView, cluster_jobs, coordinated_jobs, coordination_leader, eager_context
from ..config_store import TASK_IS_GONE, ConfigStore
from ..strategy import TensorFlowStrategy

_START_DEADLINE = 60.0
# ms without a heartbeat after which TensorFlow takes a worker for lost. A slow worker on a busy machine must have time,
# and one that was killed before a collective must be found within 15 s.
_HEARTBEAT = 12_000

# Texts of errors of collectives, of calls between tasks and to the coordination service, and of `ConfigStore`. Other
# errors have the same types, and some come from sockets too: a file system in the cloud, for example.
_LOST = ("Collective ops is aborted", "GRPC error information from remote target /job:worker/", TASK_IS_GONE)

_IMPLEMENTATIONS = {
    "auto": tf.distribute.experimental.CommunicationImplementation.AUTO,
    "ring": tf.distribute.experimental.CommunicationImplementation.RING,
    "nccl": tf.distribute.experimental.CommunicationImplementation.NCCL,
}


@dataclass(frozen=True)
class _Cluster:
    """The cluster that this process joined; without addresses if it is the only worker."""

    addresses: tuple[Address, ...]
    strategy: tf.distribute.Strategy
    store: ConfigStore


def cluster_store() -> ConfigStore | None:
    """Return the store of the TensorFlow cluster that this process joined; `None` if it joined none."""
    cluster = MultiWorkerStrategy._cluster
    return cluster.store if cluster is not None and cluster.addresses else None


class MultiWorkerStrategy(TensorFlowStrategy):
    """Every worker has the whole model, and TensorFlow averages gradients inside the compiled step.

    Try it first for Keras models: it needs only TensorFlow. Create and enter it before any operation of TensorFlow.

    Args:
        communication: "ring" (gRPC), "nccl" (GPUs), or "auto", which chooses by the devices.
        bytes_per_pack: gradients are added up in packs of about this many bytes; 0 lets TensorFlow choose.
        start_deadline: seconds that all workers have to join; by default 60, or FARANDOLE_START_DEADLINE.

    Raises:
        StrategyStateError: on entering, if a TensorFlow operation ran before: the cluster must be known by then.
        LauncherError: on entering, if a worker does not come, or has another cluster.
    """

    capabilities = Capabilities("tensorflow", accelerators=frozenset({"cpu", "cuda"}))
    steps_in_control_flow = False  # its updates use `merge_call`, which TensorFlow refuses there

    # TensorFlow joins one cluster per process; later strategies use the first one's.
    _cluster: ClassVar[_Cluster | None] = None

    def __init__(
        self,
        communication: Literal["auto", "ring", "nccl"] = "auto",
        bytes_per_pack: int = 0,
        start_deadline: float | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__(device)
        if communication not in _IMPLEMENTATIONS:
            raise OptionError(f"communication={communication!r} must be one of {', '.join(_IMPLEMENTATIONS)}")
        if bytes_per_pack < 0:
            raise OptionError(f"bytes_per_pack={bytes_per_pack} must not be negative")
        self._options = tf.distribute.experimental.CommunicationOptions(
            bytes_per_pack=bytes_per_pack, implementation=_IMPLEMENTATIONS[communication]
        )
        self._start_deadline = _deadline(start_deadline)
        self._variables = contextlib.ExitStack()

    @property
    def tf_strategy(self) -> tf.distribute.Strategy:
        """TensorFlow's MultiWorkerMirroredStrategy."""
        return self._tf_strategy

    def run(self, replica_step: Callable[..., Any], args: Sequence[Any] = ()) -> Any:
        # Inside a strategy Keras divides losses by the number of replicas; one replica keeps the mean.
        with self._tf_strategy.as_one_replica():
            return self._tf_strategy.run(replica_step, args=tuple(args))

    def sum_in_graph(self, tensors: Sequence[Any], name: str) -> list[Any]:
        replica = tf.distribute.get_replica_context()
        summed: list[Any] = [None] * len(tensors)
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
            own = [tensors[place] for place in places]
            for place, total in zip(
                places, replica.all_reduce(tf.distribute.ReduceOp.SUM, own, self._options), strict=True
            ):
                summed[place] = total
        return summed

    def gather_in_graph(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        return tf.distribute.get_replica_context().all_gather(tensor, axis=0)

    def owns(self, variable: Any) -> bool:
        return bool(self._tf_strategy.extended.variable_created_in_scope(variable))

    def prepare_optimizer(self, optimizer: Any) -> None:
        # Our step has reduced the gradients before clipping; Keras would reduce them again.
        for part in (optimizer, getattr(optimizer, "inner_optimizer", None)):
            if part is None:
                continue
            OptimizerView(part).all_reduce_sum = list
            if part.use_ema and part.ema_overwrite_frequency:
                raise OptionError(
                    "the optimizer overwrites weights with their moving average (ema_overwrite_frequency), which "
                    f"TensorFlow cannot do inside {self.name!r}: leave it out, and call "
                    "optimizer.finalize_variable_values(model.trainable_variables) after training"
                )

    def _lost_a_worker(self, error: BaseException) -> bool:
        return isinstance(error, tf.errors.OpError) and any(words in str(error) for words in _LOST)

    def _refuse_late(self) -> None:
        if self._addresses and self._cluster is None:
            raise self._too_late()

    def _join(self) -> None:
        if self._cluster is None:
            self._addresses = cluster_addresses(self.launch, self._start_deadline)
        else:
            self._addresses = self._cluster.addresses
            self._refuse_other_cluster()
        super()._join()
        if self._addresses:
            config = os.environ.get("TF_CONFIG") or tf_config(self.launch, self._addresses)
            self._variables.enter_context(entry.environment(TF_CONFIG=config))
        if self._cluster is None:
            MultiWorkerStrategy._cluster = self._meet(self._addresses)
        assert self._cluster is not None
        self._tf_strategy, self._store = self._cluster.strategy, self._cluster.store

    def _leave(self, failed: bool) -> None:
        self._variables.close()
        super()._leave(failed)

    def _refuse_other_cluster(self) -> None:
        given = read_tf_config(os.environ)
        same = given is None or given.addresses == self._addresses
        if not same or self.worker.world_size != max(1, len(self._addresses)):
            joined = ", ".join(f"{host}:{port}" for host, port in self._addresses) or "one worker"
            raise StrategyStateError(
                f"this process joined TensorFlow's cluster of {joined}, and TensorFlow joins one per process: "
                f"enter strategy {self.name!r} for another cluster in a new process"
            )

    def _meet(self, addresses: tuple[Address, ...]) -> _Cluster:
        worker = self.worker
        jobs: list[tuple[str, int]] = []
        lines: Lines = {}
        if addresses:
            roll_call(addresses, worker.rank, None, self._start_deadline, lines)
            jobs = _configure_heartbeat()
        try:
            strategy = _Mirrored(communication_options=self._options)
        except tf.errors.OpError as error:
            raise LauncherError(
                f"worker {worker.rank} cannot join TensorFlow's cluster of {len(addresses)} workers at "
                f"{', '.join(f'{host}:{port}' for host, port in addresses)}: {error.message.splitlines()[0]}"
            ) from error
        _take_sigterm_back()
        found = strategy.num_replicas_in_sync
        if found != worker.world_size:
            raise LauncherError(
                f"TensorFlow counts {found} replicas, but {self.launch.launcher} started {worker.world_size} workers: "
                "start a worker for each GPU"
            )
        return _Cluster(addresses, strategy, ConfigStore(worker, jobs, lines))

    def _gather(self, value: Any) -> list[Any]:
        return self._store.gather(value)

    def _broadcast(self, value: Any, root: int) -> Any:
        return self._store.broadcast(value, root)

    def _barrier(self) -> None:
        self._store.gather(None)


def _take_sigterm_back() -> None:
    """Restore the handler of SIGTERM: TensorFlow's preemption notifier replaces it, and the process would not end.

    Source: tsl/distributed_runtime/preemption/preemption_notifier.cc.
    """
    before = signal.getsignal(signal.SIGTERM)  # Python's own record, which TensorFlow does not change
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


class _Mirrored(tf.distribute.MultiWorkerMirroredStrategy):  # type: ignore[misc]
    """TensorFlow's strategy, whose number of replicas can be hidden from Keras in our step."""

    _alone = False

    @property
    def num_replicas_in_sync(self) -> int:
        return 1 if self._alone else int(super().num_replicas_in_sync)

    @contextlib.contextmanager
    def as_one_replica(self) -> Iterator[None]:
        """Report one replica to the code that is traced inside."""
        before, self._alone = self._alone, True
        try:
            yield
        finally:
            self._alone = before


def _configure_heartbeat() -> list[tuple[str, int]]:
    """Limit how long a stopped worker goes unnoticed; return the cluster's jobs, each with its number of tasks.

    Call it before creating the strategy, which keeps an existing configuration of this service.
    """
    cluster = tf.distribute.cluster_resolver.TFConfigClusterResolver().cluster_spec()
    jobs = cluster_jobs(cluster)
    eager_context().configure_coordination(
        service_type="standalone",
        service_leader=coordination_leader(cluster),
        heartbeat_timeout_in_ms=_HEARTBEAT,
        coordinated_jobs=coordinated_jobs(jobs),
    )
    return jobs


def _deadline(given: float | None) -> float:
    text = os.environ.get(START_DEADLINE_VARIABLE, "").strip()
    try:
        seconds = float(text) if given is None and text else _START_DEADLINE if given is None else float(given)
    except (TypeError, ValueError):
        seconds = -1.0
    if not seconds > 0:
        said = f"start_deadline={given!r}" if given is not None else f"{START_DEADLINE_VARIABLE}={text!r}"
        raise OptionError(f"{said} must be a positive number of seconds")
    return seconds
