"""Manual optimization."""

from __future__ import annotations

from typing import Any

import torch

from .setting import ByHand, Numbers, Setting, data, scenario, weights


@scenario
def manual(setting: Setting) -> Numbers:
    """Manual optimization: accumulated by hand, clipped, with the schedule stepped by hand."""

    class Manual(ByHand):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer: Any = self.optimizers()
            self.manual_backward(self.loss(batch) / 2)
            if batch_idx % 2 == 1 or self.trainer.is_last_batch:
                self.clip_gradients(optimizer, gradient_clip_val=0.3, gradient_clip_algorithm="norm")
                optimizer.step()
                optimizer.zero_grad()

    trainer = setting.trainer()
    trainer.fit(Manual(), setting.loader(data()))
    return {**weights(trainer), "steps": trainer.global_step}


@scenario
def bare_optimizer(setting: Setting) -> Numbers:
    """Manual optimization by the optimizer itself, without Lightning's wrapper."""

    class Bare(ByHand):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer: Any = self.optimizers(use_pl_optimizer=False)
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    trainer = setting.trainer(max_epochs=1)
    trainer.fit(Bare(), setting.loader(data()))
    return weights(trainer)


@scenario
def two_optimizers(setting: Setting) -> Numbers:
    """Two alternating optimizers, whose backward passes leave gradients in each other's parameters."""

    class Two(ByHand):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            first, second = self.optimizers()  # type: ignore[misc]
            for optimizer in (first, second):
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [
                torch.optim.AdamW(self.layers[0].parameters(), lr=0.01),
                torch.optim.SGD(self.layers[2].parameters(), lr=0.1, momentum=0.9),
            ]

    trainer = setting.trainer()
    trainer.fit(Two(), setting.loader(data()))
    return weights(trainer)
