"""How our strategies for the Trainer report a step to farandole's callbacks: its loss, and its phases."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from ...adapters.pending import Pending
from ...adapters.seam import Seam
from ...adapters.torch.engine import Engine
from ...adapters.torch.pending_reductions import EarlierReduction
from ...adapters.torch.strategy import TorchStrategy


class Recording:
    """A mixin before a strategy class of Lightning, whose optimizers run forward and backward inside their step.

    seam: the farandole callbacks that watch the training.
    """

    seam: Seam
    adapter: TorchStrategy

    if TYPE_CHECKING:

        @property
        def engines(self) -> list[Engine]: ...

        def samples_of_batch(self) -> int | None: ...

    def _record_nothing_yet(self) -> None:
        self._micro = 0
        self._loss_of_step: torch.Tensor | None = None
        self._samples: int | None = 0
        self._earlier_loss = EarlierReduction()
        self._loss_name = ""

    def tell(self, seam: Seam) -> None:
        """Report to these callbacks from now on."""
        self.seam = seam
        self.drop_step()
        if seam:
            self._loss_name = f"lightning{self.adapter.next_training()}.loss"
            self.adapter.settle_before_leaving(self._earlier_loss.settle, keep=False)

    def begin_batch(self, micro: int) -> None:
        """Call before a batch, with its number within a step."""
        self._micro = micro

    def end_batch(self, outputs: Any) -> None:
        """Call after a batch."""
        own = self.samples_of_batch()
        self._samples = None if own is None or self._samples is None else self._samples + own

    def note_loss(self, loss: torch.Tensor) -> None:
        """Add a loss to the step's, weighted so that its mean over workers is the mean over samples."""
        if self.seam:
            own = loss.detach().to(torch.float64) / self.adapter.worker.world_size
            self._loss_of_step = own if self._loss_of_step is None else self._loss_of_step + own

    def drop_step(self) -> None:
        """Forget a step that did not finish."""
        self._loss_of_step, self._samples = None, 0

    def take_samples(self) -> int | None:
        """Return how many samples this worker has trained on in a step."""
        samples, self._samples = self._samples, 0
        return samples

    def take_loss(self) -> Pending:
        """Return the loss of a step; all workers call it."""
        own = torch.zeros((), dtype=torch.float64) if self._loss_of_step is None else self._loss_of_step
        self._loss_of_step = None
        with self.engines[0].waiting() if self.engines else contextlib.nullcontext():
            self._earlier_loss.settle()
        adapter = self.adapter
        finish = adapter.start_all_reduce(own.reshape(1).to(adapter.device), "sum", self._loss_name)
        self._earlier_loss.replace(finish)

        def read() -> float:
            with adapter.noticing_lost_workers():
                return finish().item()

        return Pending(read)

    def settle_loss(self) -> None:
        """Wait for a loss that was not read; all workers have sent theirs."""
        self._earlier_loss.settle()

    # Timed.

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.seam.phase("forward", self._micro):
            return super().training_step(*args, **kwargs)  # type: ignore[misc]

    def backward(self, *args: Any, **kwargs: Any) -> Any:
        with self.seam.phase("backward", self._micro):
            return super().backward(*args, **kwargs)  # type: ignore[misc]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.seam.phase("update"):
            return super().optimizer_step(*args, **kwargs)  # type: ignore[misc]
