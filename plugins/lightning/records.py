"""Fills the records that farandole's callbacks get of each step of a Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ...adapters import Launch, Progress, Run, Worker, launched_as
from ...adapters.callback import Callback
from ...adapters.pending import Pending
from ...adapters.seam import Seam
from ...adapters.torch.engines.ddp import DDPStrategy
from ...adapters.torch.engines.local import LocalStrategy
from ...adapters.torch.strategy import TorchStrategy

NOBODY = Seam((), Worker())


class Records:
    """The callbacks of one `fit`, and the records of its steps.

    A step is one of the optimizer: `accumulate_grad_batches` batches. With manual optimization it is a batch, because
    only the module knows what else would be a step.
    """

    def __init__(self, trainer: Any, callbacks: Sequence[Callback]) -> None:
        self._trainer = trainer
        ours = hasattr(trainer.strategy, "tell")
        self._strategy: TorchStrategy = trainer.strategy.adapter if ours else _borrowed(trainer)
        self.seam = Seam(callbacks, self._strategy.worker)
        self._source = trainer.strategy if ours else Hooks()
        self._source.tell(self.seam)
        self._in_step = False

    def prepare(self, module: Any) -> None:
        """Let callbacks change the module once it is whole, before it is restored, wrapped and gets optimizers."""
        configure = module.configure_model

        def configure_and_prepare() -> None:
            del module.configure_model
            configure()
            self.seam.prepare(module, self._run(Progress(self._trainer.current_epoch)))

        module.configure_model = configure_and_prepare

    def begin_batch(self, number: int) -> None:
        """Call before a batch is trained on."""
        micro = number % self._accumulate()
        if not self._in_step:
            self._in_step = True
            self.seam.begin_step(self._after(number), self._run(self._at(number // self._accumulate())))
        self._source.begin_batch(micro)

    def end_batch(self, number: int, outputs: Any) -> None:
        """Call after a batch was trained on."""
        self._source.end_batch(outputs)
        if self._is_last(number) or (number + 1) % self._accumulate() == 0:
            self._in_step = False
            self.seam.end_step(self._after(number), self._source.take_loss(), self._source.take_samples())

    def begin_epoch(self) -> None:
        """Call when an epoch begins; the last one may have ended within a step."""
        if self._in_step:
            self._in_step = False
            self._source.drop_step()
            self.seam.drop_step()

    def hook(self, name: str) -> None:
        """Call in Lightning's hooks within a step."""
        if isinstance(self._source, Hooks):
            self._source.hook(name)

    def end(self, error: BaseException | None) -> None:
        """Call when `fit` ends."""
        if error is None:
            self._source.settle_loss()
        self._source.tell(NOBODY)
        self.seam.end(error)

    def _run(self, before: Progress) -> Run:
        return Run(self._strategy, "lightning", before)

    def _accumulate(self) -> int:
        return int(self._trainer.accumulate_grad_batches)

    def _is_last(self, number: int) -> bool:
        return bool(self._trainer.is_last_batch or number + 1 >= self._trainer.num_training_batches)

    def _after(self, number: int) -> Progress:
        step = number // self._accumulate() + 1
        ends = step * self._accumulate() >= self._trainer.num_training_batches or self._is_last(number)
        return Progress(self._trainer.current_epoch + 1) if ends else self._at(step)

    def _at(self, step: int) -> Progress:
        return Progress(self._trainer.current_epoch, step)


class Hooks:
    """What Lightning's hooks report of Lightning's own strategies: this worker's loss, and the begin and end of phases.

    They do not show how long a loader is waited for: more happens between two batches.
    """

    def __init__(self) -> None:
        self.tell(NOBODY)

    def tell(self, seam: Seam) -> None:
        """Report to these callbacks from now on."""
        self._seam = seam
        self._open: AbstractContextManager[None] | None = None
        self._micro = 0
        self._losses: list[Any] = []

    def begin_batch(self, micro: int) -> None:
        """Call before a batch, with its number within a step."""
        self._micro = micro
        self._switch("forward")

    def hook(self, name: str) -> None:
        """Call in a hook within a step."""
        phases = {"on_before_backward": "backward", "on_before_optimizer_step": "update"}
        if name in phases or self._open is not None:
            self._switch(phases.get(name))

    def end_batch(self, outputs: Any) -> None:
        """Call after a batch."""
        self._switch(None)
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is not None:
            self._losses.append(loss)

    def drop_step(self) -> None:
        """Forget a step that did not finish."""
        self._switch(None)
        self._losses = []

    def take_loss(self) -> Pending:
        """Return the loss of a step."""
        losses, self._losses = self._losses, []
        return Pending(lambda: float(sum(losses)))

    def take_samples(self) -> None:
        """Return `None`: Lightning does not tell how many samples a batch has."""

    def settle_loss(self) -> None:
        """Do nothing: no worker has another's loss."""

    def _switch(self, phase: str | None) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
        self._open = None
        if phase is not None:
            self._open = self._seam.phase(phase, None if phase == "update" else self._micro)
            self._open.__enter__()


def _borrowed(trainer: Any) -> TorchStrategy:
    """Return our view of Lightning's job, for callbacks: its workers and collectives."""
    worker = Worker(
        trainer.global_rank,
        trainer.world_size,
        trainer.local_rank,
        min(trainer.num_devices, trainer.world_size),
        trainer.node_rank,
    )
    kind: Callable[..., TorchStrategy] = DDPStrategy if worker.world_size > 1 else LocalStrategy
    with launched_as(Launch("lightning", worker)):
        root = trainer.strategy.root_device
        strategy = kind(device=str(root) if root.type == "cuda" else "cpu")
    strategy.name = type(trainer.strategy).__name__
    strategy.adopt_running_job()
    return strategy
