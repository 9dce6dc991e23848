"""Trainings with Lightning, one after the other, in which one worker fails as the arguments say.

python fault_program.py raise | exit0 | exit1 | kill | term --strategy horovod --devices 2 all:train 1:train 0:validate

A training is named by the rank that breaks in it, or "all", and where. Where all break, and where one is asked to end,
the workers go on with the next training. The exception's checkpoints go into the folder `--save`, named by the
training.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader, TensorDataset

from farandole.adapters import Callback, Progress
from farandole.plugins.launch.job import watch_stacks
from farandole.plugins.lightning import LightningCallback


class Module(pl.LightningModule):
    def __init__(self, fault: str, rank: int | None, where: str, group: bool) -> None:
        super().__init__()
        self.fault = fault
        self.rank = rank
        self.where = where
        self.group = group
        self.layer = torch.nn.Linear(4, 1)

    def break_down(self, where: str, batch_index: int) -> None:
        if (where, batch_index) == (self.where, 3) and self.rank in (None, self.global_rank):
            print("FAULT\n", end="", flush=True)
            if self.fault == "raise":
                raise ValueError("the mistake in the module")
            if self.fault.startswith("exit"):
                sys.exit(int(self.fault.removeprefix("exit")))
            if self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "term":
                (os.killpg if self.group else os.kill)(0 if self.group else os.getpid(), signal.SIGTERM)

    def training_step(self, batch: list[torch.Tensor], batch_index: int) -> torch.Tensor:
        self.break_down("train", batch_index)
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch: list[torch.Tensor], batch_index: int) -> None:
        self.break_down("validate", batch_index)

    def test_step(self, batch: list[torch.Tensor], batch_index: int) -> None:
        self.break_down("test", batch_index)
        self.log("loss", self.layer(batch[0]).square().mean(), sync_dist=True, on_step=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


class Breaks(Callback):
    """A farandole callback that fails as the module would."""

    def __init__(self, module: Module) -> None:
        self.module = module

    def on_step_begin(self, progress: Progress) -> None:
        self.module.break_down("callback", progress.step - 1)


class End(pl.Callback):
    """Prints after which step of which training a worker was ended, and why."""

    def __init__(self, training: str) -> None:
        self.training = training

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        name = type(exception).__name__
        said = f"{self.training}: rank {trainer.global_rank} {name} after {trainer.global_step}\n"
        print(said, end="", flush=True)


def saves(folder: Path, training: str) -> list[pl.Callback]:
    """Return both of Lightning's ways to save when an exception is raised."""
    name = training.replace(":", "-")
    return [
        OnExceptionCheckpoint(folder, filename=f"{name}-callback"),
        ModelCheckpoint(folder, filename=f"{name}-model", every_n_train_steps=1000, save_on_exception=True),
    ]


def main() -> None:
    watch_stacks()
    arguments = argparse.ArgumentParser()
    arguments.add_argument("fault", choices=["raise", "exit0", "exit1", "kill", "term"])
    arguments.add_argument("trainings", nargs="*", default=["1:train"])
    arguments.add_argument("--strategy", default="horovod")
    arguments.add_argument("--devices", default="auto")
    arguments.add_argument("--num-nodes", type=int, default=1)
    arguments.add_argument("--save", type=Path)
    arguments.add_argument("--loader-processes", type=int, default=0, help="of the first training")
    options = arguments.parse_args()
    quiet = {"logger": False, "enable_checkpointing": options.save is not None, "enable_progress_bar": False}
    workers = {"strategy": options.strategy, "devices": options.devices, "num_nodes": options.num_nodes}
    for number, training in enumerate(options.trainings):
        rank, where = training.split(":")
        processes = 0 if number else options.loader_processes
        module = Module(options.fault, None if rank == "all" else int(rank), where, group=processes > 0)
        own = [End(training), LightningCallback(Breaks(module))]
        trainer = pl.Trainer(
            **workers,
            accelerator="cpu",
            max_epochs=50 if where in ("train", "callback") else 1,
            num_sanity_val_steps=0,
            callbacks=[*own, *(saves(options.save, training) if options.save else [])],
            **quiet,
        )
        data = TensorDataset(torch.ones(64, 4))
        loader = DataLoader(data, 2, num_workers=processes, multiprocessing_context="fork" if processes else None)
        try:
            trainer.fit(module, loader, DataLoader(data, 2))
            if where != "test":
                print("TRAINED", flush=True)
        except SIGTERMException:
            pass
        except (ValueError, SystemExit) as error:
            if rank != "all" or error.args not in (("the mistake in the module",), (0,), (1,)):
                raise
        if where == "test":
            trainer.test(module, loader)
            print("TRAINED", flush=True)


if __name__ == "__main__":
    main()
