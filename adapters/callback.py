"""One seam for what plugs into training: a callback may change the model, watch each step, and keep state.

For example:

    class Printer(Callback):
        watches = frozenset({"forward"})

        def on_step_end(self, step):
            print(step.progress, float(step.loss), step.seconds("forward"))

    training = strategy.prepare(model, optimizer, loss_fn, callbacks=[Printer()])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, SupportsFloat

from .progress import Progress

if TYPE_CHECKING:
    from .strategy import Strategy

Frontend = Literal["loop", "lightning", "keras"]

PHASES = ("data", "forward", "backward", "wait", "update", "save", "load")
"""What of a step can be timed.

data: waiting for the next batch. forward, backward: of each micro-batch. wait: for other workers, in the engine's
collectives; what those take by themselves is in it, so that the least of all workers is what nobody waited for. On
CUDA, where the stream waits and not the host, it is not told. update: reducing what is left, clipping, the optimizer
and the scheduler. save, load: of a checkpoint, told with the next step. No two phases have the same time: backward is
without its waiting, where that is watched. TensorFlow compiles forward, backward and update into one function: they are
one phase there, "update".
"""


_KERAS = ": farandole.plugins.keras.distribute(model, strategy) has the model's fit take callbacks of farandole's"
_ELSEWHERE = {
    "state_key": ": give Lightning's Trainer farandole.plugins.lightning.LightningCallback(callback) instead",
    "set_params": _KERAS,
    "set_model": _KERAS,
    "on_batch_end": _KERAS,
}
"""What other libraries ask their own callbacks for first, and what to do instead."""


class Phase(NamedTuple):
    """A span of time of one worker.

    micro: the number of the micro-batch, where the phase is of one.
    start, end: in seconds of `time.perf_counter`.
    """

    name: str
    micro: int | None
    start: float
    end: float


@dataclass(frozen=True)
class StepRecord:
    """One update, as this worker saw it.

    progress: the position after it.
    loss: its mean over the global batch; reading it waits for it.
    phases: those that a callback watches, in order.
    logged: what `Training.log` was told since the step before.
    """

    progress: Progress
    loss: SupportsFloat
    phases: tuple[Phase, ...] = ()
    logged: Mapping[str, SupportsFloat] = field(default_factory=dict)

    def seconds(self, name: str) -> float:
        """Return the time that a phase took in all."""
        return sum(phase.end - phase.start for phase in self.phases if phase.name == name)


@dataclass(frozen=True)
class Run:
    """What a callback is told of the training that it is plugged into.

    progress: where it stands now.
    """

    strategy: Strategy
    frontend: Frontend
    progress: Progress


class Callback:
    """Base of all callbacks; every method does nothing until it is overridden, and returns nothing.

    All workers have the same callbacks, and call each method at the same point of the training. A method may call the
    strategy's collectives, if it does so on every worker. What it raises ends the job, with the callback's name.

    watches: the phases of a step that are to be timed for it; see `PHASES`.
    """

    watches: frozenset[str] = frozenset()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Say how a frontend that was given this callback as one of its own is to be given it."""
            if name in _ELSEWHERE:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{_ELSEWHERE[name]}")
            return object.__getattribute__(self, name)  # raises what was raised before, in a property for one

    def on_prepare(self, model: Any, run: Run) -> None:
        """Change the model in place, before the engine wraps it."""

    def on_begin(self, run: Run) -> None:
        """Called before the first step; a checkpoint was taken up by then."""

    def on_step_begin(self, progress: Progress) -> None:
        """Called before each step, with the position that it leads to."""

    def on_step_end(self, step: StepRecord) -> None:
        """Called after each step. Reading `step.loss` waits for it."""

    def on_end(self, error: BaseException | None) -> None:
        """Called once after the last step, with the error that the training is left by.

        In a loop that is where the strategy is left; with Lightning and Keras, where `fit` ends. After an error other
        workers may be elsewhere: no collective can be called then.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what is to travel in checkpoints, as JSON has it; rank 0's does."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned; called on every worker, where a checkpoint has some."""
