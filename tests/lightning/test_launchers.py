"""Unchanged Lightning programs under every launcher; and the messages if workers fail, or disagree."""

from __future__ import annotations

import gc
import pickle
import re
import runpy
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from broken_job import BOUND, Broken
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.nn.functional import cross_entropy

from farandole.adapters import Callback, CallbackError, LauncherError, OptionError, StrategyStateError
from farandole.adapters.launch.start import find_launcher
from farandole.adapters.order import GlobalOrder
from farandole.plugins.launch.job import JobResult, run_marked
from farandole.plugins.launch.ports import hold_ports, port_of
from farandole.plugins.lightning import FabricHorovodStrategy, HorovodStrategy, LightningCallback
from farandole.plugins.lightning.environment import LauncherEnvironment, devices_here
from farandole.plugins.metrics import WorkerMetrics

EXAMPLES = Path(__file__).parents[2] / "experiments/examples"
DIGITS = EXAMPLES / "digits_lightning.py"
FAULTS = Path(__file__).with_name("fault_program.py")
OWN = Path(__file__).with_name("own_strategy_program.py")
EPOCHS = 2
WORKERS = 2

pytestmark = pytest.mark.timeout(150)
exhaustive = pytest.mark.exhaustive


def command(launcher: str, strategy: str, program: Path, *arguments: str) -> list[str]:
    """Return the command for a program on two workers: by a launcher, or alone."""
    if launcher == "farandole":
        run = [sys.executable, "-m", "farandole.cli.main", "run", "--strategy", strategy, "-n", "2"]
        return [*run, str(program), *arguments]
    itself = [str(program), *arguments, "--strategy", strategy]
    if launcher == "python":
        return [sys.executable, *itself, "--devices", "2"]
    path = find_launcher(launcher)
    assert path is not None
    if launcher == "horovodrun":
        return [path, "-np", "2", "--gloo", "--disable-cache", sys.executable, *itself]
    if launcher == "deepspeed":
        with hold_ports(1)[0] as held:
            return [path, "--no_local_rank", "--num_accelerators", "2", "--master_port", str(port_of(held)), *itself]
    return [path, "--standalone", "--nproc-per-node", "2", *itself]


def final_loss(job: JobResult) -> float:
    """Return the loss that exactly one worker printed at the end of a job that succeeded."""
    assert job.returncode == 0, job.describe()
    assert not job.survivors, job.describe()
    return printed_loss(job.output)


def printed_loss(output: str) -> float:
    (printed,) = re.findall(r"final loss: (\d+\.\d{9})", output)
    return float(printed)


