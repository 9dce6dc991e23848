"""Exchange any objects between the workers of a TensorFlow cluster, through its coordination service."""

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
_POLL = 1_000  # ms; between polls, Python can be interrupted
_CHUNK = 1 << 20  # characters in one value


class ConfigStore:
    """Values by key from each worker, read by the others; all workers call the same methods in the same order.

    A worker removes its value once every worker has read it: when all have sent the next one.

    lines: show that a worker's process has ended, long before the service finds out by its heartbeats.
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
        # The others send `None` too: without it, root could never remove its value.
        return self.gather(value if self._worker.rank == root else None)[root]

    def _exchange(self, value: Any, ranks: range, speaks: bool) -> list[Any]:
        if self._worker.world_size == 1:
            return [pickle.loads(pickle.dumps(value))]
        service = eager_context()
        if self._generation != entry.generation():  # after a failure, workers may be in different rounds
            self._generation, self._round = entry.generation(), 0
        self._round += 1
        keys = self._put(service, value) if speaks else []
        values = [value if rank == self._worker.rank else self._get(service, rank) for rank in ranks]
        for key in self._own:
            service.delete_key(key)
        self._own = keys
        return values

    def _put(self, service: EagerContext, value: Any) -> list[str]:
        text = base64.b64encode(pickle.dumps(value)).decode()
        chunks = [text[start : start + _CHUNK] for start in range(0, len(text), _CHUNK)]
        keys = [self._key(self._worker.rank, number) for number in range(len(chunks))]
        for number, (key, chunk) in enumerate(zip(keys, chunks, strict=True)):
            service.set_key(key, f"{len(chunks)} {chunk}" if number == 0 else chunk)
        return keys

    def _get(self, service: EagerContext, rank: int) -> Any:
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
        """Raise `UnavailableError` if a worker is lost: the service knows it, but does not wake those who wait."""
        lost = [(rank, "its process has ended") for rank in ended(self._lines)]
        if not lost:
            states = enumerate(service.task_states(self._jobs))
            lost = [(rank, str(state)) for rank, state in states if state is not None]
        for rank, why in lost:
            raise tf.errors.UnavailableError(
                None, None, f"worker {rank} of {self._worker.world_size} {TASK_IS_GONE}: {why}"
            )

    def _key(self, rank: int, number: int) -> str:
        return f"farandole/{self._generation}/{self._round}/{rank}/{number}"
