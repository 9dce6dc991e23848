"""For users of Lightning: its Trainer and Fabric on our strategies, by their names.

import lightning.pytorch as pl
import farandole.plugins.lightning  # makes the names known

trainer = pl.Trainer(strategy="horovod", devices=2, accelerator="cpu")
trainer.fit(model, dataloader)
"""

from .callbacks import GradientCheckpointing, LightningCallback, WorkerMetrics
from .deepspeed import DeepSpeedStrategy
from .environment import LauncherEnvironment
from .fabric import FabricDeepSpeedStrategy, FabricHorovodStrategy
from .horovod import HorovodStrategy
from .logger import MetricsLogger
from .names import register

__all__ = [
    "DeepSpeedStrategy",
    "FabricDeepSpeedStrategy",
    "FabricHorovodStrategy",
    "GradientCheckpointing",
    "HorovodStrategy",
    "LauncherEnvironment",
    "LightningCallback",
    "MetricsLogger",
    "WorkerMetrics",
]

register()
