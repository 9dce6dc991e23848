"""Lightning Fabric on our strategies: `Fabric(strategy="horovod", devices=2)`."""

from .deepspeed import FabricDeepSpeedStrategy
from .horovod import FabricHorovodStrategy

__all__ = ["FabricDeepSpeedStrategy", "FabricHorovodStrategy"]
