"""One worker that reads loaders which are not split: all workers refuse the same.

python unshared_program.py FOLDER
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from farandole.adapters import Callback, DataError, OptionError, StepRecord, detect_launch
from farandole.adapters.torch.strategy import TorchStrategy
from farandole.plugins.launch.job import watch_stacks
from farandole.plugins.lightning import LightningCallback, job
from farandole.plugins.lightning.unshared import watch


class Watcher(Callback):
    watches = frozenset({"data"})

    def __init__(self) -> None:
        self.records: list[StepRecord] = []

    def on_step_end(self, step: StepRecord) -> None:
        self.records.append(step)


class Stream(IterableDataset[torch.Tensor]):
    """Counts from `first` to `end` in steps of `step`."""

    def __init__(self, first: int, end: int, step: int = 1) -> None:
        self.span = range(first, end, step)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (torch.tensor([float(number)]) for number in self.span)


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[float] = []
        self.warned: list[list[str]] = []

    def on_train_start(self) -> None:
        """Set up a loader that forks, and one that does not, and read neither: a fork might hang."""
        strategy, data = self.trainer.strategy, torch.zeros(8)
        for context in (None, "spawn"):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                strategy.process_dataloader(DataLoader(data, 2, num_workers=1, multiprocessing_context=context))
            self.warned.append([str(warning.message) for warning in caught])

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.seen += batch.flatten().tolist()
        return (self.weight - batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def read(adapter: TorchStrategy, dataset: Any, **options: Any) -> str:
    """Return the error of reading a loader to its end, or an empty text."""
    try:
        for _ in watch(DataLoader(dataset, 2), adapter, training=True, **options):
            pass
    except DataError as error:
        return str(error)
    return ""


def fit(loader: Any, **options: Any) -> tuple[list[float], float, list[list[str]]]:
    """Return what this worker trained on, the weight, and the warnings for loaders that fork or spawn."""
    module = Module()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(strategy="horovod", accelerator="cpu", max_epochs=1, **quiet, **options)
    trainer.fit(module, loader)
    return module.seen, float(module.weight.detach()), module.warned


def main(folder: Path) -> None:
    watch_stacks()
    found: dict[str, Any] = {}
    rank = detect_launch().worker.rank
    watcher = Watcher()
    found["shared by itself"] = fit(DataLoader(Stream(rank, 12, 2), 2), callbacks=[LightningCallback(watcher)])
    found["fetches"] = [sum(phase.name == "data" for phase in record.phases) for record in watcher.records]
    data = TensorDataset(torch.arange(10.0).reshape(-1, 1))
    whole = DataLoader(Rows(data), 2, sampler=DistributedSampler(data, 2, rank, shuffle=False))
    found["sampler by rank"] = fit(whole)
    found["left alone"] = fit(DataLoader(Rows(data), 2), use_distributed_sampler=False)
    (joined,) = job._joined
    found["copies"] = read(joined.strategy, Stream(0, 12), refuse_copies=True)
    found["copies that are meant"] = read(joined.strategy, Stream(0, 12), refuse_copies=False)
    found["other ends"] = read(joined.strategy, Stream(rank, 8 + 4 * rank), refuse_copies=True)
    found["other lengths"] = read(joined.strategy, torch.zeros(8 + 4 * rank), refuse_copies=False)
    try:
        fit(whole, callbacks=[LightningCallback(Watcher())] if rank == 0 else [])
    except OptionError as error:
        found["other callbacks"] = str(error)
    (folder / f"found-{rank}.json").write_text(json.dumps(found))


class Rows(torch.utils.data.Dataset[torch.Tensor]):
    """The tensors of a TensorDataset with one column, without the tuple."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.data[index][0]

    def __len__(self) -> int:
        return len(self.data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
