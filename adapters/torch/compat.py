"""Undocumented names of PyTorch that we use, and the versions known to have them.

Names that are public by PyTorch's rule (no underscore, in a module without one) are not here. Files are those of
PyTorch 2.13, below `torch/`.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import torch

from ..undocumented import Library

TORCH = Library("PyTorch", "torch", ("2.13.0", "2.14.1"), "pip install torch==2.14.1")

_CHANGES = "_version"
_HOOKS = "_post_accumulate_grad_hooks"
_KEPT = "farandole_hooks"


def check() -> None:
    """Check what training needs on every engine.

    Raises:
        EngineUnavailableError: the installed PyTorch lacks it.
    """
    batch_norm()
    storage_loader()
    TORCH.get(torch.Tensor, _CHANGES)
    TORCH.get(torch.Tensor, _HOOKS)
    if torch.distributed.is_available():
        _store_getter()


def batch_norm() -> Any:
    """Return the base of all BatchNorm layers, also in other packages (nn/modules/batchnorm.py)."""
    return TORCH.load("torch.nn.modules.batchnorm", "_BatchNorm")


def storage_loader() -> Any:
    """Return the function with which the pickle of a tensor loads its storage (storage.py)."""
    return TORCH.load("torch.storage", "_load_from_bytes")


def count_changes(tensor: torch.Tensor) -> int:
    """Return how often a tensor's memory was changed in place (csrc/autograd/python_variable.cpp)."""
    changes: int = TORCH.get(tensor, _CHANGES)
    return changes


def import_dynamo() -> None:
    """Import what `torch.optim` imports on first use (`_dynamo/`)."""
    TORCH.load("torch._dynamo")


def count_process_groups() -> int:
    """Return the number of process groups in this process (distributed/distributed_c10d.py)."""
    world = TORCH.load("torch.distributed.distributed_c10d", "_world")
    return len(TORCH.get(world, "pg_names"))


def default_store() -> Any:
    """Return the default process group's store, which another program may own (distributed/distributed_c10d.py)."""
    return _store_getter()()


def _store_getter() -> Any:
    return TORCH.load("torch.distributed.distributed_c10d", "_get_default_store")


def show_hooks(parameter: torch.Tensor) -> None:
    """Let Python's garbage collector see a parameter's post-accumulate hooks.

    PyTorch holds them where it does not look: what a hook refers to would never be freed if it refers to the parameter.
    """
    hooks = TORCH.get(parameter, _HOOKS) or {}
    parameter.__dict__[_KEPT] = kept = list(hooks.values())
    hooks.update({number: partial(_call_if_alive, weakref.ref(hook)) for number, hook in zip(hooks, kept, strict=True)})


def forget_hooks(parameter: torch.Tensor) -> None:
    """Forget what `show_hooks` kept, after the hooks were removed."""
    parameter.__dict__.pop(_KEPT, None)


def _call_if_alive(hook: weakref.ref[Any], parameter: torch.Tensor) -> None:
    found = hook()
    if found is not None:
        found(parameter)
