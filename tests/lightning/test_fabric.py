"""Lightning Fabric on our strategies: the same training as stock Fabric's on one device with N times the batch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import broken_job
import pytest
import torch

from farandole.adapters.order import GlobalOrder
from farandole.plugins.conformance.servers import WorkerServers
from farandole.plugins.launch.job import run_marked

PROGRAM = Path(__file__).with_name("fabric_program.py")
BOUND = 1e-5

pytestmark = pytest.mark.timeout(240)


def run(*arguments: str) -> str:
    job = run_marked([sys.executable, str(PROGRAM), *arguments], timeout=200)
    assert job.returncode == 0, job.describe()
    assert not job.survivors, job.describe()
    return job.output


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Stock Fabric's results on one device with 2, and with 3, times the batch."""
    folders = {workers: tmp_path_factory.mktemp(f"alone{workers}") for workers in (2, 3)}
    run("alone", str(folders[2]), str(folders[3]))
    return folders


# The strategies of a job, which come one after the other in it.
JOBS = [
    (2, ["horovod"]),  # Fabric starts the other worker
    (2, ["deepspeed_zero_3", "deepspeed_zero_2_offload", "deepspeed_zero_1"]),
    (3, ["deepspeed_zero_3_offload", "deepspeed_zero_2"]),
    (3, ["horovod"]),
]
# The strategy whose checkpoint of two workers three load.
RESUMED = {"horovod": "deepspeed_zero_3", "deepspeed_zero_3_offload": "horovod"}


@pytest.fixture(scope="module")
def trained(
    alone: dict[int, Path],
    tmp_path_factory: pytest.TempPathFactory,
    selected: list[dict[str, Any]],
    worker_servers: WorkerServers,
) -> Any:
    """Return a function that runs a strategy's job, and returns its folder."""
    asked = {(each["strategy"], each["workers"]) for each in selected if "workers" in each}
    asked |= {(RESUMED[strategy], 2) for strategy, workers in asked if workers == 3 and strategy in RESUMED}
    folder = tmp_path_factory.mktemp("fabric")

    def find(strategy: str, workers: int) -> Path:
        place = folder / f"{strategy}-{workers}"
        if not place.exists():
            (names,) = (names for number, names in JOBS if number == workers and strategy in names)
            given = []
            for name in (name for name in names if (name, workers) in asked):
                other = RESUMED.get(name) if workers == 3 else None
                given.append(f"{name}={find(other, 2) / 'half.pt'}" if other else name)
            arguments = ["train", str(workers), str(folder), *given]
            if (workers, names) == JOBS[0]:
                run(*arguments)
            else:
                job = worker_servers.run_program(names[0], workers, [str(PROGRAM), *arguments], timeout=200)
                assert job.returncode == 0, job.describe()
        return place

    return find


def check_alike(found: Path, expected: Path) -> None:
    """Compare two checkpoints: the same keys and numbers, and weights, and each slot, to a relative norm of 1e-5."""
    tensors: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    pair_up(torch.load(found), torch.load(expected), found.stem, tensors)
    for where, pairs in tensors.items():
        ours, theirs = (torch.cat([pair[side].double().reshape(-1) for pair in pairs]) for side in (0, 1))
        assert float((ours - theirs).norm()) <= BOUND * float(theirs.norm()), where


def pair_up(found: Any, expected: Any, where: str, tensors: dict[str, list[tuple[torch.Tensor, torch.Tensor]]]) -> None:
    """Collect the tensors of two checkpoints: a model's all together, an optimizer's by slot."""
    if isinstance(expected, torch.Tensor):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype), where
        tensors.setdefault(where, []).append((found, expected))
    elif isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key, value in expected.items():
            is_parameter = isinstance(value, torch.Tensor) and "optimizer" not in where
            is_number = isinstance(key, int)
            pair_up(found[key], value, where if is_parameter or is_number else f"{where}.{key}", tensors)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for ours, theirs in zip(found, expected, strict=True):
            pair_up(ours, theirs, where, tensors)
    else:
        assert found == pytest.approx(expected), where


