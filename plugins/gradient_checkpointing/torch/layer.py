"""The forward pass of a checkpointed layer, and the same pass computed again while backward runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import checkpoint

from ....adapters.errors import OptionError
from .arguments import put_tensors, take_tensors
from .buffers import Buffers, Modes, in_modes, modes_of
from .compat import version_of
from .frozen import FrozenDetached
from .saved import seeing_saved

if TYPE_CHECKING:
    from .operators import Keep
    from .profile import LayerRecord, Profile

_NOT_COMPILED = "a checkpointed layer that may write buffers, or has a budget to keep"
_NOTHING = contextlib.nullcontext()
_CACHES = ("past_key_values", "past_key_value", "layer_past")


class CheckpointedForward:
    """A layer's forward pass in the place of its own: `layer.forward = CheckpointedForward(...)`.

    Names of parameters, hooks and the class of the layer stay as they are, and copies of the model are checkpointed
    too.

    on: whether to checkpoint, for passes that record gradients.
    whole: whether to compute again what `keep` would keep.
    profile: measures the passes from now on.
    watch: called with this and the arguments before each pass that records gradients.

    Args:
        name: of the layer, for messages.
        keep: the operators whose results are kept, if any.
        offload: keep the arguments in host memory.
        detach_frozen: whether the engine gathers parameters for each layer; see `FrozenDetached`.
    """

    def __init__(
        self,
        layer: torch.nn.Module,
        name: str,
        keep: Keep | None = None,
        offload: bool = False,
        detach_frozen: bool = False,
    ) -> None:
        self.layer = layer
        self.name = name
        self.on = True
        self.whole = keep is None
        self.profile: Profile | None = None
        self.watch: Callable[[CheckpointedForward, Any], None] | None = None
        self.buffers = Buffers(layer)
        self.checked: set[Modes] = set()  # the modes in which a recomputation was compared
        self.pure = False  # whether it was, and wrote no buffers
        self._keep = keep
        self._own = vars(layer).get("forward")
        self._offload = offload
        self._detach_frozen = detach_frozen

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "profile": None, "watch": None}  # those are the training's

    def install(self) -> None:
        """Put this in the place of the layer's forward pass."""
        vars(self.layer)["forward"] = self

    def remove(self) -> None:
        """Give the layer its own forward pass back."""
        del vars(self.layer)["forward"]
        if self._own is not None:
            vars(self.layer)["forward"] = self._own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.compute(*args, **kwargs)
        if torch.compiler.is_compiling():
            if self.watch is None and not self.on:
                return self.compute(*args, **kwargs)
            if self.watch is None and self.profile is None and self.pure:
                return self._compiled(args, kwargs)
            return self._uncompiled(args, kwargs)
        return self._run(args, kwargs)

    def compute(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer's own forward pass."""
        with self._frozen():
            if self._own is not None:
                return self._own(*args, **kwargs)
            return type(self.layer).forward(self.layer, *args, **kwargs)

    def _run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if self.watch is not None:
            self.watch(self, (args, kwargs))
        return self._checkpointed(args, kwargs) if self.on else self.compute(*args, **kwargs)

    @torch.compiler.disable(reason=_NOT_COMPILED)  # type: ignore[no-untyped-call, untyped-decorator]
    def _uncompiled(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return self._run(args, kwargs)

    def _compiled(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if self._keep is None or self.whole:
            return checkpoint.checkpoint(self.compute, *args, use_reentrant=False, **kwargs)
        contexts = partial(checkpoint.create_selective_checkpoint_contexts, self._keep.policy)
        return checkpoint.checkpoint(self.compute, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    def _checkpointed(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        for name in _CACHES:
            if kwargs.get(name) is not None:
                raise OptionError(
                    f"layer {self.name!r} adds to a cache ({name}), and would add to it again when it is recomputed: "
                    "set use_cache=False in the model's config"
                )
        if self.profile is None and self._is_plain(args, kwargs):
            modes = modes_of(self.buffers.modules)
            if modes in self.checked:
                return checkpoint.checkpoint(partial(self._in_modes, modes), *args, use_reentrant=False)
        tensors, places = take_tensors((args, dict(kwargs)))
        this_pass = Pass(self, (args, kwargs), places)
        record = self.profile.begin(self.name, self.layer, tensors) if self.profile else None

        def contexts() -> tuple[Any, Any]:
            first, again = _NOTHING, _NOTHING
            if self._keep is not None and record:
                again = self._keep.watching(record.operator)
            elif self._keep is not None and not self.whole:
                first, again = self._keep.contexts()
            return first, _Reusable(lambda: this_pass.recomputing(again))

        with contextlib.ExitStack() as stack:
            if this_pass.check or record:  # the recomputation then goes on to the end
                stack.enter_context(checkpoint.set_checkpoint_early_stop(False))
            if self._offload:
                stack.enter_context(torch.autograd.graph.save_on_cpu(pin_memory=True))
            output = checkpoint.checkpoint(this_pass, *tensors, use_reentrant=False, context_fn=contexts)
        if this_pass.check:
            this_pass.learn(tensors, output)
        if self.profile and record:
            self.profile.end(record, take_tensors(output)[0])
            this_pass.record = record
        return output

    def _is_plain(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether PyTorch's `checkpoint` alone does all that is needed, but for the layer's modes."""
        return (
            self.whole
            and not self._offload
            and not kwargs
            and not self.buffers.any
            and all(isinstance(value, torch.Tensor) for value in args)
        )

    def _in_modes(self, modes: Modes, *args: torch.Tensor) -> Any:
        with in_modes(self.buffers.modules, modes):
            return self.compute(*args)

    def _frozen(self) -> contextlib.AbstractContextManager[Any]:
        if self._detach_frozen and not all(parameter.requires_grad for parameter in self.layer.parameters()):
            return FrozenDetached()
        return contextlib.nullcontext()


class Pass:
    """One forward pass of a layer, and its recomputation.

    check: whether to compare both, as in a layer's first pass.
    record: what is measured of it, if a profile runs.
    """

    record: LayerRecord | None = None

    def __init__(self, forward: CheckpointedForward, arguments: Any, places: Any) -> None:
        self._forward = forward
        self._arguments = arguments  # until the forward pass
        self._places = places
        self._before = forward.buffers.take()
        self.check = self._before.modes not in forward.checked
        self._outputs: list[tuple[torch.Tensor, int]] = []  # each with its version
        self._versions: list[int] = []  # of the arguments
        self._again: list[torch.Tensor] = []  # the recomputed outputs

    def __call__(self, *tensors: torch.Tensor) -> Any:
        if self._arguments is not None:
            (args, kwargs), self._arguments = self._arguments, None
            if self.check:
                self._versions = [version_of(tensor) for tensor in tensors]
            return self._forward.compute(*args, **kwargs)
        args, kwargs = put_tensors(tensors, self._places)
        output = self._forward.compute(*args, **kwargs)
        if self.check or self.record:
            self._again, _ = take_tensors(output)
        return output

    @contextlib.contextmanager
    def recomputing(self, mode: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
        """The context of the recomputation; `mode` must see only the layer's own operators."""
        record = self.record
        with self._before.restored(), seeing_saved(record.see if record else None):
            if record:
                record.begin()
            with mode:
                yield
            if record:
                record.end(self._again)
        if self.check:
            self._compare()
        self._again, self.record = [], None

    def learn(self, tensors: list[torch.Tensor], output: Any) -> None:
        """Learn from the layer's first pass what it writes, and keep the output to compare."""
        if self._versions != [version_of(tensor) for tensor in tensors]:
            raise OptionError(
                f"layer {self._forward.name!r} changes its input in place, and cannot be computed from it again: leave "
                "out inplace=True at its start, or checkpoint a layer around it"
            )
        self._forward.buffers.learn(self._before)
        outputs, _ = take_tensors(output)
        self._outputs = [(tensor.detach(), version_of(tensor)) for tensor in outputs]

    def _compare(self) -> None:
        self.check = False  # backward may come again, with retain_graph=True
        first, self._outputs = self._outputs, []
        if len(first) != len(self._again) or not all(
            version_of(one) != version or _agree(one, other.detach())
            for (one, version), other in zip(first, self._again, strict=True)
        ):
            raise OptionError(
                f"layer {self._forward.name!r} returns something else when it is computed again, and checkpointing "
                "would change its gradients: it draws from a random generator of its own, or counts its calls. Leave "
                "it out of layers"
            )
        self._forward.checked.add(self._before.modes)
        self._forward.pure = not self._forward.buffers.writes()


class _Reusable:
    """A context that can be entered again, for a second backward pass."""

    def __init__(self, make: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        self._make = make

    def __enter__(self) -> None:
        self._context = self._make()
        self._context.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)


def _agree(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are the same, up to the rounding of operators that sum in any order."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if torch.equal(one, other):
        return True
    if not (one.is_floating_point() or one.is_complex()):
        return False
    tolerance = torch.finfo(one.dtype).eps ** 0.5
    largest = float(one.abs().max())
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance * largest, equal_nan=True)
