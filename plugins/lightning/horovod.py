"""Horovod for Lightning, which dropped it: `Trainer(strategy="horovod")`."""

from __future__ import annotations

from typing import Any, Literal

from ...adapters import OptionError
from .held import release
from .lost_workers import TRAINERS, noticing_lost_workers
from .strategy import AdapterStrategy


@noticing_lost_workers(TRAINERS)
class HorovodStrategy(AdapterStrategy):
    """A replica on every worker; Horovod all-reduces the gradients while backward runs.

    With manual optimization, several optimizers or a GradientAccumulationScheduler they are reduced when the optimizer
    steps or is clipped. (There is no Adasum: Horovod would have to step, and Lightning steps itself.)

    Args:
        compression: "fp16" halves the traffic, lossily.
        num_groups: all-reduce gradients in this many groups; 0 lets Horovod fuse them as they come.
    """

    def __init__(
        self,
        compression: Literal["none", "fp16"] = "none",
        num_groups: int = 0,
    ) -> None:
        super().__init__("horovod", compression=compression, num_groups=num_groups)

    def _adopt_precision(self, plugin: Any) -> Any:
        if plugin.precision in ("bf16-true", "transformer-engine"):
            raise OptionError(
                f"precision={plugin.precision!r}: Horovod cannot all-reduce bfloat16 gradients; use 'bf16-mixed', "
                "whose gradients are float32"
            )
        return super()._adopt_precision(plugin)

    def teardown(self) -> None:
        # Later backward passes, by the user or in a training with one of the submodules, must not be reduced here.
        if self.lightning_module is not None:
            release(self.lightning_module)
        super().teardown()
