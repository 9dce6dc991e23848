"""Ordinary Lightning programs whose numbers are compared: by one process of stock Lightning, and by several of ours.

A scenario gets a `Setting`, which makes Trainers and DataLoaders, and returns its numbers by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torchmetrics
from lightning.pytorch import callbacks
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

Numbers = dict[str, Any]
SCENARIOS: dict[str, Callable[[Setting], Numbers]] = {}
LENGTH, HELD_OUT = 103, 29


def scenario(run: Callable[[Setting], Numbers]) -> Callable[[Setting], Numbers]:
    SCENARIOS[run.__name__] = run
    return run


class Setting:
    """Where a scenario runs; `strategy` is "auto" in the stock process."""

    def __init__(self, strategy: str, workers: int, folder: Path, stock: Path, other: Path) -> None:
        self.strategy = strategy
        self.workers = workers
        self.folder = folder
        self.stock = stock  # what the stock process left in its own folder of this scenario
        self.other = other  # what workers of another strategy, or in another number, did
        self.is_stock = strategy == "auto"

    def places(self) -> dict[str, Path]:
        """Return the folders with checkpoints of this job, of the stock process, and of another job."""
        return {"own": self.folder, "stock": self.stock, "other": self.other}

    def trainer(self, **options: Any) -> pl.Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        options = {"max_epochs": 3, "enable_checkpointing": False, **quiet, **options}
        return pl.Trainer(strategy=self.strategy, accelerator="cpu", default_root_dir=self.folder, **options)

    def loader(self, data: Any, batch_size: int = 12, **options: Any) -> DataLoader[Any]:
        """A loader whose batches have `batch_size` samples over all workers: 12 is what 2, 3 and 4 workers divide."""
        return DataLoader(data, batch_size=batch_size if self.is_stock else batch_size // self.workers, **options)


def data(length: int = LENGTH, seed: int = 1) -> TensorDataset:
    stream = torch.Generator().manual_seed(seed)
    features = torch.randn(length, 6, generator=stream)
    noise = torch.randn(length, generator=stream)
    return TensorDataset(features, (features.sum(1) + noise > 0).long())


class Net(pl.LightningModule):
    """A smooth classifier that logs its loss and its accuracy."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.layers = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.GELU(), torch.nn.Linear(16, 2))
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(2, average="micro")
        self.seen: list[float] = []

    def loss(self, batch: Any) -> torch.Tensor:
        features, classes = batch
        return torch.nn.functional.cross_entropy(self.layers(features), classes)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)
        self.accuracy(self.layers(batch[0]), batch[1])
        self.log("val_accuracy", self.accuracy)

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layers(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)


def weights(trainer: pl.Trainer) -> Numbers:
    """Return the trained weights by name, whole; only rank 0 has them."""
    state = trainer.strategy.lightning_module_state_dict()
    return {name: value.detach().numpy().copy() for name, value in state.items()} if trainer.is_global_zero else {}


def metrics(trainer: pl.Trainer) -> Numbers:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@scenario
def logged(setting: Setting) -> Numbers:
    trainer = setting.trainer(gradient_clip_val=0.5, accumulate_grad_batches=4)
    train, held_out = setting.loader(data()), setting.loader(data(HELD_OUT, 3))
    trainer.fit(Net(), train, held_out)
    found = {**weights(trainer), **metrics(trainer)}
    tested = trainer.test(trainer.lightning_module, held_out, verbose=False)[0]
    return {**found, **{f"test_{name}": value for name, value in tested.items()}}


@scenario
def few_held_out(setting: Setting) -> Numbers:
    """A last batch with fewer samples than workers, in training and in evaluation."""
    trainer = setting.trainer(max_epochs=2)
    trainer.fit(Net(), setting.loader(data(97)), setting.loader(data(13, 3)))
    return {**weights(trainer), **metrics(trainer)}


