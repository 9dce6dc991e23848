"""What a step freezes beside its own model."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import nn

from farandole.adapters.torch.side_models import SideModels


def trainable(model: nn.Module) -> list[bool]:
    return [parameter.requires_grad for parameter in model.parameters()]


def test_other_models_are_frozen_in_a_step() -> None:
    models, (first, second) = SideModels(), (nn.Linear(2, 1), nn.Linear(2, 1))
    for model in (first, second, first):
        models.add(model)
    second.bias.requires_grad_(False)
    for _ in range(3):
        with models.frozen_beside(first):
            assert trainable(first) == [True, True] and trainable(second) == [False, False]
        assert trainable(second) == [True, False]
    third = nn.Linear(2, 1)
    models.add(third)
    with models.frozen_beside(first):
        assert trainable(third) == [False, False]


def test_layers_that_were_added_later_are_frozen_too() -> None:
    models, (first, second) = SideModels(), (nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 1)))
    models.add(first)
    models.add(second)
    with models.frozen_beside(first):
        pass
    second.append(nn.Linear(1, 1))
    with models.frozen_beside(first):
        assert trainable(second) == [False] * 4
    assert trainable(second) == [True] * 4
    first.append(second[1])  # it belongs to both from now on
    with models.frozen_beside(first):
        assert trainable(second) == [False, False, True, True]


def test_a_model_that_is_freed_is_not_kept() -> None:
    models, first, second = SideModels(), nn.Linear(2, 1), nn.Linear(2, 1)
    models.add(first)
    models.add(second)
    with models.frozen_beside(first):
        pass
    parameter: weakref.ref[torch.Tensor] = weakref.ref(second.weight)
    del second
    gc.collect()
    assert parameter() is None
    with models.frozen_beside(first):
        assert trainable(first) == [True, True]
