"""The key-value store of the launchers that use torch, for TensorFlow's cluster."""

from __future__ import annotations

from datetime import timedelta

import torch.distributed as dist

from ..launch.variables import Launch
from ..torch.rendezvous import explained, open_store


class TorchStore:
    """Texts by key, shared by all workers; if rank 0 hosts the store, it lasts as long as its object.

    Raises:
        LauncherError: on any call, the store's host cannot be reached.
    """

    def __init__(self, launch: Launch, timeout: float) -> None:
        self._launch = launch
        with explained(launch):
            self._store = open_store(launch, timedelta(seconds=timeout), wait_for_workers=False)

    def put(self, key: str, text: str) -> None:
        with explained(self._launch):
            self._store.set(key, text)

    def wait(self, key: str, timeout: float) -> str | None:
        """Return what was put under this key, or `None` after `timeout` seconds."""
        with explained(self._launch):
            try:
                self._store.wait([key], timedelta(seconds=max(timeout, 0.001)))  # 0 would wait for ever
            except dist.DistStoreError:
                return None
            return self._store.get(key).decode()
