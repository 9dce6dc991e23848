"""Calls the callbacks of one training, and times what they watch."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, SupportsFloat, TypeVar

from .callback import PHASES, Callback, Phase, Run, StepRecord
from .errors import CallbackError, OptionError, WorkerLostError, did_you_mean
from .leaving import has_succeeded
from .progress import Progress
from .worker import Worker

if TYPE_CHECKING:
    from .strategy import Strategy

T = TypeVar("T")

_UNTIMED = contextlib.nullcontext()
_log = logging.getLogger("farandole")


class Seam:
    """Calls the callbacks of one training, and times the phases that they watch.

    Raises:
        OptionError: one is not a `Callback`, or watches an unknown phase.
    """

    def __init__(self, callbacks: Sequence[Callback], worker: Worker) -> None:
        for callback in callbacks:
            check_callback(callback)
        self._callbacks = list(callbacks)
        self._worker = worker
        self._watched: frozenset[str] = frozenset().union(*(callback.watches for callback in callbacks))
        self._phases: list[Phase] = []
        self._open: list[tuple[str, int | None]] = []  # phases that are being timed, outermost first
        self._since = 0.0
        self._logged: dict[str, SupportsFloat] = {}
        self._begun = self._in_step = False

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def refuse_differences(self, strategy: Strategy) -> None:
        """Compare the callbacks of all workers, which all call this: a collective in a missing one would hang.

        Raises:
            OptionError: a worker has other callbacks, or they watch other phases.
        """
        known = [f"{type(callback).__name__}{sorted(callback.watches)}" for callback in self._callbacks]
        everyone = strategy.gather(known)
        for rank, other in enumerate(everyone):
            if other != everyone[0]:
                own, first = ", ".join(other), ", ".join(everyone[0])
                raise OptionError(
                    f"worker {rank} has the callbacks [{own}], worker 0 has [{first}]: give all workers the same, and "
                    "test run.strategy.worker.is_main in them for work of one worker"
                )

    def watches(self, name: str) -> bool:
        """Whether any callback watches this phase."""
        return name in self._watched

    def phase(self, name: str, micro: int | None = None) -> contextlib.AbstractContextManager[None]:
        """Time a block, if a callback watches it; an enclosing phase, if any, excludes this time."""
        return self._timed(name, micro) if name in self._watched or self._open else _UNTIMED

    def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yield `items`, and time how long each is waited for."""
        iterator = iter(items)
        while True:
            with self.phase(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def note(self, name: str, start: float, end: float, micro: int | None = None) -> None:
        """Add a phase of a step that was timed elsewhere, if a callback watches it; an enclosing phase excludes it.

        Between two steps, for example in an evaluation, it is ignored.
        """
        if name in self._watched and self._in_step:
            self._close_span(start, end)
            self._phases.append(Phase(name, micro, start, end))

    def prepare(self, model: Any, run: Run) -> None:
        """Let callbacks change the model."""
        self._call("on_prepare", model, run)

    def begin_step(self, progress: Progress, run: Run) -> None:
        """Call before the step that ends at `progress`."""
        if not self._begun:
            self._begun = True
            self._call("on_begin", run)
        self._call("on_step_begin", progress)
        self._in_step = True

    def end_step(
        self,
        progress: Progress,
        loss: SupportsFloat,
        samples: int | None = None,
        tokens: float | None = None,
        grad_norm: SupportsFloat | None = None,
    ) -> None:
        """Call after a step, with what `StepRecord` has of it."""
        record = StepRecord(progress, loss, tuple(self._phases), self._logged, samples, tokens, grad_norm)
        self.drop_step()
        self._logged = {}
        self._call("on_step_end", record)

    def drop_step(self) -> None:
        """Drop the phases of a step that has ended, or will not end."""
        self._phases, self._in_step = [], False

    def end(self, error: BaseException | None) -> None:
        """Call where the training is left. Each callback is called, also after another one raised, and gets its error.

        Args:
            error: what ended the training; `sys.exit(0)` counts as success.

        Raises:
            CallbackError: the first error of a callback; later ones, and all after a failure, are only logged.
        """
        if not self._begun:
            return
        self._begun = False
        failure = None if has_succeeded(error) else error
        raised: CallbackError | None = None
        for callback in self._callbacks:
            try:
                self._returns_nothing(callback, "on_end", failure)
            except CallbackError as another:
                if failure is None:
                    failure = raised = another
                else:
                    _log.error("%s", another)
        if raised is not None:
            raise raised

    def log(self, name: str, value: SupportsFloat) -> None:
        """Keep a number for the next record."""
        if self._callbacks:
            self._logged[name] = value

    def state(self) -> dict[str, dict[str, Any]]:
        """Return the callbacks' states, by their names.

        Raises:
            CallbackError: one is not a dict, or not JSON.
        """
        states = {}
        for name, callback in self._named():
            state = self._guarded(callback, "state_dict")
            try:
                if not isinstance(state, dict):
                    raise TypeError(f"it is a {type(state).__name__}, not a dict")
                state = json.loads(json.dumps(state))
            except (TypeError, ValueError) as error:
                raise self._error(callback, "state_dict", f"returned what a checkpoint cannot hold: {error}") from None
            if state:
                states[name] = state
        return states

    def load_state(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Restore each callback's state by its name."""
        for name, callback in self._named():
            if name in states:
                self._returns_nothing(callback, "load_state_dict", states[name])

    @contextlib.contextmanager
    def _timed(self, name: str, micro: int | None) -> Iterator[None]:
        now = time.perf_counter()
        self._close_span(now, now)
        self._open.append((name, micro))
        try:
            yield
        finally:
            now = time.perf_counter()
            self._close_span(now, now)
            self._open.pop()

    def _close_span(self, end: float, again: float) -> None:
        """Add the time up to `end` to the innermost open phase, which continues from `again`."""
        if self._open and self._open[-1][0] in self._watched:
            self._phases.append(Phase(*self._open[-1], self._since, end))
        self._since = again

    def _named(self) -> Iterator[tuple[str, Callback]]:
        """Yield callbacks by the names of their classes; a second one of a class gets a number."""
        seen = Counter[str]()
        for callback in self._callbacks:
            kind = type(callback).__name__
            seen[kind] += 1
            yield kind if seen[kind] == 1 else f"{kind}-{seen[kind]}", callback

    def _call(self, method: str, *arguments: Any) -> None:
        for callback in self._callbacks:
            self._returns_nothing(callback, method, *arguments)

    def _returns_nothing(self, callback: Callback, method: str, *arguments: Any) -> None:
        returned = self._guarded(callback, method, *arguments)
        if returned is not None:
            raise self._error(callback, method, f"returned {returned!r}: it must return nothing")

    def _guarded(self, callback: Callback, method: str, *arguments: Any) -> Any:
        try:
            return getattr(callback, method)(*arguments)
        except WorkerLostError:  # in one of the strategy's collectives: not the callback's fault
            raise
        except Exception as error:
            raise self._error(callback, method, f"raised {type(error).__name__}: {error}") from error

    def _error(self, callback: Callback, method: str, what: str) -> CallbackError:
        return CallbackError(f"callback {type(callback).__name__}.{method} on worker {self._worker.rank} {what}")


def changes_the_model(callback: Callback) -> bool:
    """Whether it overrides `on_prepare`."""
    return getattr(callback.on_prepare, "__func__", None) is not Callback.on_prepare


def check_callback(callback: Any) -> None:
    """Raise `OptionError` if it is not a `Callback`, or watches an unknown phase."""
    if not isinstance(callback, Callback):
        kind = f"the class {callback.__name__}" if isinstance(callback, type) else f"a {type(callback).__name__}"
        raise OptionError(f"callbacks take instances of farandole.adapters.Callback, but {kind} was given")
    for phase in frozenset(callback.watches) - frozenset(PHASES):
        raise OptionError(
            f"{type(callback).__name__} watches {phase!r}, which is not a phase of a step: use {', '.join(PHASES)}."
            f"{did_you_mean(str(phase), PHASES)}"
        )
