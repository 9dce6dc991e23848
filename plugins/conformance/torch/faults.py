"""One worker of a job that fails: `python -m ...conformance.torch.faults STRATEGY OPTIONS WHERE HOW FOLDER`.

One worker raises, or is killed, at WHERE; see `...conformance.faults`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ....adapters import Progress, create_strategy
from ...launch.job import watch_stacks
from ..faults import breaks, fail


class Fragile(nn.Module):
    """A model that can make its worker fail in forward, or when its state is saved or loaded."""

    def __init__(self, how: str, folder: Path) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.how, self.folder = how, folder
        self.breaks_in = ""

    def meet(self, where: str) -> None:
        """Fail here, if this is the place."""
        if self.breaks_in == where:
            fail(self.how, self.folder)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.meet("forward")
        output: torch.Tensor = self.layer(batch)
        return output

    def get_extra_state(self) -> dict[str, Any]:
        self.meet("save")
        return {}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.meet("load")


def main(name: str, options: str, where: str, how: str, folder: str) -> None:
    """Train, and make one worker fail."""
    watch_stacks()
    strategy = create_strategy(name, **json.loads(options))
    with strategy:
        with strategy.scope():
            model = Fragile(how, Path(folder))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            training = strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean())
        training.save(Path(folder) / "before", Progress())
        for batch in training.batches(torch.ones(64, 2), 8, epochs=2):
            float(training.step(batch))
            if batch.progress.step == 3 and breaks(strategy, where):
                model.breaks_in = where
        model.meet("collective")
        strategy.reduce(1.0)
        training.save(Path(folder) / "after", Progress())
        training.load(Path(folder) / "before")
    print("nothing broke")


if __name__ == "__main__":
    main(*sys.argv[1:])
