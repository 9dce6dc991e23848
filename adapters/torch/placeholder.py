"""Run a placeholder for an empty share, so that a worker without samples joins the collectives of a step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ..errors import DataError
from .engine import Engine


@contextlib.contextmanager
def without_side_effects(model: torch.nn.Module) -> Iterator[None]:
    """A context for a placeholder's forward pass, which restores buffers (BatchNorm) and random streams.

    Its backward pass may run inside or after.
    """
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    devices = [buffer.device for buffer in model.parameters() if buffer.device.type == "cuda"][:1]
    with torch.random.fork_rng(devices=devices):
        yield
    for module, name, buffer, before in buffers:
        buffer.data.copy_(before)  # its `data`: backward, which comes later, refuses tensors changed since forward
        setattr(module, name, buffer)


def check_placeholder_gradients(engine: Engine) -> None:
    """Check gradients after a placeholder's loss was not finite.

    A mean over nothing is NaN; its gradient may be 0 (cross_entropy) or NaN, and 0 times NaN is NaN.

    Raises:
        DataError: one of them is not finite.
    """
    if not all(bool(torch.isfinite(gradient).all()) for gradient in engine.gradients()):
        raise DataError(
            "the loss has a gradient that is not finite for a micro-batch of weight 0: if it divides by a count, "
            "divide by at least 1"
        )
