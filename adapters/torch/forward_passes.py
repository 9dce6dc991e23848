"""Name the workers that run a model alone, if the engine gathers its parameters in every forward pass.

A forward pass that only some workers run (in a callback on rank 0, or an evaluation under `if is_main`) waits for the
others until the engine's timeout, or mixes up its collective with another one of theirs.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.distributed import PrefixStore, Store

from ..worker import Worker

_PATIENCE = 5.0  # seconds to wait for a worker before naming it
_LOOKS = 5  # of the thread, in this time


class ForwardPasses:
    """Counts the forward passes of one model outside of training, and compares the workers' counts if one waits.

    A thread writes this worker's count into the store when it changes, and reads the others' when a pass takes long; a
    pass itself sends nothing. A worker that is only slow is named too, and may still come; after each warning the
    patience doubles. On CUDA the host does not wait in a pass, so nothing is found there.

    As a context manager it encloses the engine's own work in a step.

    alone: which workers ran a forward pass, and which did not, if this worker waits for it, or waited until an error.

    Args:
        modules: the modules that gather parameters when they are called; none if no worker waits for another.
        store: the job's.
        name: this model's, the same on every worker.
        patience: seconds to wait for a worker before naming it.
        in_step: whether a training of the strategy is in its step; its loss may run this model too.
    """

    def __init__(
        self,
        modules: Sequence[torch.nn.Module],
        worker: Worker,
        store: Store | None = None,
        name: str = "",
        patience: float = _PATIENCE,
        in_step: Callable[[], bool] = lambda: False,
    ) -> None:
        self.patience = patience
        self.alone = ""
        self._look = patience / _LOOKS
        self._in_step = in_step
        self._worker = worker
        self._count = 0
        self._training = False
        self._depth = 0
        self._since: float | None = None  # begin of the running pass
        self._hooks: list[Any] = []
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        if not modules or store is None or worker.world_size == 1:
            return
        self._store = PrefixStore(f"farandole/forward passes/{name}", store)
        self._follow(modules)
        weakref.finalize(modules[-1], self._ended.set)  # if the training is dropped before the strategy is left
        self._thread = threading.Thread(target=self._watch, name="farandole-forward-passes", daemon=True)
        self._thread.start()

    def __enter__(self) -> None:
        self.alone = ""
        self._training = torch.is_grad_enabled()  # a pass without gradients inside a step counts as the step's
        self._depth = 0
        self._since = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._training = False
        self._since = None
        if kind is None:
            self.alone = ""

    def release(self) -> None:
        """Stop counting."""
        while self._hooks:
            self._hooks.pop().remove()
        self._ended.set()
        if self._thread is not None:
            self._thread.join(1.0)

    def _follow(self, modules: Sequence[torch.nn.Module]) -> None:
        # Functions, because copying a module keeps them; with a method, this object would be copied too.
        def begin(*_: Any) -> None:
            if self._since is None:
                self._depth = 0  # Ctrl-C ended the last pass, without its hooks
            self._depth += 1
            if self._depth == 1 and not (self._training or self._in_step()):
                self.alone = ""
                self._count += 1
                self._since = self._since or time.monotonic()

        def end(_module: Any, _inputs: Any, output: Any) -> None:
            self._depth -= 1
            if self._depth == 0 and not self._training:
                self._since = None
                if output is not None:  # it did not raise
                    self.alone = ""

        for module in modules:
            self._hooks.append(module.register_forward_pre_hook(begin, prepend=True))
            self._hooks.append(module.register_forward_hook(end, always_call=True))

    # In the thread.

    def _watch(self) -> None:
        written, asked, wait = -1, 0.0, self.patience
        with contextlib.suppress(RuntimeError):  # the store ends with rank 0
            while not self._ended.wait(self._look):
                if written != self._count:
                    written = self._count
                    self._store.set(str(self._worker.rank), str(written))
                since = self._since
                if since is None:
                    continue
                if since != asked:
                    asked, wait = since, self.patience
                waited = time.monotonic() - since
                if waited > wait:
                    wait = 2 * waited  # so that rank 0's store is not busy with this
                    if self._name_who_is_alone(waited):
                        self.patience *= 2

    def _name_who_is_alone(self, waited: float) -> bool:
        """Report the workers that ran more forward passes than others; return whether there are any."""
        ranks = [str(rank) for rank in range(self._worker.world_size)]
        if not self._store.check(ranks):
            return False
        counts = [int(count) for count in self._store.multi_get(ranks)]
        behind = [rank for rank, count in enumerate(counts) if count < max(counts)]
        if not behind:
            return False
        ahead = [rank for rank in range(len(counts)) if rank not in behind]
        alone = f"{_named(ahead)} called the model outside of a training step, and {_named(behind)} did not"
        self.alone = alone if self._since is not None else ""
        if self._is_first_to_say(max(counts)):
            print(
                f"farandole: worker {self._worker.rank} of {len(counts)} has waited {waited:.0f} s: {alone}. It "
                "gathers parameters from all workers: call it on every worker, not under `if is_main` or "
                "@rank_zero_only, or use training.evaluate(). A slow worker may still come.",
                file=sys.stderr,
                flush=True,
            )
        return True

    def _is_first_to_say(self, count: int) -> bool:
        """Whether no other worker has warned of this pass."""
        own = str(self._worker.rank)
        return self._store.compare_set(f"warned {count}", "", own).decode() == own


def _named(ranks: list[int]) -> str:
    return f"worker{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
