"""Let DeepSpeed reduce gradients while backward runs, but only if all workers use the same parameters."""

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
    """Compares with the other workers the trained parameters on which a loss does not depend; it starts at once.

    On CUDA it runs on its own stream, and its result is there long before the forward pass is computed.
    """

    def __init__(self, unused: list[bool], device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        digest = zlib.crc32(bytes(unused))
        with self._on_stream():
            self._extremes = torch.tensor([digest, -digest], device=device)
            self._work: Any = dist.all_reduce(self._extremes, dist.ReduceOp.MAX, async_op=True)

    def is_completed(self) -> bool:
        """Whether `is_same` returns without waiting."""
        return bool(self._work.is_completed())

    def is_same(self) -> bool:
        """Wait, and return whether all workers have the same parameters."""
        with self._on_stream():
            self._work.wait()
            largest, smallest = self._extremes.tolist()
        return bool(largest == -smallest)

    def _on_stream(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


class Gate:
    """Holds a backward pass's gradients back from DeepSpeed until the workers have compared what they use.

    DeepSpeed collects gradients in a bucket as they come, and reduces a full one while backward continues. So the
    comparison is needed only when the first bucket is full. If the workers use the same parameters, DeepSpeed gets the
    gradients in their order, and reduces the same buckets at the same time as without a gate. If not, the gradients
    stay whole until the end of backward.

    Args:
        engine, zero: DeepSpeed's, and its optimizer.
        numels: the number of elements of each trained parameter.
        pass_on: gives a parameter's gradient to DeepSpeed.
        waiting: times the wait for the comparison.
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
        """Run DeepSpeed's backward; return whether it has reduced the gradients, which else are whole, in `grad`.

        `DeepSpeedEngine.coalesce_grad_reduction` uses the same two flags, but refuses accumulation that the caller
        counts, although nothing in it depends on that.
        """
        self._comparison = comparison
        self._shut(True)
        try:
            # DeepSpeed reduces all gradients of a leaf module (`set_z3_leaf_modules`) at once, without our hook.
            if any(self._zero.leaf_parameters.values()):
                self._open_if_same()
            self._engine.real.backward(loss, scale_wrt_gas=False)
            if self._comparison is not None and self._open_if_same():
                self._engine.reduce_gradients()  # as at the end of its own backward
            return self._alike
        finally:
            self._shut(False)
            self._comparison = None
            self._held, self._held_numel = [], 0

    def hold(self, parameter: torch.Tensor) -> None:
        """Hold back a gradient that has just come; called after DeepSpeed's own hook."""
        if self._comparison is None:
            return
        self._held.append(parameter)
        self._held_numel += self._numels[parameter]
        if self._held_numel > self._zero.reduce_bucket_size or self._comparison.is_completed():
            self._open_if_same()

    def _open_if_same(self) -> bool:
        assert self._comparison is not None
        with self._waiting():
            self._alike = self._comparison.is_same()
        self._comparison = None
        if self._alike:
            self._shut(False)
            for parameter in self._held:
                self._pass_on(parameter)
        return self._alike

    def _shut(self, shut: bool) -> None:
        self._zero.coalesces_reduction = self._engine.inside_no_sync = shut
