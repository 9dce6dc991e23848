"""The key-value store of the launchers that come with torch, used for TensorFlow's cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist

from ..errors import LauncherError
from ..launchers import Launch
from ..torch.rendezvous import open_store


class TorchStore:
    """Texts by key, alike for all workers; where rank 0 keeps them, they last as long as its object.

    Raises:
        LauncherError: on any call, whoever keeps the store cannot be reached.
    """

    def __init__(self, launch: Launch, timeout: float) -> None:
        self._where = "MASTER_ADDR={}, MASTER_PORT={}".format(*(launch.address or ("?", "?")))
        self._who = f"worker {launch.worker.rank} of {launch.worker.world_size}"
        with self._explained():
            self._store = open_store(launch, timedelta(seconds=timeout), wait_for_workers=False)

    def put(self, key: str, text: str) -> None:
        with self._explained():
            self._store.set(key, text)

    def wait(self, key: str, timeout: float) -> str | None:
        """Return what was put under this key, or `None` where nothing was within `timeout` seconds."""
        with self._explained():
            try:
                self._store.wait([key], timedelta(seconds=max(timeout, 0.001)))  # 0 would be without end
            except dist.DistStoreError:
                return None
            return self._store.get(key).decode()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except dist.DistError as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise LauncherError(
                f"{self._who} cannot meet the others at {self._where} to agree on TensorFlow's addresses: {reason}. "
                "Look at rank 0 for an error; if another program uses the port, choose a free one in MASTER_PORT."
            ) from None
