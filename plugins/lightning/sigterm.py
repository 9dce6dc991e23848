"""Stop all workers after the same batch when one of them gets SIGTERM, so that all can save.

Lightning tries to, but broadcasts from inside its signal handler: if one worker gets the signal, it waits there for
ever, and between two collectives it mixes them up. (Lightning also waits for a broadcast before each batch.)
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist

from .compat import note_sigterm, take_over_sigterm
from .package import trainer_part

_TrainerFn: Any = trainer_part("trainer.states").TrainerFn
_PERIOD = 0.5  # seconds between two checks; one in each batch would slow down short steps
_MOST = 20  # batches between two checks at most, in case batches become slower


class SigtermWatch:
    """Replaces what one Trainer does, from Lightning 2.5.5 on.

    The workers compare whether one got the signal while they train on a batch, and read the result before the next one.
    They also agree on when to check again, because faster workers would check earlier.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._asked = False  # this worker got the signal
        self._ending = False  # all workers know
        self._under_way: tuple[Any, torch.Tensor] | None = None
        self._waited = 0  # batches since a check began
        self._wait = 1  # batches from one check to the next
        self._began = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_under_way": None}

    def install(self) -> None:
        """Make the Trainer call `note` on SIGTERM, and `look` before each batch."""
        take_over_sigterm(self._trainer, self.note, self.look)

    def note(self, signum: int, frame: Any) -> None:
        """Note the signal, and send it to the workers that this one started."""
        if not self._asked:
            self._asked = True
            self._trainer.strategy.launcher.kill(signum)
        if self._trainer.state.fn != _TrainerFn.FITTING:
            # An evaluation has nothing to save: this worker ends after its batch, and the others fail without it.
            note_sigterm(self._trainer)

    def look(self) -> None:
        """Read the result of the last check, and start the next one if it is time.

        Raises:
            SIGTERMException: a worker got the signal.
        """
        self._waited += 1
        self._settle()
        batches = self._trainer.fit_loop.epoch_loop.batch_progress.current.ready
        # Not between micro-batches: their gradients would be lost, but their samples counted.
        if self._ending and batches % self._trainer.accumulate_grad_batches == 0:
            self._end()
        if self._waited >= self._wait:
            self._begin()

    def finish(self) -> None:
        """Check a last time, after the training: the signal may have come since the last check, or in the validation.

        Raises:
            SIGTERMException: a worker got the signal.
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
        compared = torch.tensor([int(self._asked), -wait], device=self._trainer.strategy.root_device)
        self._under_way = dist.all_reduce(compared, dist.ReduceOp.MAX, async_op=True), compared

    def _settle(self) -> None:
        """Read the result of the running check, which ends it."""
        if self._under_way is None:
            return
        work, compared = self._under_way
        self._under_way = None
        work.wait()
        asked, wait = compared.tolist()
        self._ending |= bool(asked)
        self._wait = -wait