@pytest.mark.parametrize(
    ("strategy", "workers"),
    [
        ("horovod", 2),
        ("deepspeed_zero_1", 2),
        ("deepspeed_zero_2_offload", 2),
        ("deepspeed_zero_3", 2),
        ("horovod", 3),
        pytest.param("deepspeed_zero_2", 3, marks=pytest.mark.exhaustive),
        pytest.param("deepspeed_zero_3_offload", 3, marks=pytest.mark.exhaustive),
    ],
)
def test_trains_as_one_device(strategy: str, workers: int, alone: dict[int, Path], trained: Any) -> None:
    folder = trained(strategy, workers)
    for name in ("regression.pt", "half.pt", "uneven.pt", *(["two.pt"] if strategy == "horovod" else [])):
        check_alike(folder / name, alone[workers] / name)
    if workers == 3 and strategy in RESUMED:
        check_alike(folder / "resumed.pt", alone[workers] / "resumed.pt")
    said = json.loads((folder / "said.json").read_text())
    ranks = list(range(workers))
    batches = 10 * 2 * (4 * 12 // (4 * workers))  # every worker has a share of each; only rank 0 of the last one
    assert said["seen"] == [batches + 10 * 2] + [batches] * (workers - 1)
    assert said["sum"] == sum(ranks) and said["mean"] == pytest.approx(sum(ranks) / workers)
    assert said["gathered"] == [[rank] for rank in ranks]
    assert said["from the last"] == {"rank": workers - 1}
    check_loaded(said["loaded"], workers)
    check_refused(said, strategy)


def check_loaded(loaded: dict[str, list[list[list[int]]]], workers: int) -> None:
    """Check what each worker loaded in two epochs."""
    own = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    flat = {name: [sorted(n for part in epoch for n in part) for epoch in epochs] for name, epochs in loaded.items()}
    assert flat["shuffled"] == [list(range(23))] * 2
    for epoch in range(2):
        first = [number for part in loaded["shuffled"][epoch] for number in part[:2]]
        assert first == GlobalOrder(23, 2 * workers, seed=7).global_batch(epoch, 0).tolist(), "as on one worker"
    whole = 23 // (2 * workers) * 2 * workers
    assert [len(set(epoch)) for epoch in flat["dropping"]] == [len(epoch) for epoch in flat["dropping"]] == [whole] * 2
    assert flat["own"] == [sorted(own)] * 2
    assert loaded["own batches"][0][0][:3] == own[:3] and loaded["own batches"][0][1][:3] == own[3:6]
    assert loaded["all"][0] == [own] * workers


def check_refused(said: dict[str, Any], strategy: str) -> None:
    if strategy == "horovod":
        assert "was set up without an optimizer" in said["no optimizer"]
        assert "holds parameters of no model" in said["stranger"]
        assert "have different numbers of samples" in said["lengths"]
        assert said["forks"] == str(int(sys.version_info < (3, 11, 10)))
        assert said["kept"] == "0"
        return
    assert "2 optimizers" in said["two optimizers"] and "'horovod'" in said["two optimizers"]
    assert "a second model" in said["two models"]
    assert "clips by norm only" in said["clip_val"]
    assert "norm_type=1" in said["norm_type"]
    assert "cannot drop gradients" in said["dropped"]
    assert "a second time after one forward pass" in said["second backward"]
    assert "call optimizer.zero_grad()" in said["no zero_grad"]
    assert said["inference"] == "True"


@pytest.mark.parametrize(
    ("strategy", "way", "who"),
    [
        ("horovod", "exit0", "0"),
        ("deepspeed_zero_2", "raise", "1"),
        *(
            pytest.param(strategy, way, who, marks=pytest.mark.exhaustive)
            for strategy in ("horovod", "deepspeed_zero_2")
            for way in ("return", "raise", "exit0", "exit1", "term")
            for who in ("0", "1", "all")
            if (strategy, way, who) not in (("horovod", "exit0", "0"), ("deepspeed_zero_2", "raise", "1"))
        ),
    ],
)
def test_workers_that_leave_a_training(strategy: str, way: str, who: str) -> None:
    """The job succeeds if all leave without an error; a worker that leaves alone fails it."""
    broken = broken_job.Broken([sys.executable, str(PROGRAM), "leave", strategy, "2", way, who])
    succeeds = who == "all" and way in ("return", "exit0")
    assert (broken.job.returncode == 0) == succeeds, broken.job.describe()
    assert broken.seconds < broken_job.BOUND, broken.job.describe()
    assert not broken.job.survivors, broken.job.describe()
    if way == "raise":
        mistake = "RuntimeError: a worker was told to fail"
        assert mistake in broken.job.output
        assert who == "0" or broken.job.output.rindex(mistake) > broken.job.output.rfind("WorkerLostError")


def test_one_worker_and_what_is_refused_before_others_are_started() -> None:
    said = json.loads(run("one").splitlines()[-1])
    assert "belongs to another Fabric already" in said["used"]
    assert "use 'bf16-mixed'" in said["bf16-true"]
    assert "DeepSpeed trains float32 parameters here" in said["zero in bf16-true"]
    assert "must be 1, 2 or 3" in said["stage"]
    assert "num_groups=-1" in said["option"]
    assert "Fabric(devices=3), but environment started 2 worker(s)" in said["devices"]
    assert said["order"] == [GlobalOrder(23, 23, seed=7).global_batch(epoch, 0).tolist() for epoch in range(2)]
    assert "Fabric(num_nodes=4), but environment started 2 worker(s) on 1 machine(s)" in said["num_nodes"]
