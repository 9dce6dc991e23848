"""Let the user's own optimizer update this worker's partition under ZeRO, parameter by parameter.

ZeRO joins the parameters of a group into one flat tensor, splits it into partitions, and lets an optimizer update this
worker's. We give it an optimizer that passes each parameter's fragment of the partition, and of its gradient, to the
user's optimizer. So parameters keep their own step counts, those without a gradient are not updated (ZeRO would decay
them), and schedulers and the user hold the optimizer that does the work. For an elementwise optimizer the result is the
same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ....errors import OptionError


@dataclass(frozen=True)
class Fragment:
    """One parameter's shard within this worker's partition; DeepSpeed's word.

    start: index of its first element in the flattened parameter.
    partition: the flat tensor that ZeRO lets the optimizer update; the fragment is [offset, offset + numel) of it.
    held: the fragment as the tensor that the user's optimizer updates: a view of the partition.
    """

    start: int
    partition: torch.Tensor
    offset: int
    held: torch.nn.Parameter

    @classmethod
    def within(cls, start: int, partition: torch.Tensor, offset: int, numel: int) -> Fragment:
        """Return the fragment of `numel` elements of a partition."""
        return cls(start, partition, offset, torch.nn.Parameter(partition.detach().narrow(0, offset, numel)))


class DelegatingOptimizer(torch.optim.Optimizer):
    """The optimizer that ZeRO calls: it knows the groups, and passes `step` on.

    Before `step`, ZeRO puts the partitions to update into the groups' "params".
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._fragments: dict[torch.Tensor, list[tuple[torch.nn.Parameter, Fragment]]] = {}
        self._is_used: Callable[[torch.nn.Parameter], bool] = lambda _: True
        trained = [[p for p in group["params"] if p.requires_grad] for group in optimizer.param_groups]
        super().__init__([{"params": parameters} for parameters in trained if parameters], {"lr": 0.0})

    def serve(
        self,
        fragments: Mapping[torch.nn.Parameter, Fragment],
        groups: Sequence[Sequence[torch.nn.Parameter]],
        is_used: Callable[[torch.nn.Parameter], bool],
    ) -> None:
        """Make the user's optimizer update `fragments` instead of the model's parameters, and move its state to them.

        `is_used` returns whether any worker has a gradient for a parameter in this step.
        """
        state = self._optimizer.state
        self._is_used = is_used
        for group, parameters in zip(self._optimizer.param_groups, groups, strict=True):
            group["params"] = [fragments[parameter].held for parameter in parameters if parameter in fragments]
            for parameter in parameters:
                slots = state.pop(parameter, {})
                fragment = fragments.get(parameter)
                if fragment is not None:
                    self._fragments.setdefault(fragment.partition, []).append((parameter, fragment))
                    if slots:
                        state[fragment.held] = {
                            name: _cut(value, parameter, fragment, group) for name, value in slots.items()
                        }

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the fragments of the partitions that are in the groups now."""
        stepped = [
            (parameter, fragment)
            for group in self.param_groups
            for partition in group["params"]
            for parameter, fragment in self._fragments.get(partition, ())
        ]
        for parameter, fragment in stepped:
            if self._is_used(parameter):
                gradient = fragment.partition.grad
                assert gradient is not None, "ZeRO puts the reduced gradient there"
                fragment.held.grad = gradient.narrow(0, fragment.offset, fragment.held.numel())
        self._optimizer.step()
        for _, fragment in stepped:
            fragment.held.grad = None


def _cut(value: Any, parameter: torch.nn.Parameter, fragment: Fragment, group: Mapping[str, Any]) -> Any:
    """Return the fragment of a slot that was made for the whole parameter."""
    if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return value
    if parameter.numel() == 0:
        # Built on a parameter that zero.Init had already partitioned: the slot has only its initial value.
        if "initial_accumulator_value" not in group:
            raise OptionError("the optimizer's state does not fit its parameters: build a new one inside scope()")
        return torch.full_like(fragment.held, group["initial_accumulator_value"])
    return value.reshape(-1).narrow(0, fragment.start, fragment.held.numel()).clone()
