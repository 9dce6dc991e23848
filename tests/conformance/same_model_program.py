"""One model under one strategy after the other: each continues as plain code does, with earlier trainings kept."""

from __future__ import annotations

import torch
from torch import nn

from farandole.adapters import create_strategy
from farandole.plugins.conformance.reentry import DONE

DATA = torch.linspace(-1, 1, 64).reshape(16, 4)


def loss_fn(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def main() -> None:
    plain, model = net(), net()
    plain_optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    kept = []
    for name in ("horovod", "ddp", "horovod", "deepspeed_zero_2", "ddp"):
        with create_strategy(name) as strategy:
            kept.append(strategy.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), loss_fn))
            for batch in kept[-1].batches(DATA, 8, epochs=2, shuffle=False):
                expected = loss_fn(plain, DATA[8:] if batch.progress.step == 0 else DATA[:8])
                plain_optimizer.zero_grad()
                expected.backward()
                plain_optimizer.step()
                assert abs(float(kept[-1].step(batch)) - expected.item()) < 1e-5, name
    print(DONE, flush=True)


if __name__ == "__main__":
    main()
