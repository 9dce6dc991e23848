"""How a worker joins Horovod's job: MPI describes it if mpirun started it, else our Gloo job."""

from __future__ import annotations

import os

import pytest

from farandole.adapters import EngineUnavailableError, Launch, Worker
from farandole.adapters.horovod import compat
from farandole.adapters.horovod.job import HorovodJob
from farandole.adapters.horovod.rendezvous import described_job
from farandole.adapters.launch.detect import detect_launch


def not_asked(address: str | None) -> str:
    raise AssertionError(f"shared {address}")


def told(launch: Launch, gloo: bool = True) -> dict[str, str]:
    """Return the new variables that Horovod finds."""
    before = dict(os.environ)
    with described_job(launch, not_asked, gloo):
        inside = dict(os.environ.items() - before.items())
    assert dict(os.environ) == before
    return inside


@pytest.mark.usefixtures("no_launcher")
@pytest.mark.parametrize("size", [1, 2])
def test_mpi_knows_its_job(size: int) -> None:
    assert told(Launch("openmpi", Worker(size - 1, size))) == {}


@pytest.mark.usefixtures("no_launcher")
def test_a_single_worker_without_mpirun_takes_gloo() -> None:
    """A Horovod built with MPI would initialize MPI, and finalize it at shutdown."""
    assert told(Launch("none", Worker())) == {"HOROVOD_CONTROLLER": "gloo", "HOROVOD_CPU_OPERATIONS": "gloo"}
    assert told(Launch("horovodrun", Worker())) == {}


@pytest.mark.usefixtures("no_launcher")
def test_without_gloo_nothing_is_described() -> None:
    assert told(Launch("torchrun", Worker(1, 2), ("127.0.0.1", 1)), gloo=False) == {}


@pytest.mark.usefixtures("no_launcher")
def test_mpirun_needs_a_horovod_that_was_built_with_mpi() -> None:
    hvd = pytest.importorskip("horovod.torch", reason="Horovod is not installed")
    if hvd.mpi_built():
        pytest.skip("this Horovod was built with MPI")
    with pytest.raises(EngineUnavailableError, match=r"^mpirun started this worker, but .* built without MPI"):
        HorovodJob(hvd, Launch("openmpi", Worker(1, 2))).join(not_asked, lambda: None)


@pytest.mark.usefixtures("no_launcher")
def test_rank_0_does_not_take_all_workers_for_neighbours() -> None:
    """RANK set by hand on several machines may come without LOCAL_WORLD_SIZE, which then defaults to the world size."""
    pytest.importorskip("horovod.runner", reason="Horovod is not installed")
    told = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    sent = []

    def broadcast(address: str | None) -> str:
        sent.append(address)
        return str(address)

    with described_job(detect_launch(told), broadcast, gloo=True):
        pass
    (address,) = sent
    assert address is not None and address.startswith("localhost:")


@pytest.mark.parametrize(
    "gone",
    ["torch.optimizer._DistributedOptimizer.set_backward_passes_per_step", "common.exceptions.HorovodInternalError"],
)
def test_a_horovod_that_lacks_what_is_used_of_it_is_told(gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("horovod.torch.optimizer", reason="Horovod is not installed")
    compat.check_torch()
    monkeypatch.delattr(f"horovod.{gone}")
    name = gone.rpartition(".")[2]
    with pytest.raises(EngineUnavailableError, match=rf"^Horovod 0.* has no \S+\.{name}, .* horovod install"):
        compat.check_torch()
