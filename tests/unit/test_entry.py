"""One strategy is open at a time, and leaves no state for the next one."""

from __future__ import annotations

import os

import pytest
import torch.distributed as dist

from farandole.adapters import Launch, LauncherError, StrategyStateError, Worker, create_strategy, entry, launched_as


def test_a_second_strategy_while_one_is_open() -> None:
    with create_strategy("local") as first, pytest.raises(StrategyStateError, match="'ddp' was entered while 'local'"):
        create_strategy("ddp").__enter__()
    assert first.worker == Worker()
    with create_strategy("ddp") as second:
        assert second.reduce(2.0) == 2.0


def test_a_strategy_that_could_not_join_leaves_room_for_another() -> None:
    elsewhere = Launch("horovodrun", Worker(0, 2))
    with launched_as(elsewhere):
        lost = create_strategy("ddp")
    with pytest.raises(LauncherError, match="no address to meet at"):
        lost.__enter__()
    with create_strategy("ddp") as strategy:
        assert strategy.worker.world_size == 1


def test_what_a_failed_strategy_left_open_is_closed_by_the_next_one() -> None:
    with pytest.raises(KeyError), create_strategy("ddp"):
        raise KeyError("planned")
    assert dist.is_initialized()
    with create_strategy("local"):
        assert not dist.is_initialized()


def test_a_process_group_of_another_job_is_not_adopted() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with launched_as(Launch("environment", Worker(1, 2), ("127.0.0.1", 1))):
            strategy = create_strategy("ddp")
        with pytest.raises(LauncherError, match="worker 0 of 1, but environment started worker 1 of 2"):
            strategy.__enter__()
    finally:
        dist.destroy_process_group()


def test_a_strategy_that_cannot_settle_is_abandoned() -> None:
    strategy = create_strategy("ddp")

    def fails() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), strategy:
        strategy.settle_before_leaving(fails)  # type: ignore[attr-defined]
    with create_strategy("ddp") as another:
        assert another.reduce(1.0) == 1.0


@pytest.mark.parametrize("before", [None, "old"])
def test_variables_are_put_back(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FARANDOLE_TEST", raising=False)
    if before is not None:
        monkeypatch.setenv("FARANDOLE_TEST", before)
    with entry.environment(FARANDOLE_TEST="new"):
        assert os.environ["FARANDOLE_TEST"] == "new"
    assert os.environ.get("FARANDOLE_TEST") == before


def test_each_entry_has_a_number_of_its_own() -> None:
    numbers = []
    for _ in range(2):
        with create_strategy("local"):
            numbers.append(entry.generation())
    assert numbers[1] == numbers[0] + 1
