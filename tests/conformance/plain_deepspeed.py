"""A training as a user of DeepSpeed writes it, without Farandole: plain_deepspeed.py STAGE LOAD SAVE LOSSES.

It goes on from a checkpoint, saves one of its own, trains as long again, and writes the losses of all its steps.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

STEPS, BATCH, CLIP = 6, 12, 0.5
FEATURES = torch.randn(4 * BATCH, 7, generator=torch.Generator().manual_seed(1))
TARGETS = FEATURES[:, :3].sin().sum(1, keepdim=True)


def build() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    """Return model, optimizer and scheduler; no size in the model is divided by 2 or 3."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(7, 11, bias=False), nn.LayerNorm(11), nn.GELU(), nn.Linear(11, 5), nn.GELU(), nn.Linear(5, 1)
    )
    model[3].weight.requires_grad_(False)
    model.register_buffer("seen", torch.arange(3.0))
    groups = [
        {"params": [*model[0].parameters(), *model[1].parameters()], "lr": 0.03},
        {"params": model[3].parameters()},
    ]
    optimizer = torch.optim.AdamW([*groups, {"params": model[5].parameters()}], lr=0.01, weight_decay=0.05)
    return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)


def main(stage: int, load: str, save: str, losses_file: Path) -> None:
    """Train as one worker of several."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled for 23 s
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    rank, workers = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    model, optimizer, scheduler = build()
    config = {
        "train_micro_batch_size_per_gpu": BATCH // workers,
        "gradient_clipping": CLIP,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage},
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=scheduler, config=config)
    path, _ = engine.load_checkpoint(load)
    assert path is not None
    assert engine.module.seen.tolist() == [9, 1, 2]

    losses = []
    for step in range(STEPS, 3 * STEPS):
        if step == 2 * STEPS:
            engine.save_checkpoint(save)
        rows = torch.arange(BATCH)[rank::workers] + BATCH * (step % 4)
        loss = functional.mse_loss(engine(FEATURES[rows]), TARGETS[rows])
        engine.backward(loss)
        engine.step()
        mean = loss.detach() / workers
        torch.distributed.all_reduce(mean)
        losses.append(mean.item())
    if rank == 0:
        losses_file.write_text(json.dumps(losses))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]))
