"""Let DDP finish backward passes that leave parameters unused, without its search of each step's graph.

DDP's backward waits for a gradient of every parameter. Its own `find_unused_parameters` searches the graph after each
forward pass, also where nothing is unused; it warns then, and takes what a reentrant checkpoint is yet to recompute for
unused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from ..compat import count_changes
from ..graph import leaves_of
from ..no_gradient import Sparse

_NAME = "farandole_used"

_Noted = tuple[torch.Tensor, int] | None


class UnusedParameters:
    """A second backward gives zeros to unused parameters, so that DDP's reduction ends.

    It also reduces one flag per parameter (1: this worker used it), as the gradient of an extra parameter in DDP's
    bucket. Where all flags are 0, the gradient is dropped: zeros would still decay the parameter.

    parameters: those that DDP reduces.
    """

    def __init__(self, module: torch.nn.Module, parameters: Sequence[torch.nn.Parameter]) -> None:
        self.parameters = parameters
        first = parameters[0]  # of its type, so that they share a bucket
        self._used = torch.nn.Parameter(torch.zeros(len(parameters), dtype=first.dtype, device=first.device))
        self._all_used = torch.ones_like(self._used, requires_grad=False)
        self._sparse = Sparse(module)
        self._before: list[_Noted] = []

    @contextlib.contextmanager
    def added_to(self, module: torch.nn.Module) -> Iterator[None]:
        """Add the extra parameter to the module, while DDP is created and looks for parameters."""
        module.register_parameter(_NAME, self._used)
        try:
            yield
        finally:
            delattr(module, _NAME)

    def note_gradients(self) -> None:
        """Note what gradients there are before a backward pass."""
        self._before = [None if parameter.grad is None else _noted(parameter) for parameter in self.parameters]

    def finish_backward(self, loss: torch.Tensor) -> None:
        """End DDP's reduction after the backward pass of a loss; gradients that no worker has are `None`."""
        without_gradient, untouched = [], []
        for number, (parameter, noted) in enumerate(zip(self.parameters, self._before, strict=True)):
            if parameter.grad is None:
                without_gradient.append(number)
            if _is_same(parameter.grad, noted):
                untouched.append(parameter)
        self._before.clear()
        used = self._all_used
        if without_gradient:
            used = used.clone()
            used[without_gradient] = 0
        if untouched:
            # A function of the graph may have no gradient for a parameter: DDP has counted that one already.
            counted = leaves_of(loss)
            untouched = [parameter for parameter in untouched if parameter not in counted]
        self._used.grad = None
        frozen = [parameter for parameter in untouched if not parameter.requires_grad]
        zeros = [self._zeros(parameter) for parameter in untouched]
        for parameter in frozen:
            parameter.requires_grad_(True)
        try:
            torch.autograd.backward([self._used, *untouched], [used, *zeros])
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
        if without_gradient:
            workers_with_gradient = self._used.grad
            assert workers_with_gradient is not None
            counts = workers_with_gradient[without_gradient].tolist()
            for number, count in zip(without_gradient, counts, strict=True):
                if count == 0:
                    self.parameters[number].grad = None

    def _zeros(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        return Sparse.zeros(parameter) if parameter in self._sparse else parameter.new_zeros(()).expand(parameter.shape)


def _noted(parameter: torch.nn.Parameter) -> _Noted:
    """Return a parameter's gradient, and how often it was changed."""
    gradient = parameter.grad
    assert gradient is not None
    if not gradient.is_sparse and gradient.untyped_storage().nbytes() > gradient.nbytes:
        # It is a view of DDP's bucket, and changes of the whole bucket would count.
        gradient = parameter.grad = gradient.clone()
    return gradient, count_changes(gradient)


def _is_same(gradient: torch.Tensor | None, noted: _Noted) -> bool:
    if gradient is None or noted is None:
        return gradient is None and noted is None
    return gradient is noted[0] and count_changes(gradient) == noted[1]
