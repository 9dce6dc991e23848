"""Trainings with Lightning, one after the other, in which one worker breaks as it is told.

python fault_program.py raise | kill | term --strategy horovod --devices 2 1:train 0:validate

A training is named by the rank that breaks in it, and where. Who is asked to end while it trains goes on with the next.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader, TensorDataset

import farandole.plugins.lightning  # noqa: F401
from farandole.plugins.launch.job import watch_stacks


class Module(pl.LightningModule):
    def __init__(self, fault: str, rank: int, where: str) -> None:
        super().__init__()
        self.fault = fault
        self.rank = rank
        self.where = where
        self.layer = torch.nn.Linear(4, 1)

    def break_down(self, where: str, batch_index: int) -> None:
        if (where, batch_index) == (self.where, 3) and self.global_rank == self.rank:
            print("FAULT\n", end="", flush=True)
            if self.fault == "raise":
                raise ValueError("the mistake in the module")
            if self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "term":
                os.kill(os.getpid(), signal.SIGTERM)

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


class End(pl.Callback):
    """Says after which step of which training a worker was ended, and why."""

    def __init__(self, training: str) -> None:
        self.training = training

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        name = type(exception).__name__
        said = f"{self.training}: rank {trainer.global_rank} {name} after {trainer.global_step}\n"
        print(said, end="", flush=True)


def main() -> None:
    watch_stacks()
    arguments = argparse.ArgumentParser()
    arguments.add_argument("fault", choices=["raise", "kill", "term"])
    arguments.add_argument("trainings", nargs="*", default=["1:train"])
    arguments.add_argument("--strategy", default="horovod")
    arguments.add_argument("--devices", default="auto")
    arguments.add_argument("--num-nodes", type=int, default=1)
    options = arguments.parse_args()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    workers = {"strategy": options.strategy, "devices": options.devices, "num_nodes": options.num_nodes}
    for training in options.trainings:
        rank, where = training.split(":")
        trainer = pl.Trainer(
            **workers,
            accelerator="cpu",
            max_epochs=50 if where == "train" else 1,
            num_sanity_val_steps=0,
            callbacks=[End(training)],
            **quiet,
        )
        module = Module(options.fault, int(rank), where)
        loader = DataLoader(TensorDataset(torch.ones(64, 4)), 2)
        with contextlib.suppress(SIGTERMException):
            trainer.fit(module, loader, loader)
            if where != "test":
                print("TRAINED", flush=True)
        if where == "test":
            trainer.test(module, loader)
            print("TRAINED", flush=True)


if __name__ == "__main__":
    main()
