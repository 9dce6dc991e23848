"""How a worker joins Horovod's job, exchanges objects in it, and leaves it: the same for both frameworks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import entry
from ..errors import EngineUnavailableError
from ..launch.variables import Launch
from .mpi import do_not_wait_at_exit
from .rendezvous import BroadcastAddress, described_job


class HorovodJob:
    """A strategy's part in Horovod's job.

    Args:
        hvd: Horovod's module for the strategy's framework.
        launch: the launcher's description of this process.
    """

    def __init__(self, hvd: Any, launch: Launch) -> None:
        self._hvd = hvd
        self._launch = launch
        self._joined = False

    def join(self, broadcast: BroadcastAddress, barrier: Callable[[], None]) -> None:
        """Initialize Horovod; all workers call it.

        Args:
            broadcast: see `described_job`.
            barrier: Horovod's for this framework.

        Raises:
            EngineUnavailableError: mpirun started this worker, and Horovod was built without MPI; or Horovod counts
                workers otherwise than the launcher.
        """
        launcher, worker = self._launch.launcher, self._launch.worker
        if launcher == "openmpi" and not self._hvd.mpi_built():
            raise EngineUnavailableError(
                "mpirun started this worker, but this Horovod was built without MPI. Start with horovodrun, or "
                "install an MPI compiler (apt-get install libopenmpi-dev) and run: farandole horovod install --force"
            )
        with described_job(self._launch, broadcast, self._hvd.gloo_built()):
            self._hvd.init()
            self._joined = True
            found = (self._hvd.rank(), self._hvd.size())
            if found != (worker.rank, worker.world_size):
                self._hvd.shutdown()
                raise EngineUnavailableError(
                    f"{launcher} started worker {worker.rank} of {worker.world_size}, but Horovod counts worker "
                    f"{found[0]} of {found[1]}: start the job with horovodrun or `farandole run`"
                )
            barrier()

    def leave(self, failed: bool) -> None:
        """Shut Horovod down, unless this worker has not joined.

        After a failure that waits until the next strategy is entered, or this process ends: it would end the
        collectives that other workers are in.
        """
        if self._joined and failed:
            entry.close_later(self._hvd.shutdown)
            do_not_wait_at_exit()
        elif self._joined:
            self._hvd.shutdown()
        self._joined = False

    # Named, because Horovod's own name is the value's type: workers whose values differ in type would wait for ever.

    def gather(self, value: Any) -> list[Any]:
        """Return every worker's value, in rank order."""
        return list(self._hvd.allgather_object(value, name="farandole.gather"))

    def broadcast(self, value: Any, root: int) -> Any:
        """Return the value of worker `root`."""
        return self._hvd.broadcast_object(value, root_rank=root, name="farandole.broadcast")
