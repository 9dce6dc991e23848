"""The training of plain_deepspeed.py under any strategy: training_beside_plain.py STRATEGY LOAD SAVE LOSSES.

An empty LOAD begins it, and an empty SAVE saves nothing. Else a checkpoint is left after the first third.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from plain_deepspeed import BATCH, CLIP, FEATURES, STEPS, TARGETS, build
from torch.nn import functional

from farandole.adapters import Progress, create_strategy


def main(name: str, load: str, save: str, losses_file: Path) -> None:
    """Train as one worker of several."""
    with create_strategy(name, device="cpu") as strategy, strategy.scope():
        model, optimizer, scheduler = build()
        training = strategy.prepare(
            model, optimizer, lambda m, b: functional.mse_loss(m(b[0]), b[1]), scheduler, clip_norm=CLIP
        )
        model.seen[0] = 9  # the first model's buffer, which a checkpoint stores
        start = training.load(load) if load else Progress()
        assert model.seen.tolist() == [9, 1, 2]
        begun = 4 * start.epoch + start.step
        losses = []
        batches = training.batches((FEATURES, TARGETS), BATCH, epochs=3 * STEPS, start=start, shuffle=False)
        for step, batch in zip(range(begun, 3 * STEPS), batches, strict=False):
            losses.append(float(training.step(batch)))
            if save and step == STEPS - 1:
                training.save(save, batch.progress)
        if strategy.worker.is_main:
            losses_file.write_text(json.dumps(losses))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