@scenario
def shuffled(setting: Setting) -> Numbers:
    """Our order is the same for any number of workers; stock Lightning is given it as a sampler."""
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
    """A random sampler of the user's, the same draw on all workers, and a batch sampler, whose batches stay whole."""
    counts = torch.linspace(0.1, 1.0, LENGTH)
    # Other seeds on other ranks: what rank 0 draws counts for all.
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
def schedules(setting: Setting) -> Numbers:
    """A schedule by step and one by a metric, early stopping, and the best checkpoint tested."""

    class Scheduled(Net):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)
            return [optimizer], [
                {"scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20), "interval": "step"},
                {
                    "scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.05),
                    "monitor": "val_loss",
                },
            ]

    best = callbacks.ModelCheckpoint(setting.folder, "best", monitor="val_loss")
    stop = callbacks.EarlyStopping("val_loss", patience=1, min_delta=0.02)
    trainer = setting.trainer(max_epochs=8, enable_checkpointing=True, callbacks=[best, stop])
    train, held_out = setting.loader(data()), setting.loader(data(HELD_OUT, 3))
    trainer.fit(Scheduled(), train, held_out)
    found = {**weights(trainer), "steps": trainer.global_step, "stopped": stop.stopped_epoch}
    found["rate"] = trainer.optimizers[0].param_groups[0]["lr"]
    tested = trainer.test(ckpt_path="best", dataloaders=held_out, verbose=False)[0]
    return {**found, **{f"best_{name}": value for name, value in tested.items()}}


@scenario
def manual(setting: Setting) -> Numbers:
    """Manual optimization: accumulated by hand, clipped, with the schedule stepped by hand."""

    class Manual(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

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
    """Manual optimization by the optimizer itself, without what Lightning wraps it in."""

    class Bare(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

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
    """Two optimizers in turns, whose backward passes leave gradients in each other's parameters."""

    class Two(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

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


@scenario
def averaged(setting: Setting) -> Numbers:
    swa = callbacks.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=1)
    trainer = setting.trainer(max_epochs=4, callbacks=[swa])
    trainer.fit(Net(), setting.loader(data()))
    return weights(trainer)


@scenario
def scheduled_accumulation(setting: Setting) -> Numbers:
    growing = callbacks.GradientAccumulationScheduler({0: 1, 1: 3})
    trainer = setting.trainer(callbacks=[growing])
    trainer.fit(Net(), setting.loader(data()))
    return {**weights(trainer), "steps": trainer.global_step}


@scenario
def finetuned(setting: Setting) -> Numbers:
    """A part of the model that is frozen at first, and given to the optimizer later."""

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
def fitted_again(setting: Setting) -> Numbers:
    """The same module in the hands of a second Trainer, after an evaluation by the first."""
    net, train, held_out = Net(), setting.loader(data()), setting.loader(data(HELD_OUT, 3))
    trainer = setting.trainer(max_epochs=1)
    trainer.fit(net, train)
    found = {f"first_{name}": value for name, value in trainer.validate(net, held_out, verbose=False)[0].items()}
    trainer = setting.trainer(max_epochs=1)
    trainer.fit(net, train, held_out)
    return {**found, **weights(trainer), **metrics(trainer)}


@scenario
def resumed(setting: Setting) -> Numbers:
    """From the middle of an epoch: of a checkpoint of our own, and of one that stock Lightning wrote."""
    every = callbacks.ModelCheckpoint(setting.folder, "middle-{step}", every_n_train_steps=7, save_top_k=-1)

    class Estimating(Net):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = torch.nn.Linear(2, 2)  # trained by nobody, and not frozen either

        def configure_optimizers(self) -> Any:
            assert self.trainer.estimated_stepping_batches >= 7  # has Lightning make the loaders now
            return torch.optim.AdamW(self.layers.parameters(), lr=0.01, weight_decay=0.1)

    def fit(*checkpoints: Any, max_steps: int = -1, **options: Any) -> tuple[pl.Trainer, Numbers]:
        own: Any = {"callbacks": list(checkpoints), "enable_checkpointing": bool(checkpoints), "max_steps": max_steps}
        torch.manual_seed(3 if checkpoints else 4)
        trainer = setting.trainer(accumulate_grad_batches=2, **own)
        trainer.fit(Estimating(), setting.loader(data()), setting.loader(data(HELD_OUT, 3)), **options)
        return trainer, weights(trainer)

    _, whole = fit(every)
    if setting.is_stock:
        # Stock Lightning itself begins such an epoch anew: what counts is the run that was never interrupted.
        runs = ("whole", "own", "stock", "other", "stopped")
        return {f"{of}.{name}": value for of in runs for name, value in whole.items()}
    torch.manual_seed(3)
    stopped, _ = fit(callbacks.Callback(), max_steps=7)
    stopped.save_checkpoint(setting.folder / "stopped.ckpt")
    places = {of: place / "middle-step=7.ckpt" for of, place in setting.places().items()}
    places["stopped"] = setting.folder / "stopped.ckpt"
    runs = {"whole": whole} | {of: fit(ckpt_path=place)[1] for of, place in places.items()}
    return {f"{of}.{name}": value for of, found in runs.items() for name, value in found.items()}


@scenario
def resumed_in_larger_batches(setting: Setting) -> Numbers:
    """An epoch that goes on in batches of another size still has each sample once."""
    seen: dict[int, list[Any]] = {}

    class Noting(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.setdefault(self.current_epoch, []).extend(batch[0][:, 0].tolist())
            return super().training_step(batch, batch_idx)

    every = callbacks.ModelCheckpoint(setting.folder, "middle-{step}", every_n_train_steps=4, save_top_k=1)
    trainer = setting.trainer(max_steps=4, callbacks=[every], enable_checkpointing=True)
    trainer.fit(Noting(), setting.loader(data(), shuffle=True))
    trainer = setting.trainer(max_epochs=2)
    if not setting.is_stock:
        path = setting.folder / "middle-step=4.ckpt"
        trainer.fit(Noting(), setting.loader(data(), batch_size=24, shuffle=True), ckpt_path=path)
    features = data().tensors[0][:, 0]
    if setting.is_stock:
        return {"first": np.sort(features), "second": np.sort(features)}
    gathered: list[Any] = [None] * setting.workers
    torch.distributed.all_gather_object(gathered, seen)
    epochs = [sorted(value for part in gathered for value in part[epoch]) for epoch in (0, 1)]
    return {"first": np.array(epochs[0]), "second": np.array(epochs[1])}


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
    """Each sample is predicted once, and a writer is told which."""
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
    return {"count": len(together), "rows": np.array([row for _, row in sorted(together)])}


class _Writer(callbacks.BasePredictionWriter):
    indices: Any = ()

    def write_on_epoch_end(self, trainer: Any, pl_module: Any, predictions: Any, batch_indices: Any) -> None:
        self.indices = batch_indices[0] if batch_indices and isinstance(batch_indices[0][0], list) else batch_indices


@scenario
def mixed_precision(setting: Setting) -> Numbers:
    """bf16-mixed: lossy, so only its bound is compared; the program compares weights between workers."""
    trainer = setting.trainer(precision="bf16-mixed", max_epochs=2)
    trainer.fit(Net(), setting.loader(data()), setting.loader(data(HELD_OUT, 3)))
    return {"loss_of_few_digits": round(metrics(trainer)["val_loss"], 1)}


warnings.filterwarnings("ignore", ".*does not have many workers.*")
