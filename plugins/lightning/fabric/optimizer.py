"""The optimizer that Fabric gets under ZeRO."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class Keeper(Protocol):
    """Does what an optimizer cannot do alone, because it sees only this worker's fragments."""

    def zero_grad(self, set_to_none: bool) -> None: ...

    def optimizer_step(self, optimizer: Any, **kwargs: Any) -> Any: ...

    def get_optimizer_state(self, optimizer: Any) -> dict[str, Any]: ...

    def load_optimizer_state(self, state: dict[str, Any]) -> None: ...


class _Kept:
    """A mixin before the optimizer's class. Fabric wraps the result in the same way."""

    _optimizer: torch.optim.Optimizer
    _keeper: Keeper

    def __getattr__(self, name: str) -> Any:
        if name in ("_optimizer", "_keeper"):
            raise AttributeError(name)
        return getattr(self._optimizer, name)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._keeper.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:
        return self._keeper.optimizer_step(self, **({} if closure is None else {"closure": closure}))

    def state_dict(self) -> dict[str, Any]:
        return self._keeper.get_optimizer_state(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._keeper.load_optimizer_state(state_dict)


def kept(optimizer: torch.optim.Optimizer, keeper: Keeper) -> Any:
    """Return an object of the optimizer's class, with its groups and state; `keeper` does what needs the whole."""
    kind: Any = type(type(optimizer).__name__, (_Kept, type(optimizer)), {})
    found = kind.__new__(kind)
    found.__dict__.update(_optimizer=optimizer, _keeper=keeper)
    return found