@pytest.fixture(scope="module")
def alone() -> float:
    """The loss that the digits example should end with, by plain code in one process."""
    example = runpy.run_path(str(DIGITS))
    pl.seed_everything(0)
    training, test = (scans.tensors for scans in example["load_scans"]())
    model = example["DigitReader"]().network
    batches = list(_batches(len(training[0]), 32 * WORKERS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for batch in batches:
        images, labels = (column[batch] for column in training)
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
        scheduler.step()
    images, labels = test
    with torch.no_grad():
        return float(cross_entropy(model(images), labels))


def _batches(length: int, size: int) -> Iterator[torch.Tensor]:
    order = GlobalOrder(length, length, seed=0, shuffle=True)
    for epoch in range(EPOCHS):
        yield from torch.tensor(order.global_batch(epoch, 0)).split(size)


@pytest.mark.parametrize(
    ("strategy", "launcher"),
    [
        ("deepspeed_zero_2", "deepspeed"),
        # These are in the README, whose programs are run too.
        pytest.param("horovod", "python", marks=exhaustive),
        pytest.param("horovod", "horovodrun", marks=exhaustive),
        pytest.param("horovod", "farandole", marks=exhaustive),
        pytest.param("deepspeed_zero_2", "farandole", marks=exhaustive),
        # And these are the rest.
        pytest.param("deepspeed_zero_2", "python", marks=exhaustive),
        pytest.param("horovod", "deepspeed", marks=exhaustive),
        pytest.param("horovod", "torchrun", marks=exhaustive),
        pytest.param("deepspeed_zero_2", "horovodrun", marks=exhaustive),
        pytest.param("deepspeed_zero_2", "torchrun", marks=exhaustive),
    ],
)
def test_one_file_under_every_launcher(strategy: str, launcher: str, alone: float) -> None:
    argv = command(launcher, strategy, DIGITS, "--max-epochs", str(EPOCHS))
    job = run_marked(argv, timeout=100)
    assert final_loss(job) == pytest.approx(alone, abs=1e-5), job.describe()
    assert f"{strategy}: 9" in job.output, "the strategy that was asked for, and at least 90 %"


@pytest.mark.parametrize("strategy", ["horovod", pytest.param("deepspeed_zero_2", marks=exhaustive)])
def test_one_file_on_one_worker(strategy: str, alone: float) -> None:
    options = ["--strategy", strategy, "--devices", "1", "--batch-size", str(32 * WORKERS)]
    job = run_marked([sys.executable, str(DIGITS), "--max-epochs", str(EPOCHS), *options], timeout=100)
    assert final_loss(job) == pytest.approx(alone, abs=1e-5), job.describe()


# Workers that break.


def saved_after_three_steps(path: Path) -> bool:
    """Whether there is a whole checkpoint of a training that failed in its fourth step."""
    if not path.exists():
        return False
    checkpoint = torch.load(path)
    weights, optimizers = checkpoint["state_dict"], checkpoint["optimizer_states"]
    return checkpoint["global_step"] == 3 and set(weights) == {"layer.weight", "layer.bias"} and len(optimizers) == 1


@pytest.mark.parametrize(
    ("launcher", "strategy", "fault", "rank", "where"),
    [
        ("python", "horovod", "raise", 1, "callback"),
        ("torchrun", "deepspeed_zero_2", "raise", 1, "train"),
        ("python", "horovod", "exit0", 0, "train"),
        pytest.param("horovodrun", "horovod", "raise", 1, "train", marks=exhaustive),
        pytest.param("python", "horovod", "raise", 0, "train", marks=exhaustive),
        pytest.param("python", "horovod", "exit0", 1, "train", marks=exhaustive),
        pytest.param("python", "horovod", "exit1", 0, "train", marks=exhaustive),
        pytest.param("python", "deepspeed_zero_2", "exit0", 0, "train", marks=exhaustive),
        pytest.param("torchrun", "deepspeed_zero_3", "exit1", 1, "train", marks=exhaustive),
    ],
)
def test_workers_that_leave_a_training_all_and_one(
    launcher: str, strategy: str, fault: str, rank: int, where: str, tmp_path: Path
) -> None:
    """If all leave, they save the exception's checkpoints together; if one leaves, it does not wait long for others."""
    argv = command(launcher, strategy, FAULTS, fault, "all:train", f"{rank}:{where}", "--save", str(tmp_path))
    broken = Broken(argv)
    output = broken.job.output
    assert broken.job.returncode != 0, broken.job.describe()
    assert broken.seconds < BOUND, broken.job.describe()
    assert not broken.job.survivors, broken.job.describe()
    assert "TRAINED" not in output
    for way in ("callback", "model"):
        assert saved_after_three_steps(tmp_path / f"all-train-{way}.ckpt"), broken.job.describe()
        alone = tmp_path / f"{rank}-{where}-{way}.ckpt"
        if "zero" in strategy:
            assert f"checkpoint lost: cannot save to {alone}" in output and not alone.exists(), broken.job.describe()
        else:  # rank 0 has a whole replica, whether it or the other worker fails
            assert saved_after_three_steps(alone), broken.job.describe()
    if where == "callback":
        assert f"CallbackError: callback Breaks.on_step_begin on worker {rank} raised" in output, broken.job.describe()
    if fault == "raise":
        mistake = "ValueError: the mistake in the module"
        assert f'File "{FAULTS}", line ' in output
        assert output.rindex(mistake) > output.rfind("WorkerLostError") or rank == 0, broken.job.describe()
    elif fault == "exit0":
        assert f"worker {rank} of 2 left by sys.exit(0)" in output, broken.job.describe()


@pytest.mark.parametrize(
    ("rank", "strategy"), [("0", "deepspeed_zero_2"), pytest.param("1", "horovod", marks=exhaustive)]
)
def test_a_worker_of_the_trainers_that_is_killed(rank: str, strategy: str) -> None:
    """Rank 0 is the process that the user started: if it dies, no process watches the others."""
    broken = Broken(command("python", strategy, FAULTS, "kill", f"{rank}:train"))
    assert broken.job.returncode != 0, broken.job.describe()
    assert broken.seconds < BOUND, broken.job.describe()
    assert "Traceback" in broken.job.output, "what the other one met with"
    assert "TRAINED" not in broken.job.output


@pytest.mark.parametrize(
    ("strategy", "trainings"),
    [
        ("horovod", ["0:train", "1:validate", "1:test"]),
        pytest.param("deepspeed_zero_2", ["1:train", "0:validate"], marks=exhaustive),
    ],
)
def test_all_workers_stop_after_the_same_batch_when_one_is_to_end(strategy: str, trainings: list[str]) -> None:
    """A scheduler sends it before it takes a machine away, so that all can save. Also when only validation is left.

    Where it tests, nothing is lost: only the one that was asked ends, and the launcher ends the other.
    """
    argv = command("torchrun", strategy, FAULTS, "term", *trainings, "--loader-processes", "1")
    broken = Broken(argv)  # the first training's whole process group gets it, with the loaders
    assert broken.seconds < BOUND, broken.job.describe()
    ended = re.findall(r"(\d:\w+): rank (\d) (\w+) after (\d+)", broken.job.output)
    for training in trainings:
        found = [(rank, reason, step) for named, rank, reason, step in ended if named == training]
        if training == "1:test":
            assert ("1", "SIGTERMException") in [(rank, reason) for rank, reason, _ in found], broken.job.describe()
            continue
        assert sorted(rank for rank, _, _ in found) == ["0", "1"], broken.job.describe()
        assert {reason for _, reason, _ in found} == {"SIGTERMException"}, broken.job.describe()
        assert len({step for _, _, step in found}) == 1, broken.job.describe()
    assert "TRAINED" not in broken.job.output


# What contradicts itself.


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"devices": 3}, r"Trainer\(devices=3\), but horovodrun started 2 worker"),
        ({"devices": 2, "num_nodes": 2}, r"Trainer\(num_nodes=2\), but horovodrun started 2 worker\(s\) on 1 machine"),
    ],
)
def test_other_numbers_than_the_launchers(given: dict[str, int], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": 0,
        "SIZE": 2,
        "LOCAL_RANK": 0,
        "LOCAL_SIZE": 2,
        "CROSS_RANK": 0,
        "CROSS_SIZE": 1,
    }.items():
        monkeypatch.setenv(f"HOROVOD_{name}", str(value))
    with pytest.raises(LauncherError, match=said):
        pl.Trainer(strategy="horovod", accelerator="cpu", logger=False, **given)


