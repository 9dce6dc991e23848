"""What Gloo says of a worker that does not come, in a real group of two threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
from torch.distributed import HashStore, ProcessGroupGloo

from farandole.adapters.lost_worker import gloo_lost_a_peer


def test_the_calls_after_a_timeout_are_recognized_too() -> None:
    store = HashStore()
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda rank: ProcessGroupGloo(store, rank, 2, timedelta(seconds=0.5)), range(2))
    said = []
    for _ in range(2):
        with pytest.raises(RuntimeError) as raised:
            first.allreduce([torch.ones(2)]).wait()
        said.append(str(raised.value))
    assert "Timed out waiting" in said[0] and "Application timeout" in said[1]
    assert all(map(gloo_lost_a_peer, said))
    assert not gloo_lost_a_peer("Application timeout") and second.rank() == 1
