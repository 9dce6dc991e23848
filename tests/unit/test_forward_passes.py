"""A worker that waits names those that run a forward pass alone; the job is a store that two objects share."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.distributed import HashStore

from farandole.adapters.torch.forward_passes import ForwardPasses
from farandole.adapters.worker import Worker

PATIENCE = 0.1


class Waits(torch.nn.Module):
    """A model whose forward pass waits, as for a gather of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.gathered = threading.Event()

    def forward(self) -> bool:
        return self.gathered.wait(10)


class Job:
    """Two workers, each with a model."""

    def __init__(self) -> None:
        store = HashStore()
        self.models = [Waits(), Waits()]
        self.passes = [
            ForwardPasses([model], Worker(rank, 2, rank, 2), store, "model", PATIENCE)
            for rank, model in enumerate(self.models)
        ]

    def call(self, rank: int) -> threading.Thread:
        thread = threading.Thread(target=self.models[rank])
        thread.start()
        return thread


@pytest.fixture
def job() -> Iterator[Job]:
    job = Job()
    yield job
    for model, passes in zip(job.models, job.passes, strict=True):
        model.gathered.set()
        passes.release()
    assert not [thread for thread in threading.enumerate() if thread.name == "farandole-forward-passes"]


@pytest.fixture
def heard(capsys: pytest.CaptureFixture[str]) -> Callable[[float], str]:
    def heard(seconds: float) -> str:
        said, until = "", time.monotonic() + seconds
        while not said and time.monotonic() < until:
            time.sleep(PATIENCE / 5)
            said += capsys.readouterr().err
        return said

    return heard


def test_who_runs_it_alone_is_named_until_the_others_come(job: Job, heard: Callable[[float], str]) -> None:
    job.call(0)
    said = heard(10)
    assert said.startswith("farandole: worker 0 of 2 has waited 0 s: worker 0 called the model outside of a training")
    assert "and worker 1 did not" in said and "training.evaluate()" in said
    assert job.passes[0].alone == "worker 0 called the model outside of a training step, and worker 1 did not"
    job.call(1)
    time.sleep(PATIENCE)
    assert heard(5 * PATIENCE) == "", "both wait, for something else"


def test_what_was_said_is_known_after_an_error_only(job: Job, heard: Callable[[float], str]) -> None:
    ended = job.call(0)
    assert heard(10)
    job.models[0].gathered.set()
    ended.join()
    assert job.passes[0].alone == ""

    def wait_in_vain() -> None:
        until = time.monotonic() + 10
        with job.passes[1]:
            while not job.passes[1].alone and time.monotonic() < until:
                time.sleep(PATIENCE / 5)
            raise TimeoutError

    with pytest.raises(TimeoutError):
        wait_in_vain()
    assert "worker 0 called the model" in job.passes[1].alone


def test_a_worker_that_waits_in_training_names_who_is_not_there(job: Job, heard: Callable[[float], str]) -> None:
    job.models[0].gathered.set()
    job.call(0).join()  # it took another collective for the gather
    with job.passes[1]:
        said = heard(10)
    assert said.startswith("farandole: worker 1 of 2 has waited 0 s: worker 0 called the model")


def test_passes_that_train_and_those_of_all_workers_are_no_matter(job: Job, heard: Callable[[float], str]) -> None:
    for model in job.models:
        model.gathered.set()
    for _ in range(3):
        with job.passes[0]:
            job.models[0]()  # which is more than the other one has done yet
    with torch.no_grad():
        for passes, model in zip(job.passes, job.models, strict=True):
            with passes:
                model()
    with job.passes[0]:
        assert heard(8 * PATIENCE) == ""


def test_a_pass_that_failed_is_over(job: Job, heard: Callable[[float], str]) -> None:
    handle = job.models[0].register_forward_pre_hook(lambda *_: 1 / 0)  # type: ignore[arg-type, return-value]
    with pytest.raises(ZeroDivisionError):
        job.models[0]()
    handle.remove()
    assert heard(4 * PATIENCE) == ""


def test_the_thread_ends_with_a_model_that_is_dropped() -> None:
    model = Waits()
    ForwardPasses([model], Worker(0, 2, 0, 2), HashStore(), "model", PATIENCE)
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "farandole-forward-passes")
    del model
    gc.collect()
    thread.join(10 * PATIENCE)
    assert not thread.is_alive()


def test_passes_in_a_step_of_another_model_are_no_matter(heard: Callable[[float], str]) -> None:
    store, model = HashStore(), Waits()
    model.gathered.set()
    passes = [
        ForwardPasses([each], Worker(rank, 2, rank, 2), store, "model", PATIENCE, in_step=lambda: True)
        for rank, each in enumerate((model, Waits()))
    ]
    model()
    with passes[0]:
        assert heard(4 * PATIENCE) == ""
    for each in passes:
        each.release()
