"""Tell Lightning a worker's rank and world size, under launchers that it knows and that it does not know."""

from __future__ import annotations

import os
import signal
from typing import Any

from ...adapters import Launch, LauncherError, Worker, detect_launch
from .package import fabric_part

_environments = fabric_part("plugins.environments")
_OWN_STARTS = (_environments.LightningEnvironment, _environments.TorchElasticEnvironment, _environments.MPIEnvironment)


class LauncherEnvironment(_environments.ClusterEnvironment):  # type: ignore[misc, name-defined]
    """Workers started by a launcher: horovodrun, deepspeed, torchrun, Open MPI, TF_CONFIG or plain variables."""

    def __init__(self, launch: Launch | None = None) -> None:
        super().__init__()
        self.launch = launch or detect_launch()

    @staticmethod
    def detect() -> bool:
        """Whether a launcher started this process."""
        return not _is_started_by_lightning() and detect_launch().launcher != "none"

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self.launch.address[0] if self.launch.address else "127.0.0.1"

    @property
    def main_port(self) -> int:
        return self.launch.address[1] if self.launch.address else 0

    def world_size(self) -> int:
        return self.launch.worker.world_size

    def set_world_size(self, size: int) -> None:
        """Keep the launcher's number."""

    def global_rank(self) -> int:
        return self.launch.worker.rank

    def set_global_rank(self, rank: int) -> None:
        """Keep the launcher's number."""

    def local_rank(self) -> int:
        return self.launch.worker.local_rank

    def node_rank(self) -> int:
        return self.launch.worker.node_rank


class SlurmEnvironment(LauncherEnvironment, _environments.SLURMEnvironment):  # type: ignore[misc, name-defined]
    """The tasks of a Slurm step, for any options of srun. Lightning requeues the job as usual."""

    def __init__(self, launch: Launch, auto_requeue: bool = True, requeue_signal: Any = signal.SIGUSR1) -> None:
        # Not Lightning's constructor, which refuses `srun -n 2`.
        self.launch = launch
        self.auto_requeue = auto_requeue
        self.requeue_signal = requeue_signal

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Accept them: they were compared with the launcher's."""


def resolve(environment: Any) -> Any:
    """Return the environment to use instead of `environment`, which Lightning or its user chose.

    If Lightning does not know the launcher, it takes this process for one that must start workers. The user's own
    environment is kept.
    """
    scheduled = type(environment) is _environments.SLURMEnvironment
    if (scheduled or type(environment) in _OWN_STARTS) and LauncherEnvironment.detect():
        launch = detect_launch()
        if launch.launcher != "slurm":
            return LauncherEnvironment(launch)
        if scheduled:
            return SlurmEnvironment(launch, environment.auto_requeue, environment.requeue_signal)
    return environment


def in_place_of_refused() -> LauncherEnvironment | None:
    """Return our environment if Lightning's own for Slurm would refuse srun's options, else `None`.

    `srun -n 2` does not set SLURM_NTASKS_PER_NODE, the only number that Lightning reads.
    """
    accepted = "SLURM_NTASKS_PER_NODE" in os.environ or os.environ.get("SLURM_NTASKS", "1") == "1"
    if accepted or _environments.TorchElasticEnvironment.detect() or not _environments.SLURMEnvironment.detect():
        return None
    launch = detect_launch()
    return SlurmEnvironment(launch) if launch.launcher == "slurm" else LauncherEnvironment(launch)


def launch_of(environment: Any, local_world_size: int) -> Launch:
    """Describe this worker to an engine by Lightning's environment.

    Raises:
        LauncherError: a variable of another job keeps Lightning from starting workers.
    """
    if isinstance(environment, LauncherEnvironment):
        return environment.launch
    worker = Worker(
        environment.global_rank(),
        environment.world_size(),
        environment.local_rank(),
        local_world_size,
        environment.node_rank(),
    )
    incomplete = isinstance(environment, _environments.LightningEnvironment) and "MASTER_PORT" not in os.environ
    if worker.world_size > 1 and environment.creates_processes_externally and incomplete:
        raise LauncherError(
            f"LOCAL_RANK={worker.local_rank} is set, so Lightning starts no workers, but no MASTER_ADDR and "
            "MASTER_PORT say where to meet another launcher's workers: unset LOCAL_RANK, or set all of them"
        )
    address = (environment.main_address, environment.main_port) if worker.world_size > 1 else None
    return Launch("lightning", worker, address)


def devices_here(
    environment: Any, devices: list[Any], automatic: int, available: list[Any], frontend: str
) -> list[Any]:
    """Return the devices of this machine's workers: those that the user chose, if the launcher agrees.

    Args:
        devices: the frontend's list for `devices=`.
        automatic: how many `devices="auto"` would give; this number does not count as the user's choice.
        available: the devices that "auto" would give.
        frontend: "Trainer" or "Fabric".

    Raises:
        LauncherError: the user's number is not the launcher's.
    """
    if not isinstance(environment, LauncherEnvironment):
        return devices
    launch = environment.launch
    started = launch.worker.local_world_size
    if len(devices) == started:
        return devices
    if len(devices) == automatic:
        if available[0].type == "cpu" or len(available) == 1:  # the launcher may show each worker its own GPU only
            return available[:1] * started
        if len(available) >= started:
            return available[:started]
    raise LauncherError(
        f"{frontend}(devices={len(devices)}), but {launch.launcher} started {started} worker(s) on this machine: leave "
        "devices out, or have the launcher start as many"
    )


def check_nodes(environment: Any, num_nodes: int, frontend: str) -> None:
    """Compare the number of machines with the launcher's; 1, the default, does not count as the user's choice.

    Raises:
        LauncherError: they differ.
    """
    if not isinstance(environment, LauncherEnvironment) or num_nodes == 1:
        return
    worker = environment.launch.worker
    nodes = -(-worker.world_size // worker.local_world_size)
    if nodes != num_nodes:
        raise LauncherError(
            f"{frontend}(num_nodes={num_nodes}), but {environment.launch.launcher} started {worker.world_size} "
            f"worker(s) on {nodes} machine(s): leave num_nodes out, or have the launcher start as many"
        )


def _is_started_by_lightning() -> bool:
    """Whether Lightning started or will start this worker: it sets LOCAL_RANK, and no global rank."""
    return "LOCAL_RANK" in os.environ and not any(
        name in os.environ for name in ("RANK", "HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID", "TF_CONFIG")
    )
