"""What a step freezes beside its own model, and when it searches for that."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from farandole.adapters.torch.side_models import SideModels


class Counting(nn.Linear):
    """Counts how often its parameters are listed."""

    def __init__(self) -> None:
        super().__init__(2, 1)
        self.listed = 0

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        self.listed += 1
        return super().parameters(recurse)


def trainable(model: nn.Module) -> list[bool]:
    return [parameter.requires_grad for parameter in nn.Module.parameters(model)]


def test_other_models_are_frozen_in_a_step_and_searched_once() -> None:
    models, (first, second) = SideModels(), (Counting(), Counting())
    for model in (first, second, first):
        models.add(model)
    second.bias.requires_grad_(False)
    for _ in range(3):
        with models.frozen_beside(first):
            assert trainable(first) == [True, True] and trainable(second) == [False, False]
        assert trainable(second) == [True, False]
    assert second.listed == 1
    third = Counting()
    models.add(third)
    with models.frozen_beside(first):
        assert trainable(third) == [False, False]


def test_a_model_that_is_freed_is_not_kept() -> None:
    models, first, second = SideModels(), Counting(), Counting()
    models.add(first)
    models.add(second)
    with models.frozen_beside(first):
        pass
    parameter: weakref.ref[torch.Tensor] = weakref.ref(second.weight)
    del second
    gc.collect()
    assert parameter() is None
    listed = first.listed
    with models.frozen_beside(first):
        assert trainable(first) == [True, True]
    assert first.listed == listed, "there is none beside it"
