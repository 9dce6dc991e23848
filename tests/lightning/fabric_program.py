"""Trainings under Fabric that write their results, for one strategy after the other.

python fabric_program.py alone FOLDER-OF-2 FOLDER-OF-3
python fabric_program.py train WORKERS FOLDER STRATEGY[=CHECKPOINT] ...
python fabric_program.py leave STRATEGY WORKERS return | raise | exit0 | exit1 | term RANK | all
python fabric_program.py one
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch.utils.data import DataLoader, TensorDataset

import farandole.plugins.lightning
from farandole.adapters import FarandoleError
from farandole.plugins.launch.job import watch_stacks

BATCH = 4
LENGTH = 203  # no batch size here divides it
EVALUATED = 53
ACCUMULATE = 4
STEPS = 50


def main() -> None:
    warnings.simplefilter("ignore")
    watch_stacks()
    torch.set_num_threads(1)
    mode, *arguments = sys.argv[1:]
    if mode == "one":
        one_worker()
    elif mode == "alone":
        half, third = map(Path, arguments)
        fabric: Any = Fabric(accelerator="cpu", devices=1)
        train(fabric, 2 * BATCH, half)
        train(fabric, 3 * BATCH, third, half / "half.pt")
    elif mode == "leave":
        fabric = Fabric(accelerator="cpu", strategy=arguments[0], devices=int(arguments[1]))
        fabric.launch()
        leave(fabric, *arguments[2:])
    else:
        workers, folder = int(arguments[0]), Path(arguments[1])
        for strategy, _, checkpoint in (each.partition("=") for each in arguments[2:]):
            fabric = Fabric(accelerator="cpu", strategy=strategy, devices=workers)
            fabric.launch()
            place = folder / f"{strategy}-{workers}"
            place.mkdir(exist_ok=True)
            said = train(fabric, BATCH, place, Path(checkpoint) if checkpoint else None, several=strategy == "horovod")
            said |= {**loaded(fabric), **collectives(fabric), **run_refusals(fabric, strategy)}
            if fabric.is_global_zero:
                (place / "said.json").write_text(json.dumps(said))


def train(
    fabric: Any, batch: int, folder: Path, checkpoint: Path | None = None, several: bool = True
) -> dict[str, Any]:
    """Run every training; `several` models too."""
    regression(fabric, batch, folder / "regression.pt", saved=folder / "half.pt")
    seen = uneven(fabric, batch, folder / "uneven.pt")
    if checkpoint is not None:
        regression(fabric, batch, folder / "resumed.pt", loaded=checkpoint)
    if several:
        two_models(fabric, batch, folder / "two.pt")
    return {"seen": seen}


def points(length: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(length, 10, generator=generator)
    return TensorDataset(x, 3 * torch.sin(x.sum(1, keepdim=True)))


def network(*, outputs: int = 1) -> torch.nn.Module:
    layers = [torch.nn.Linear(10, 32), torch.nn.GELU(), torch.nn.Linear(32, 32), torch.nn.GELU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(32, outputs))


def loss_of(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.mse_loss(output, target)


def regression(fabric: Any, batch: int, result: Path, saved: Path | None = None, loaded: Path | None = None) -> None:
    """Accumulate, clip, and evaluate in between; with AdamW."""
    torch.manual_seed(0)
    with fabric.init_module():
        plain = network()
    model, optimizer = fabric.setup(plain, torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.1))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 20, gamma=0.5)
    step = 0
    if loaded is not None:
        state = {"model": model, "optimizer": optimizer, "step": 0}
        fabric.load(loaded, state)
        step = state["step"]
    loader, evaluated = fabric.setup_dataloaders(
        DataLoader(points(LENGTH), batch_size=batch), DataLoader(points(EVALUATED), batch_size=batch)
    )
    assert len(loader.dataset) == LENGTH
    while step < STEPS:
        for number, (x, y) in enumerate(loader, 1):
            updates = number % ACCUMULATE == 0 or number == len(loader)
            with fabric.no_backward_sync(model, enabled=not updates):
                fabric.backward(loss_of(model(x), y) / ACCUMULATE, model=model)
            if not updates:
                continue
            fabric.clip_gradients(model, optimizer, max_norm=0.5)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            step += 1
            if step == STEPS // 2:
                with torch.no_grad():
                    for x, y in evaluated:
                        loss_of(model(x), y)
                if saved is not None:
                    fabric.save(saved, {"model": model, "optimizer": optimizer, "step": step})
            if step == STEPS:
                break
    fabric.save(result, {"model": model, "optimizer": optimizer, "step": step})


class Scaled(torch.nn.Module):
    """Takes a keyword, returns a dict, and counts its samples in a buffer."""

    seen: torch.Tensor
    gain: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.network = network()
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.register_buffer("gain", torch.full((), 0.9))  # backward looks at it

    def forward(self, x: torch.Tensor, *, scale: float) -> dict[str, torch.Tensor]:
        if self.training:
            self.seen += 1
        return {"output": self.network(x * scale) * self.gain}


def uneven(fabric: Any, batch: int, result: Path) -> Any:
    """Train on epochs whose last batch has a single sample, by two forward passes before each backward.

    Returns how many batches each worker's model has seen.
    """
    torch.manual_seed(0)
    plain = Scaled()
    model, optimizer = fabric.setup(plain, torch.optim.SGD(plain.parameters(), lr=0.02, momentum=0.9))
    loader = fabric.setup_dataloaders(DataLoader(points(4 * 12 + 1), batch_size=batch))
    for _ in range(10):
        for x, y in loader:
            outputs = [model(x, scale=scale)["output"] for scale in (1.0, 0.5)]
            fabric.backward(sum(loss_of(output, y) for output in outputs), model=model)
            optimizer.step()
            optimizer.zero_grad()
    fabric.save(result, {"model": model})
    return fabric.all_gather(plain.seen).tolist()


def two_models(fabric: Any, batch: int, result: Path) -> None:
    """Train two models with one optimizer each, on losses that depend on both; set up one by one."""
    torch.manual_seed(0)
    encoder, decoder = (fabric.setup_module(network(outputs=10)) for _ in range(2))
    first = fabric.setup_optimizers(torch.optim.SGD(encoder.parameters(), lr=0.05, momentum=0.9))
    both = fabric.setup_optimizers(torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3))
    loader = fabric.setup_dataloaders(DataLoader(points(LENGTH), batch_size=batch))
    for x, _ in loader:
        for optimizer, forward in ((first, encoder), (both, lambda x: decoder(encoder(x)))):
            fabric.backward(loss_of(forward(x), x))
            fabric.clip_gradients(encoder, optimizer, clip_val=0.05)
            optimizer.step()
            first.zero_grad()
            both.zero_grad()
    fabric.save(result, {"model": torch.nn.ModuleList([encoder.module, decoder.module])})


def loaded(fabric: Any) -> dict[str, Any]:
    """Return the samples that the workers load, for each way to choose their order."""
    fabric.seed_everything(7 + fabric.global_rank)  # other noise on each worker
    numbers = TensorDataset(torch.arange(23))
    own = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    of_own = torch.utils.data.BatchSampler(own, 3, drop_last=False)
    loaders: dict[str, tuple[DataLoader[Any], bool]] = {
        "shuffled": (DataLoader(numbers, batch_size=2, shuffle=True), True),
        "dropping": (DataLoader(numbers, batch_size=2, shuffle=True, drop_last=True), True),
        "own": (DataLoader(numbers, batch_size=2, sampler=own), True),
        "own batches": (
            DataLoader(numbers, batch_sampler=type("Own", (torch.utils.data.BatchSampler,), {})(own, 3, False)),
            True,
        ),
        "all": (DataLoader(numbers, batch_sampler=of_own), False),
    }
    found: dict[str, Any] = {}
    for name, (loader, shared) in loaders.items():
        mine = fabric.setup_dataloaders(loader, use_distributed_sampler=shared)
        with torch.no_grad():
            epochs = [[int(n) for (batch,) in mine for n in batch] for _ in range(2)]
        gathered: list[Any] = [None] * fabric.world_size
        torch.distributed.all_gather_object(gathered, epochs)
        found[name] = [[part[epoch] for part in gathered] for epoch in range(2)]
    return {"loaded": found}


def collectives(fabric: Any) -> dict[str, Any]:
    rank = fabric.global_rank
    fabric.barrier()
    return {
        "sum": float(fabric.all_reduce(torch.tensor(float(rank)), reduce_op="sum")),
        "mean": float(fabric.all_reduce(torch.tensor(float(rank)))),
        "gathered": fabric.all_gather(torch.tensor([rank])).tolist(),
        "from the last": fabric.broadcast({"rank": rank}, src=fabric.world_size - 1),
    }


def run_refusals(fabric: Any, strategy: str) -> dict[str, Any]:
    """Return the errors for uses that the engine does not support."""
    x, y = points(4).tensors
    said: dict[str, str] = {}
    if strategy == "horovod":
        model = fabric.setup(network())
        said["no optimizer"] = refused(lambda: fabric.backward(loss_of(model(x), y)))
        stranger = torch.optim.SGD(network().parameters(), lr=0.1)
        said["stranger"] = refused(lambda: fabric.setup_optimizers(stranger))
        numbers = TensorDataset(torch.arange(8 + fabric.global_rank))
        said["lengths"] = refused(lambda: fabric.setup_dataloaders(DataLoader(numbers, batch_size=2)))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            # It is never read: a fork might hang.
            fabric.setup_dataloaders(DataLoader(points(8), batch_size=2, num_workers=1))
        said["forks"] = str(sum("forks its 1 process(es)" in str(warning.message) for warning in caught))
        return said | {"kept": str(kept(fabric))}
    plain = network()
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (plain[0], plain[2])]  # type: ignore[index]
    said["two optimizers"] = refused(lambda: fabric.setup(plain, *optimizers))
    model, optimizer = fabric.setup(plain, torch.optim.SGD(plain.parameters(), lr=0.1))
    other = network()
    said["two models"] = refused(lambda: fabric.setup(other, torch.optim.SGD(other.parameters(), lr=0.1)))
    said["clip_val"] = refused(lambda: fabric.clip_gradients(model, optimizer, clip_val=1.0))
    said["norm_type"] = refused(lambda: fabric.clip_gradients(model, optimizer, max_norm=1.0, norm_type=1))
    output = model(x)
    fabric.backward(output.mean(), model=model)
    said["dropped"] = refused(optimizer.zero_grad)
    said["second backward"] = refused(lambda: fabric.backward(loss_of(output, y), model=model))
    optimizer.step()
    said["no zero_grad"] = refused(lambda: fabric.backward(loss_of(model(x), y), model=model))
    untrained = fabric.setup(network())
    with torch.no_grad():
        alike = fabric.all_gather(untrained(x))
    said["inference"] = str(bool((alike == alike[0]).all()))
    return said


def kept(fabric: Any) -> int:
    """Return how many of several models, tried in a row, are still in memory."""
    tried = []
    for _ in range(3):
        plain = network()
        tried.append(weakref.ref(plain))
        fabric.setup(plain, torch.optim.SGD(plain.parameters(), lr=0.1))
        del plain
        gc.collect()
    return sum(known() is not None for known in tried[:-1])


def refused(use: Callable[[], Any]) -> str:
    try:
        use()
    except FarandoleError as error:
        return str(error)
    return "nothing"


def leave(fabric: Any, way: str, who: str) -> None:
    """Leave the training in one of several ways, on one worker or on all."""
    plain = network()
    model, optimizer = fabric.setup(plain, torch.optim.SGD(plain.parameters(), lr=0.1))
    x, y = points(4).tensors
    for step in range(1000):
        if step == 3 and who in ("all", str(fabric.global_rank)):
            print("FAULT\n", end="", flush=True)
            if way == "raise":
                raise RuntimeError("a worker was told to fail")
            if way == "term":
                os.kill(os.getpid(), signal.SIGTERM)
            if way.startswith("exit"):
                sys.exit(int(way.removeprefix("exit")))
            return
        fabric.backward(loss_of(model(x), y))
        optimizer.step()
        optimizer.zero_grad()


def one_worker() -> None:
    """Print the order in which one worker loads, and the errors raised before others are started."""
    strategies = farandole.plugins.lightning
    cpu = {"accelerator": "cpu", "devices": 2}
    used = strategies.FabricHorovodStrategy()
    Fabric(strategy=used, **cpu)
    said = {
        "used": refused(lambda: Fabric(strategy=used, **cpu)),
        "bf16-true": refused(lambda: Fabric(strategy="horovod", precision="bf16-true", **cpu)),
        "zero in bf16-true": refused(lambda: Fabric(strategy="deepspeed_zero_2", precision="bf16-true", **cpu)),
        "stage": refused(lambda: strategies.FabricDeepSpeedStrategy(stage=4)),
        "option": refused(lambda: Fabric(strategy=strategies.FabricHorovodStrategy(num_groups=-1), **cpu)),
    }
    with environ(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", LOCAL_WORLD_SIZE="2", MASTER_ADDR="::1", MASTER_PORT="1"):
        said["devices"] = refused(lambda: Fabric(strategy="horovod", accelerator="cpu", devices=3))
        said["num_nodes"] = refused(lambda: Fabric(strategy="horovod", accelerator="cpu", devices=2, num_nodes=4))
    fabric: Any = Fabric(strategy="horovod", accelerator="cpu", devices=1)
    fabric.launch()
    fabric.seed_everything(7, verbose=False)
    loader = fabric.setup_dataloaders(DataLoader(TensorDataset(torch.arange(23)), batch_size=2, shuffle=True))
    print(json.dumps({**said, "order": [[int(n) for (batch,) in loader for n in batch] for _ in range(2)]}))


@contextlib.contextmanager
def environ(**variables: str) -> Iterator[None]:
    os.environ.update(variables)
    yield
    for name in variables:
        del os.environ[name]


if __name__ == "__main__":
    main()
