"""Parameters that begin to train later, or continue in another module."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import callbacks

from .setting import ByHand, Net, Numbers, Setting, data, scenario, weights


@scenario
def finetuned(setting: Setting) -> Numbers:
    """A part of the model is frozen at first, and given to the optimizer later."""

    class Finetuning(callbacks.BaseFinetuning):
        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze(pl_module.layers[0])

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.layers[0], optimizer, lr=0.02)

    class Frozen(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.01)

    trainer = setting.trainer(callbacks=[Finetuning()], accumulate_grad_batches=2)
    trainer.fit(Frozen(), setting.loader(data()))
    return weights(trainer)


@scenario
def unfrozen(setting: Setting) -> Numbers:
    """The same, by hand and in the optimizer from the start."""

    class Unfreezing(Net):
        def __init__(self) -> None:
            super().__init__()
            self.layers[0].requires_grad_(False)

        def on_train_epoch_start(self) -> None:
            self.layers[0].requires_grad_(self.current_epoch > 0)

    trainer = setting.trainer()
    trainer.fit(Unfreezing(), setting.loader(data()))
    return weights(trainer)


@scenario
def unfrozen_by_hand(setting: Setting) -> Numbers:
    """Two optimizers, of which one has nothing to train at first."""

    class Two(ByHand):
        def __init__(self) -> None:
            super().__init__()
            self.layers[0].requires_grad_(False)

        def on_train_epoch_start(self) -> None:
            self.layers[0].requires_grad_(self.current_epoch > 0)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizers: Any = self.optimizers()
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            for optimizer in optimizers:
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [torch.optim.AdamW(self.layers[part].parameters(), lr=0.01) for part in (0, 2)]

    trainer = setting.trainer()
    trainer.fit(Two(), setting.loader(data()))
    return weights(trainer)


@scenario
def taken_over(setting: Setting) -> Numbers:
    """A part of a trained module continues in another one; in between its gradients are not reduced."""
    first = Net()
    setting.trainer(max_epochs=1).fit(first, setting.loader(data()))
    if setting.strategy in ("auto", "horovod"):
        for _ in range(2):
            first.loss(data()[:7]).backward()
        first.zero_grad()
    second = Net()
    second.layers[0] = first.layers[0]
    trainer = setting.trainer(max_epochs=2)
    trainer.fit(second, setting.loader(data()))
    return weights(trainer)