def started_by_srun(monkeypatch: pytest.MonkeyPatch, nodes: int, **more: str) -> None:
    """Be the first task of two on each node."""
    tasks = str(2 * nodes)
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": tasks, "SLURM_STEP_TASKS_PER_NODE": f"2(x{nodes})"}
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": tasks, "SLURM_NNODES": str(nodes)}
    own = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_STEP_NODELIST": f"n[1-{nodes}]"}
    for name, value in {**step, **job, **own, **more}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("options", [{}, {"SLURM_NTASKS_PER_NODE": "2"}], ids=["-n", "--ntasks-per-node"])
def test_tasks_of_srun(nodes: int, options: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are taken as srun started them, whatever Lightning's own environment wants to have been told."""
    started_by_srun(monkeypatch, nodes, **options)
    told: list[Any] = [HorovodStrategy(), *(["horovod"] if options else [])]
    trainers = [pl.Trainer(strategy=strategy, accelerator="cpu", logger=False) for strategy in told]
    for trainer in trainers:
        assert (trainer.global_rank, trainer.world_size, trainer.num_devices) == (0, 2 * nodes, 2)
    for strategy in (FabricHorovodStrategy(), *told[1:]):
        fabric = Fabric(strategy=strategy, accelerator="cpu")
        assert (fabric.global_rank, fabric.world_size) == (0, 2 * nodes)
    environment = trainers[0].strategy.cluster_environment  # type: ignore[attr-defined]
    environment.validate_settings(num_devices=1, num_nodes=1)
    assert isinstance(environment, SLURMEnvironment) and environment.auto_requeue, "so that Lightning requeues the job"


def test_each_task_trains_on_the_gpu_that_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's --gpus-per-task shows each task one GPU; `devices=[2, 3]` names them."""
    started_by_srun(monkeypatch, 1, SLURM_LOCALID="1", SLURM_PROCID="1")
    own, chosen = [torch.device("cuda", 0)], [torch.device("cuda", 2), torch.device("cuda", 3)]
    slurm = LauncherEnvironment()
    assert devices_here(slurm, own, 1, own, "Trainer") == 2 * own
    assert devices_here(slurm, chosen, 4, chosen, "Trainer") == chosen
    strategy = HorovodStrategy()
    strategy._devices_here = chosen
    assert strategy._options()["device"] == "cuda:3"


@pytest.mark.parametrize("make", [pl.Trainer, Fabric])
def test_tasks_of_srun_that_lightning_refuses_before_it_looks_at_a_name(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started_by_srun(monkeypatch, 1)
    with pytest.raises(LauncherError, match=r"pass strategy=\w*HorovodStrategy\(\) .* or give --ntasks-per-node"):
        make(strategy="horovod", accelerator="cpu")
    with pytest.raises(LauncherError, match=r"pass strategy=\w*DeepSpeedStrategy\(stage=2, offload=True\)"):
        make(strategy="deepspeed_zero_2_offload", accelerator="cpu")


def test_callbacks_of_farandoles_on_lightnings_own_ddp(tmp_path: Path) -> None:
    job = run_marked([sys.executable, str(OWN), "ddp", str(tmp_path / "run")], timeout=100)
    assert job.returncode == 0, job.describe()
    assert set(re.findall(r"worker \d is done", job.output)) == {"worker 0 is done", "worker 1 is done"}, job.describe()


METHODS = ("on_prepare", "on_begin", "on_step_begin", "on_step_end", "on_end", "state_dict", "load_state_dict")


def test_what_callbacks_of_farandoles_raise_and_return_in_a_trainer(tmp_path: Path) -> None:
    """The error names each method; on_end gets its cause; and neither keeps the module."""

    class Wrong(Callback):
        ended: tuple[Any, ...] = ()

        def on_end(self, error: BaseException | None) -> None:
            self.ended = (*self.ended, type(error).__name__)

        def state_dict(self) -> dict[str, Any]:
            return {"n": 1}

    def wrong(*arguments: Any) -> None:
        raise ValueError("the mistake")

    def fit(*callbacks: Callback, **options: Any) -> tuple[pl.Trainer, weakref.ref[Any]]:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        plugged = [LightningCallback(callback) for callback in callbacks]
        trainer = pl.Trainer(accelerator="cpu", max_steps=2, callbacks=plugged, enable_checkpointing=False, **quiet)
        module = BoringModel()
        trainer.fit(module, **options)
        return trainer, weakref.ref(module)

    path = tmp_path / "two.ckpt"
    known = [Wrong(), Wrong()]
    trainer, module = fit(*known)
    trainer.save_checkpoint(path)
    del trainer
    gc.collect()
    assert module() is None and [callback.ended for callback in known] == [("NoneType",)] * 2
    for method in METHODS:
        callback, other = Wrong(), Wrong()
        setattr(callback, method, wrong)
        with pytest.raises(CallbackError, match=rf"Wrong\.{method} on worker 0 raised ValueError: the mistake"):
            fit(other, callback, ckpt_path=path if method == "load_state_dict" else None)[0].save_checkpoint(path)
        if method.startswith("on_step"):
            assert other.ended == ("CallbackError",)
    nonsense = Wrong()
    nonsense.state_dict = lambda: {"n": object()}  # type: ignore[method-assign]
    with pytest.raises(CallbackError, match=r"Wrong\.state_dict on worker 0 returned what a checkpoint cannot hold"):
        fit(nonsense)[0].save_checkpoint(path)


def test_a_callback_of_farandoles_that_lightning_cannot_call() -> None:
    with pytest.raises(AttributeError, match=r"give Lightning's Trainer farandole.*LightningCallback\(callback\)"):
        pl.Trainer(callbacks=[Callback()], logger=False)
    with pytest.raises(OptionError, match=r"farandole\.adapters\.Callback, but a EarlyStopping was given"):
        LightningCallback(pl.callbacks.EarlyStopping("loss"))
    kinds = [type("Mine", (Callback,), {}), WorkerMetrics]
    made = [type(LightningCallback(kind())) for kind in kinds for _ in range(2)]
    assert made[0] is made[1] is not made[2] is made[3], "Lightning replaces callbacks by their classes"
    assert isinstance(pickle.loads(pickle.dumps(LightningCallback(WorkerMetrics()))), made[2])


def test_a_strategy_object_for_two_trainers() -> None:
    strategy = HorovodStrategy()
    pl.Trainer(strategy=strategy, devices=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(StrategyStateError, match="HorovodStrategy belongs to another Trainer already: make a new one"):
        pl.Trainer(strategy=strategy, devices=1, accelerator="cpu", logger=False, enable_checkpointing=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("strategy", ["horovod", "deepspeed_zero_2"])
def test_a_gpu_that_is_not_there(strategy: str) -> None:
    with pytest.raises(MisconfigurationException, match="No supported gpu backend"):
        pl.Trainer(strategy=strategy, devices=2, accelerator="gpu", logger=False, enable_checkpointing=False)
