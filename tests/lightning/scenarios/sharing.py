"""Loading: short shares, orders, samplers, parts of epochs, predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import callbacks
from torch.utils.data import DataLoader, WeightedRandomSampler

from .setting import HELD_OUT, LENGTH, Net, Numbers, Setting, data, metrics, scenario, weights


@scenario
def few_held_out(setting: Setting) -> Numbers:
    """A last batch with fewer samples than workers, in training and in evaluation."""
    trainer = setting.trainer(max_epochs=2)
    trainer.fit(Net(), setting.loader(data(97)), setting.loader(data(13, 3)))
    found = {**weights(trainer), **metrics(trainer)}
    nothing = setting.loader(data(0))
    return {**found, "of_nothing": len(trainer.validate(trainer.lightning_module, nothing, verbose=False))}


@scenario
def shuffled(setting: Setting) -> Numbers:
    """Our order is the same for any number of workers; stock Lightning gets it as a sampler."""
    train = data()
    if setting.is_stock:
        trainer = setting.trainer()
        trainer.fit(Net(), setting.loader(train, sampler=_OurOrder(len(train))))
    else:
        trainer = setting.trainer()
        trainer.fit(Net(), setting.loader(train, shuffle=True))
    return weights(trainer)


class _OurOrder(torch.utils.data.Sampler[int]):
    """The documented order of an epoch, written out once more."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Any:
        stream = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([0, self.epoch])))
        return iter(stream.permutation(self.length).tolist())

    def __len__(self) -> int:
        return self.length


@scenario
def own_samplers(setting: Setting) -> Numbers:
    """A user's random sampler, with one draw for all workers, and a batch sampler, whose batches stay whole."""
    counts = torch.linspace(0.1, 1.0, LENGTH)
    # Other seeds on other ranks: all use rank 0's draw.
    rank = 0 if setting.is_stock else torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    sampler = WeightedRandomSampler(counts, 64, generator=torch.Generator().manual_seed(4 + rank))
    trainer = setting.trainer()
    trainer.fit(Net(), setting.loader(data(), sampler=sampler))
    found = weights(trainer)
    batches = _Halves(LENGTH, 12 if setting.is_stock else 12 // setting.workers, setting)
    trainer = setting.trainer()
    trainer.fit(Net(), DataLoader(data(), batch_sampler=batches))
    return {**found, **{f"batches.{name}": value for name, value in weights(trainer).items()}}


class _Halves(torch.utils.data.Sampler[Any]):
    """Batches of neighbours, without the rest."""

    def __init__(self, length: int, size: int, setting: Setting) -> None:
        self.batches = [list(range(start, start + size)) for start in range(0, length - size, size)]
        whole = len(self.batches) - len(self.batches) % (1 if setting.is_stock else setting.workers)
        self.batches = self.batches[: (LENGTH // 12) * (1 if setting.is_stock else setting.workers)][:whole]

    def __iter__(self) -> Any:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


@scenario
def parts_of_epochs(setting: Setting) -> Numbers:
    """Fewer batches than there are, validation in the middle of an epoch, and two loaders at once."""

    class Loading(Net):
        def train_dataloader(self) -> Any:
            return DataLoader(data(), 12 if setting.is_stock else 12 // setting.workers, False)

    trainer = setting.trainer(limit_train_batches=7, val_check_interval=3, max_epochs=2)
    trainer.fit(Loading(), val_dataloaders=setting.loader(data(HELD_OUT, 3)))
    found = {**weights(trainer), **metrics(trainer)}

    class Both(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch["a"]) + self.loss(batch["b"])

    trainer = setting.trainer(max_epochs=2)
    trainer.fit(Both(), {"a": setting.loader(data(96)), "b": setting.loader(data(48, 5))})
    return {**found, **{f"both.{name}": value for name, value in weights(trainer).items()}}


@scenario
def predicted(setting: Setting) -> Numbers:
    """Each sample is predicted once, and a writer gets its index."""
    net, held_out = Net(), data(HELD_OUT, 3)
    writer = _Writer("epoch")
    trainer = setting.trainer(callbacks=[writer])
    predictions: Any = trainer.predict(net, setting.loader(held_out))
    indices = [index for batch in writer.indices for index in batch]
    own = {index: row.tolist() for index, row in zip(indices, torch.cat(predictions), strict=True)}
    gathered: list[Any] = [own]
    if not setting.is_stock:
        gathered = [None] * setting.workers
        torch.distributed.all_gather_object(gathered, own)
    together = [item for part in gathered for item in part.items()]
    trainer.validate(net, setting.loader(held_out), verbose=False)
    again: Any = trainer.predict(net, [trainer.val_dataloaders])  # ours, where it was shared out
    return {
        "count": len(together),
        "rows": np.array([row for _, row in sorted(together)]),
        "again": float(torch.equal(torch.cat(again), torch.cat(predictions))),
    }


class _Writer(callbacks.BasePredictionWriter):
    indices: Any = ()

    def write_on_epoch_end(self, trainer: Any, pl_module: Any, predictions: Any, batch_indices: Any) -> None:
        self.indices = batch_indices[0] if batch_indices and isinstance(batch_indices[0][0], list) else batch_indices
