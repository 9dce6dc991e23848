"""Training that continues: with the same module, and from checkpoints in the middle of an epoch."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch import callbacks

from farandole.adapters import DataError
from farandole.plugins.metrics import Logged, Reader, RunFolder, Window

from .setting import HELD_OUT, Net, Numbers, Setting, Watcher, data, metrics, scenario, weights


@scenario
def fitted_again(setting: Setting) -> Numbers:
    """The same module with a second Trainer, after an evaluation by the first, whose numbers each worker logs."""
    from farandole.plugins.lightning import MetricsLogger, WorkerMetrics
    from farandole.plugins.metrics.comet import Comet

    net, train, held_out = Net(), setting.loader(data()), setting.loader(data(HELD_OUT, 3))
    measured = WorkerMetrics(setting.folder / "run", every=4, sinks=[Comet(offline=True)])
    logger = MetricsLogger(measured)
    trainer = setting.trainer(max_epochs=1, callbacks=[measured], logger=logger)
    logger.log_hyperparams({"net": {"hidden": 16}})
    logger.log_metrics({"early": 1.0})
    trainer.fit(net, train)
    found = {f"first_{name}": value for name, value in trainer.validate(net, held_out, verbose=False)[0].items()}
    logger.log_metrics({"late": trainer.global_rank, "epoch": 1})
    logger.finalize("success")
    _check_logged(setting, trainer.global_rank)
    trainer = setting.trainer(max_epochs=1)
    trainer.fit(net, train, held_out)
    return {**found, **weights(trainer), **metrics(trainer)}


def _check_logged(setting: Setting, rank: int) -> None:
    records = Reader(setting.folder / "run").poll()
    logged = [record for record in records if record.rank == rank and isinstance(record, Logged)]
    assert [list(record.values) for record in logged] == [
        ["early"],
        ["train_loss"],
        ["val_loss", "val_accuracy"],
        ["late"],
    ]
    assert logged[-1].values["late"] == rank
    windows = [record.step for record in records if record.rank == rank and isinstance(record, Window)]
    assert logged[0].step == 0
    assert logged[-1].step == windows[-1]
    info = RunFolder(setting.folder / "run").info()
    assert info["attempts"][0]["parameters"] == {"net/hidden": 16}
    assert info["sinks"]["comet"]["experiment"] == info["run"]


@scenario
def optimizer_used_again(setting: Setting) -> Numbers:
    """The same module with the same optimizer object, which has moments by then."""
    net = Net()
    optimizer = net.configure_optimizers()
    net.configure_optimizers = lambda: optimizer  # type: ignore[method-assign]
    for _ in range(2):
        trainer = setting.trainer(max_epochs=1)
        trainer.fit(net, setting.loader(data()))
    return weights(trainer)


@scenario
def copied(setting: Setting) -> Numbers:
    """Trainers that are copies: of one that has not trained, and of one that has. Another is taken in between."""
    from farandole.plugins.lightning import WorkerMetrics

    trainer = setting.trainer(max_epochs=1, callbacks=[_Keeper(), WorkerMetrics(setting.folder / "run")])
    trainer = pickle.loads(pickle.dumps(trainer))
    trainer.fit(Net(), setting.loader(data()))
    found = weights(trainer)
    if not setting.strategy.startswith("deepspeed"):  # whose hooks in the module cannot be pickled
        pickle.dumps(trainer)
    again = copy.deepcopy(trainer)
    again.fit_loop.max_epochs = 2
    again.fit(Net(), setting.loader(data()))
    return {**found, **{f"again.{name}": value for name, value in weights(again).items()}}


class _Keeper(callbacks.Callback):
    """Keeps its Trainer, as a progress bar does."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.trainer = trainer
        copy.deepcopy(self)


@scenario
def one_after_another(setting: Setting) -> Numbers:
    """Models that are tried in a row, as a search does: none is kept when its Trainer is dropped."""
    tried: list[weakref.ref[Net]] = []
    for rate in (0.1, 0.01):
        net = Net()
        tried.append(weakref.ref(net))
        net.layers[0].weight.data.mul_(rate)
        trainer = setting.trainer(max_epochs=1)
        trainer.fit(net, setting.loader(data()))
    found = weights(trainer)
    del net, trainer
    gc.collect()
    return {**found, "kept": sum(known() is not None for known in tried)}


@scenario
def resumed(setting: Setting) -> Numbers:
    """From the middle of an epoch, by our own checkpoint and by one that stock Lightning wrote."""
    every = callbacks.ModelCheckpoint(setting.folder, "middle-{step}", every_n_train_steps=7, save_top_k=-1)

    class Estimating(Net):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = torch.nn.Linear(2, 2)  # in no optimizer, and not frozen either

        def configure_optimizers(self) -> Any:
            assert self.trainer.estimated_stepping_batches >= 7  # makes Lightning create the loaders now
            return torch.optim.AdamW(self.layers.parameters(), lr=0.01, weight_decay=0.1)

    from farandole.plugins.lightning import LightningCallback

    def fit(*checkpoints: Any, max_steps: int = -1, **options: Any) -> tuple[pl.Trainer, Numbers]:
        counting = Watcher()
        own: Any = {"enable_checkpointing": bool(checkpoints), "max_steps": max_steps}
        own["callbacks"] = [LightningCallback(counting), *checkpoints]
        torch.manual_seed(3 if checkpoints else 4)
        trainer = setting.trainer(accumulate_grad_batches=2, **own)
        trainer.fit(Estimating(), setting.loader(data()), setting.loader(data(HELD_OUT, 3)), **options)
        return trainer, {**weights(trainer), "steps": counting.steps, "ends": counting.ahead[-1].epoch}

    _, whole = fit(every)
    if setting.is_stock:
        # Stock Lightning restarts such an epoch: the reference is the run that was never interrupted.
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
def resumed_with_two_loaders(setting: Setting) -> Numbers:
    """Of different lengths: the checkpoint says how far the longer one was."""

    class Both(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch["long"]) + self.loss(batch["short"])

    loaders = {"long": setting.loader(data(96)), "short": setting.loader(data(48, 5))}
    trainer = setting.trainer(max_steps=3)
    trainer.fit(Both(), loaders)
    trainer.save_checkpoint(setting.folder / "middle.ckpt")
    said = ""
    try:
        setting.trainer(max_epochs=1).fit(Both(), loaders, ckpt_path=setting.folder / "middle.ckpt")
    except DataError as error:
        said = str(error)
    return {"refused": setting.is_stock or "loaders have different numbers of batches" in said}


@scenario
def resumed_in_larger_batches(setting: Setting) -> Numbers:
    """An epoch resumed with another batch size still has each sample once."""
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
