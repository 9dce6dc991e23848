"""Trainers one after the other in one program: `python trainers_program.py ROUNDS STRATEGY...`.

Lightning starts the second worker itself, where the program was started without a launcher.
"""

import sys
import warnings

import lightning.pytorch as pl
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

import farandole.plugins.lightning  # noqa: F401
from farandole.plugins.conformance.reentry import DONE, Check


def fit(strategy: str) -> str:
    trainer = pl.Trainer(
        strategy=strategy,
        devices=2,
        accelerator="cpu",
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    torch.manual_seed(1)
    trainer.fit(BoringModel())
    assert trainer.world_size == 2
    return f"{strategy}: {trainer.global_rank} after {trainer.global_step}"


def main(rounds: int, strategies: list[str]) -> None:
    warnings.filterwarnings("ignore")
    print(fit(strategies[0]), flush=True)  # the first Trainer sets the ranks for the second worker's process
    check = Check()
    for _ in range(rounds):
        for strategy in strategies:
            print(fit(strategy), flush=True)
        check.end_round()
    print(DONE, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
