"""Have all workers stop after the same batch when one of them is asked to end (SIGTERM), so that all can save.

Lightning means to, but broadcasts from inside its signal handler: a worker that is asked alone waits there for ever,
and one that is asked between two collectives mixes them up. (It also waits for a broadcast before each batch.)
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist

from .compat import note_sigterm, take_over_sigterm
from .package import trainer_part

_TrainerFn: Any = trainer_part("trainer.states").TrainerFn
_PERIOD = 0.5  # seconds between two looks; a reduction for each batch takes from the time of short steps
_MOST = 20  # batches between two looks, should they come to take longer


class SigtermWatch:
    """Takes the place of what one Trainer does, from Lightning 2.5.5 on.

    Whether somebody was asked is found out while a batch is trained on, and read before the next one. With it the
    workers agree on when to look again, as those that are faster would look earlier.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._asked = False  # this worker
        self._ending = False  # all of them, once they have found out
        self._under_way: tuple[Any, torch.Tensor] | None = None
        self._waited = 0  # batches since a look began
        self._wait = 1  # batches from one look to the next
        self._began = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_under_way": None}

    def install(self) -> None:
        """Have the Trainer call `note` on SIGTERM, and `look` before each batch."""
        take_over_sigterm(self._trainer, self.note, self.look)

    def note(self, signum: int, frame: Any) -> None:
        """Take note of the signal, and pass it on to the workers that this one has started."""
        if not self._asked:
            self._asked = True
            self._trainer.strategy.launcher.kill(signum)
        if self._trainer.state.fn != _TrainerFn.FITTING:
            # Nothing is lost with an evaluation: this worker ends after its batch, and the others without it.
            note_sigterm(self._trainer)

    def look(self) -> None:
        """Read what was found out during the last batch, and start to find out again where it is time.

        Raises:
            SIGTERMException: a worker had been asked to end.
        """
        self._waited += 1
        self._settle()
        batches = self._trainer.fit_loop.epoch_loop.batch_progress.current.ready
        # Not between micro-batches: their gradients would be lost, and count as trained on.
        if self._ending and batches % self._trainer.accumulate_grad_batches == 0:
            self._end()
        if self._waited >= self._wait:
            self._begin()

    def finish(self) -> None:
        """Find out a last time, when all has been trained: the signal may have come since, or in a long validation.

        Raises:
            SIGTERMException: a worker had been asked to end.
        """
        self._settle()
        self._begin()
        self._settle()
        if self._ending:
            self._end()

    def _end(self) -> None:
        note_sigterm(self._trainer)
        raise trainer_part("utilities.exceptions").SIGTERMException

    def _begin(self) -> None:
        began, self._began = self._began, time.monotonic()
        wait = min(_MOST, max(1, int(_PERIOD * self._waited / (self._began - began + 1e-9))))
        self._waited = 0
        told = torch.tensor([int(self._asked), -wait], device=self._trainer.strategy.root_device)
        self._under_way = dist.all_reduce(told, dist.ReduceOp.MAX, async_op=True), told

    def _settle(self) -> None:
        """Read what is being found out; nothing is any more."""
        if self._under_way is None:
            return
        work, told = self._under_way
        self._under_way = None
        work.wait()
        asked, wait = told.tolist()
        self._ending |= bool(asked)
        self._wait = -wait
