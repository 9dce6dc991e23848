"""Objects of any kind between the workers of a TensorFlow cluster, through its coordination service."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from .. import entry
from ..roll_call import Lines, ended
from ..worker import Worker
from .compat import EagerContext, eager_context

TASK_IS_GONE = "was killed, or stopped"
_POLL = 1_000  # ms; in between, Python can be interrupted
_CHUNK = 1 << 20  # characters in one value


class ConfigStore:
    """What each worker says under a key, read by the others; all workers call the same methods in the same order.

    A worker removes what it said once everyone must have read it: when all have said the next thing.

    lines: tell of workers whose processes end, long before the service knows of it, which waits for signs of life.
    """

    def __init__(self, worker: Worker, jobs: Sequence[tuple[str, int]], lines: Lines) -> None:
        self._worker = worker
        self._jobs = list(jobs)
        self._lines = lines
        self._generation = self._round = 0
        self._own: list[str] = []

    def gather(self, value: Any) -> list[Any]:
        """Return every worker's value, in rank order."""
        return self._exchange(value, range(self._worker.world_size), speaks=True)

    def broadcast(self, value: Any, root: int) -> Any:
        """Return worker `root`'s value."""
        # The others say nothing worth reading, but that they got here: or what root said could never be removed.
        return self.gather(value if self._worker.rank == root else None)[root]

    def _exchange(self, value: Any, ranks: range, speaks: bool) -> list[Any]:
        if self._worker.world_size == 1:
            return [pickle.loads(pickle.dumps(value))]
        service = eager_context()
        if self._generation != entry.generation():  # after a failure, workers may have come to different rounds
            self._generation, self._round = entry.generation(), 0
        self._round += 1
        told = self._tell(service, value) if speaks else []
        values = [value if rank == self._worker.rank else self._hear(service, rank) for rank in ranks]
        for key in self._own:
            service.delete_key(key)
        self._own = told
        return values

    def _tell(self, service: EagerContext, value: Any) -> list[str]:
        text = base64.b64encode(pickle.dumps(value)).decode()
        chunks = [text[start : start + _CHUNK] for start in range(0, len(text), _CHUNK)]
        keys = [self._key(self._worker.rank, number) for number in range(len(chunks))]
        for number, (key, chunk) in enumerate(zip(keys, chunks, strict=True)):
            service.set_key(key, f"{len(chunks)} {chunk}" if number == 0 else chunk)
        return keys

    def _hear(self, service: EagerContext, rank: int) -> Any:
        count, _, text = self._wait(service, self._key(rank, 0)).partition(" ")
        text += "".join(self._wait(service, self._key(rank, number)) for number in range(1, int(count)))
        return pickle.loads(base64.b64decode(text))

    def _wait(self, service: EagerContext, key: str) -> str:
        while True:
            try:
                return str(service.get_key(key, _POLL))
            except tf.errors.DeadlineExceededError:
                self._check_others(service)

    def _check_others(self, service: EagerContext) -> None:
        """Raise `UnavailableError` where a worker is gone: the service knows, but lets those who wait for it wait."""
        gone = [(rank, "its process has ended") for rank in ended(self._lines)]
        if not gone:
            states = enumerate(service.task_states(self._jobs))
            gone = [(rank, str(state)) for rank, state in states if state is not None]
        for rank, why in gone:
            raise tf.errors.UnavailableError(
                None, None, f"worker {rank} of {self._worker.world_size} {TASK_IS_GONE}: {why}"
            )

    def _key(self, rank: int, number: int) -> str:
        return f"farandole/{self._generation}/{self._round}/{rank}/{number}"
