"""Automatic optimization: accumulation, clipping, schedules, averaged weights, precision."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import callbacks

from farandole.adapters import Progress
from farandole.plugins.metrics import Reader, Window
from farandole.plugins.metrics.window import PHASES

from .setting import HELD_OUT, Net, Numbers, Setting, Watcher, data, metrics, scenario, weights


@scenario
def logged(setting: Setting) -> Numbers:
    """Watched by two callbacks of one class; one changes the model before it is wrapped, and so does checkpointing."""
    from farandole.plugins.lightning import GradientCheckpointing, LightningCallback, WorkerMetrics

    watchers, timing = [Watcher(halves=True), Watcher()], WorkerMetrics(setting.folder / "run", every=4)
    plugged = [LightningCallback(watchers[0]), timing, LightningCallback(watchers[1])]
    if not setting.is_stock:
        plugged.append(GradientCheckpointing(["layers.0", "layers.1"]))
    trainer = setting.trainer(gradient_clip_val=0.5, accumulate_grad_batches=4, callbacks=plugged)
    train, held_out = setting.loader(data()), setting.loader(data(HELD_OUT, 3))
    trainer.fit(Net(), train, held_out)
    found = {**weights(trainer), **metrics(trainer)}
    for watcher in watchers:
        watcher.check([4, 4, 1] * 3, fetched=not setting.is_stock, waited=setting.workers > 1 and not setting.is_stock)
        found["step_losses"] = [float(record.loss) for record in watcher.records]
    after = [Progress(epoch, step) for epoch in range(3) for step in (1, 2)] + [Progress(epoch) for epoch in (1, 2, 3)]
    assert watchers[0].ahead == sorted(after)
    assert timing.folder == setting.folder / "run"
    told = {f"{name}_ms" for name in ("step", "forward", "backward", "update")}
    told |= set() if setting.is_stock else {"data_ms"}
    told |= {"wait_ms", "communication_ms"} if setting.workers > 1 and not setting.is_stock else set()
    windows = [record for record in Reader(timing.folder).poll() if isinstance(record, Window)]
    # The others may not have written theirs yet.
    assert sum(window.steps for window in windows if window.rank == trainer.global_rank) == 9
    for window in windows:
        assert told == window.values.keys() & {f"{name}_ms" for name in ("step", *PHASES, "communication")}
    tested = trainer.test(trainer.lightning_module, held_out, verbose=False)[0]
    return {**found, **{f"test_{name}": value for name, value in tested.items()}}


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
def mixed_precision(setting: Setting) -> Numbers:
    """bf16-mixed: lossy, so only its bound is compared; the program compares weights between workers."""
    trainer = setting.trainer(precision="bf16-mixed", max_epochs=2)
    trainer.fit(Net(), setting.loader(data()), setting.loader(data(HELD_OUT, 3)))
    return {"loss_of_few_digits": round(metrics(trainer)["val_loss"], 1)}
