"""For scenarios: a `Setting`, which creates their Trainers and DataLoaders, data, and a model."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torchmetrics
from torch.utils.data import DataLoader, TensorDataset

from farandole.adapters import Callback, Progress, Run, StepRecord
from farandole.adapters.callback import PHASES

Numbers = dict[str, Any]
SCENARIOS: dict[str, Callable[[Setting], Numbers]] = {}
LENGTH, HELD_OUT = 103, 29

warnings.filterwarnings("ignore", ".*does not have many workers.*")


def scenario(run: Callable[[Setting], Numbers]) -> Callable[[Setting], Numbers]:
    """Register a scenario under its name."""
    SCENARIOS[run.__name__] = run
    return run


class Setting:
    """Where a scenario runs; `strategy` is "auto" in the stock process."""

    def __init__(self, strategy: str, workers: int, folder: Path, stock: Path, other: Path) -> None:
        self.strategy = strategy
        self.workers = workers
        self.folder = folder
        self.stock = stock  # the stock process's folder of this scenario
        self.other = other  # the folder of another strategy or number of workers
        self.is_stock = strategy == "auto"

    def places(self) -> dict[str, Path]:
        """Return the folders with checkpoints of this job, of the stock process, and of another job."""
        return {"own": self.folder, "stock": self.stock, "other": self.other}

    def trainer(self, **options: Any) -> pl.Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        options = {"max_epochs": 3, "enable_checkpointing": False, **quiet, **options}
        return pl.Trainer(strategy=self.strategy, accelerator="cpu", default_root_dir=self.folder, **options)

    def loader(self, data: Any, batch_size: int = 12, **options: Any) -> DataLoader[Any]:
        """A loader whose batches have `batch_size` samples over all workers: 12 is what 2, 3 and 4 workers divide."""
        return DataLoader(data, batch_size=batch_size if self.is_stock else batch_size // self.workers, **options)


def data(length: int = LENGTH, seed: int = 1) -> TensorDataset:
    stream = torch.Generator().manual_seed(seed)
    features = torch.randn(length, 6, generator=stream)
    noise = torch.randn(length, generator=stream)
    return TensorDataset(features, (features.sum(1) + noise > 0).long())


class Net(pl.LightningModule):
    """A smooth classifier that logs its loss and its accuracy."""

    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.layers = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.GELU(), torch.nn.Linear(16, 2))
        self.register_buffer("scale", torch.tensor([1.5, 0.5]))  # backward looks at it
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(2, average="micro")
        self.seen: list[float] = []

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layers(features) * self.scale
        return outputs

    def loss(self, batch: Any) -> torch.Tensor:
        features, classes = batch
        return torch.nn.functional.cross_entropy(self(features), classes)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)
        self.accuracy(self(batch[0]), batch[1])
        self.log("val_accuracy", self.accuracy)

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)


class Watcher(Callback):
    """Watches everything, counts steps over restarts, and begins with half of the last layer's weights."""

    watches = frozenset(PHASES)

    def __init__(self, halves: bool = False) -> None:
        self.halves = halves
        self.steps = 0
        self.ahead: list[Progress] = []
        self.records: list[StepRecord] = []
        self.ended: list[BaseException | None] = []

    def on_prepare(self, model: Any, run: Run) -> None:
        assert not run.strategy.gather(0)[run.strategy.worker.rank]
        if self.halves:
            model.layers[2].weight.data /= 2

    def on_step_begin(self, progress: Progress) -> None:
        self.ahead.append(progress)

    def on_step_end(self, step: StepRecord) -> None:
        self.steps += 1
        self.records.append(step)

    def on_end(self, error: BaseException | None) -> None:
        self.ended.append(error)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]

    def check(self, micros: list[int], fetched: bool, waited: bool = False) -> None:
        """Check records of steps with this many micro-batches; Lightning's own strategies have no phase "data"."""
        assert self.ended == [None]
        assert self.ahead == [record.progress for record in self.records]
        assert all((record.samples is None) != fetched for record in self.records)
        for record, count in zip(self.records, micros, strict=True):
            expected: list[tuple[str, int | None]] = []
            for micro in range(count):
                expected += [("data", None)] if fetched else []
                expected += [("forward", micro), ("backward", micro)]
            own = [phase for phase in record.phases if phase.name != "wait"]
            assert (len(own) < len(record.phases)) == waited
            assert {(phase.name, phase.micro) for phase in own} == {*expected, ("update", None)}
            phases = [key for key, _ in itertools.groupby(own, lambda phase: (phase.name, phase.micro))]
            assert [key for key in phases if key[0] != "update"] == expected
            times = [at for phase in record.phases for at in (phase.start, phase.end)]
            assert times == sorted(times), "times of phases inside of others are exclusive"


class ByHand(Net):
    """The same, for manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


def weights(trainer: pl.Trainer) -> Numbers:
    """Return the trained weights by name, whole; only rank 0 has them."""
    state = trainer.strategy.lightning_module_state_dict()
    return {name: value.detach().numpy().copy() for name, value in state.items()} if trainer.is_global_zero else {}


def metrics(trainer: pl.Trainer) -> Numbers:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
