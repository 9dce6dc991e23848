"""The key-value store of the launchers that come with torch, used for TensorFlow's cluster."""

from __future__ import annotations

from datetime import timedelta

import torch.distributed as dist

from ..launch.variables import Launch
from ..torch.rendezvous import explained, open_store


class TorchStore:
    """Texts by key, alike for all workers; where rank 0 keeps them, they last as long as its object.

    Raises:
        LauncherError: on any call, whoever keeps the store cannot be reached.
    """

    def __init__(self, launch: Launch, timeout: float) -> None:
        self._launch = launch
        with explained(launch):
            self._store = open_store(launch, timedelta(seconds=timeout), wait_for_workers=False)

    def put(self, key: str, text: str) -> None:
        with explained(self._launch):
            self._store.set(key, text)

    def wait(self, key: str, timeout: float) -> str | None:
        """Return what was put under this key, or `None` where nothing was within `timeout` seconds."""
        with explained(self._launch):
            try:
                self._store.wait([key], timedelta(seconds=max(timeout, 0.001)))  # 0 would be without end
            except dist.DistStoreError:
                return None
            return self._store.get(key).decode()
