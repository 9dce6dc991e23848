"""Have DeepSpeed reduce gradients while backward runs only where all workers use the same parameters."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from ...waiting import Waiting
from .compat import EngineView, ZeroView


class Comparison:
    """Compares with the other workers which trained parameters a loss does not depend on; it starts at once.

    On CUDA it runs on a stream of its own: its result is there long before the forward pass is computed.
    """

    def __init__(self, unused: list[bool], device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        digest = zlib.crc32(bytes(unused))
        with self._on_stream():
            self._extremes = torch.tensor([digest, -digest], device=device)
            self._work: Any = dist.all_reduce(self._extremes, dist.ReduceOp.MAX, async_op=True)

    def is_completed(self) -> bool:
        """Whether `is_alike` returns without waiting."""
        return bool(self._work.is_completed())

    def is_alike(self) -> bool:
        """Wait, and return whether it is the same on every worker."""
        with self._on_stream():
            self._work.wait()
            largest, smallest = self._extremes.tolist()
        return bool(largest == -smallest)

    def _on_stream(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


class Gate:
    """Keeps a backward pass's gradients from DeepSpeed until the workers have compared what they use.

    DeepSpeed collects gradients in a bucket as they come, and reduces a full one while backward goes on. So nobody has
    to wait for the comparison before the first bucket is full. If the workers use the same parameters, DeepSpeed is
    given the gradients in the order they came in, and reduces what it would have reduced without a gate, when it would
    have; if not, the gradients stay whole until backward has ended.

    Args:
        engine, zero: DeepSpeed's, and its optimizer.
        numels: the number of elements of each trained parameter.
        pass_on: has DeepSpeed collect the gradient of a parameter.
        waiting: what times how long the comparison is waited for.
    """

    def __init__(
        self,
        engine: EngineView,
        zero: ZeroView,
        numels: Mapping[torch.Tensor, int],
        pass_on: Callable[[torch.Tensor], None],
        waiting: Waiting,
    ) -> None:
        self._engine = engine
        self._zero = zero
        self._numels = numels
        self._pass_on = pass_on
        self._waiting = waiting
        self._comparison: Comparison | None = None
        self._alike = True
        self._held: list[torch.Tensor] = []
        self._held_numel = 0

    def backward(self, loss: torch.Tensor, comparison: Comparison) -> bool:
        """Run DeepSpeed's backward; return whether it has reduced the gradients, which otherwise are whole, in `grad`.

        `DeepSpeedEngine.coalesce_grad_reduction` holds gradients by the same two flags, but refuses an accumulation
        that its caller counts, although nothing in it depends on who counts.
        """
        self._comparison = comparison
        self._shut(True)
        try:
            # DeepSpeed reduces all gradients of a leaf module (`set_z3_leaf_modules`) at once, and asks nobody.
            if any(self._zero.leaf_parameters.values()):
                self._open_if_alike()
            self._engine.real.backward(loss, scale_wrt_gas=False)
            if self._comparison is not None and self._open_if_alike():
                self._engine.reduce_gradients()  # as at the end of its own backward
            return self._alike
        finally:
            self._shut(False)
            self._comparison = None
            self._held, self._held_numel = [], 0

    def hold(self, parameter: torch.Tensor) -> None:
        """Take up a gradient that has just come; to be called after DeepSpeed's own hook."""
        if self._comparison is None:
            return
        self._held.append(parameter)
        self._held_numel += self._numels[parameter]
        if self._held_numel > self._zero.reduce_bucket_size or self._comparison.is_completed():
            self._open_if_alike()

    def _open_if_alike(self) -> bool:
        assert self._comparison is not None
        with self._waiting():
            self._alike = self._comparison.is_alike()
        self._comparison = None
        if self._alike:
            self._shut(False)
            for parameter in self._held:
                self._pass_on(parameter)
        return self._alike

    def _shut(self, shut: bool) -> None:
        self._zero.coalesces_reduction = self._engine.inside_no_sync = shut
