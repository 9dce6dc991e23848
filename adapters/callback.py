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
"""The phases of a step that can be timed.

data: waiting for the next batch. forward, backward: of each micro-batch. wait: for other workers in the engine's
collectives. It includes the time of the collectives themselves, so the workers' minimum is not waiting. It is not
measured on CUDA, where the stream waits and not the host. update: remaining reductions, clipping, the optimizer and the
scheduler. save, load: of a checkpoint, reported with the next step. Phases do not overlap: backward excludes waiting if
waiting is watched. TensorFlow compiles forward, backward and update into one function: there "update" includes what is
not watched of the others.
"""


_KERAS = ": farandole.plugins.keras.distribute(model, strategy) has the model's fit take callbacks of farandole's"
_ELSEWHERE = {
    "state_key": ": give Lightning's Trainer farandole.plugins.lightning.LightningCallback(callback) instead",
    "set_params": _KERAS,
    "set_model": _KERAS,
    "on_batch_end": _KERAS,
}
"""The first attribute that other libraries read from their own callbacks, and what to do instead."""


class Phase(NamedTuple):
    """A span of time of one worker.

    micro: the number of the micro-batch, if the phase belongs to one.
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
    logged: the numbers given to `Training.log` since the step before.
    samples: how many this worker trained on; `None` if the frontend does not know.
    tokens: what `batches(weight=...)` counted of them; `None` without it.
    grad_norm: as `Training.grad_norm`; `None` where it is not measured.
    """

    progress: Progress
    loss: SupportsFloat
    phases: tuple[Phase, ...] = ()
    logged: Mapping[str, SupportsFloat] = field(default_factory=dict)
    samples: int | None = None
    tokens: float | None = None
    grad_norm: SupportsFloat | None = None

    def seconds(self, name: str) -> float:
        """Return the total time of a phase."""
        return sum(phase.end - phase.start for phase in self.phases if phase.name == name)


@dataclass(frozen=True)
class Run:
    """The training that a callback is plugged into.

    progress: where it stands now.
    """

    strategy: Strategy
    frontend: Frontend
    progress: Progress


class Callback:
    """Base of all callbacks; every method does nothing until it is overridden, and returns nothing.

    All workers have the same callbacks, and call each method at the same point of the training. A method may call the
    strategy's collectives, if it does so on every worker. An exception ends the job, and the error names the callback.

    watches: the phases of a step to time for it; see `PHASES`.
    """

    watches: frozenset[str] = frozenset()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Say how to pass this callback to a frontend, which took it for its own kind."""
            if name in _ELSEWHERE:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{_ELSEWHERE[name]}")
            return object.__getattribute__(self, name)  # raises the original error again, for example a property's

    def on_prepare(self, model: Any, run: Run) -> None:
        """Change the model in place, before the engine wraps it."""

    def on_begin(self, run: Run) -> None:
        """Called once, before the first step; a checkpoint loaded by then is restored."""

    def on_step_begin(self, progress: Progress) -> None:
        """Called before each step, with the position after it."""

    def on_step_end(self, step: StepRecord) -> None:
        """Called after each step. Reading `step.loss` waits for it."""

    def on_end(self, error: BaseException | None) -> None:
        """Called once after the last step, with the error that ended the training, if any.

        In a loop this is when the strategy is left; with Lightning and Keras, at the end of `fit`. After an error, also
        of another callback, call no collective: the other workers may be elsewhere.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in checkpoints, as JSON; rank 0's is saved."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; called on every worker if the checkpoint has a state."""
