"""Let workers find out whether all of them reach the same end, before they do anything together.

A worker that handles an exception, or leaves, may do so alone: the others wait in a collective of the training, and it
would wait for them in another collective, for ever. So they first meet in a key-value store, without collectives.
"""

from __future__ import annotations

import contextlib
import time
import traceback

from torch.distributed import Store

from ..errors import WorkerLostError
from ..leaving import leave_timeout
from ..worker import Worker

_ALL, _NOT_ALL = "all", "not all"


class Meeting:
    """Lets the workers of one job meet.

    store: this job's own, hosted by rank 0, so it ends with rank 0.
    """

    def __init__(self, store: Store, worker: Worker) -> None:
        self._store: Store | None = store
        self._worker = worker
        self._known: dict[str, bool] = {}

    def all_come(self, where: str, lost: bool = False) -> bool:
        """Whether all workers come here, within a third of the time to leave; all get the same answer.

        Args:
            where: the name of this meeting, the same on every worker.
            lost: whether another worker is known to be lost, so that waiting is useless.
        """
        if where not in self._known:
            self._known[where] = self._ask(where, lost)
        return self._known[where]

    def _ask(self, where: str, lost: bool) -> bool:
        if self._store is None or lost:
            return False
        came, answer = f"{where}/came", f"{where}/answer"
        until = time.monotonic() + leave_timeout() / 3
        try:
            if self._store.add(came, 1) == self._worker.world_size:
                self._store.compare_set(answer, "", _ALL)
            while not self._store.check([answer]) and time.monotonic() < until:
                time.sleep(0.02)
            return self._store.compare_set(answer, "", _NOT_ALL) == _ALL.encode()
        except RuntimeError:  # rank 0 has ended, and the store with it
            self.close()
            return False

    def tell(self, error: BaseException) -> None:
        """Send rank 0 this worker's error, unless it has only lost another worker."""
        if self._store is not None and not isinstance(error, WorkerLostError):
            with contextlib.suppress(RuntimeError):
                self._store.set(f"failure/{self._worker.rank}", "".join(traceback.format_exception(error)))

    def told(self) -> str:
        """Return another worker's error on rank 0, as Python prints it; or an empty string."""
        if self._store is None or not self._worker.is_main:
            return ""
        failed = [rank for rank in range(self._worker.world_size) if self._store.check([f"failure/{rank}"])]
        if not failed:
            return ""
        return f"worker {failed[0]} failed:\n{self._store.get(f'failure/{failed[0]}').decode().rstrip()}"

    def close(self) -> None:
        """Release the store; received answers are kept."""
        self._store = None
