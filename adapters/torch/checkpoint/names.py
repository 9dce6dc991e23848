"""The names in a model's state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Names:
    """A model's state by its names in `state_dict()`.

    parameters, buffers: each by the first of its names.
    aliases: the other names of tied ones, with their first name.
    others: everything else: extra state, and what a module adds to its state.
    """

    parameters: dict[str, torch.nn.Parameter] = field(default_factory=dict)
    buffers: dict[str, torch.Tensor] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)

    @property
    def of_parameters(self) -> dict[torch.nn.Parameter, str]:
        """The parameters' names."""
        return {parameter: name for name, parameter in self.parameters.items()}


def names_of(model: torch.nn.Module) -> Names:
    """Return the names in a model's state; parameters' values are not read, as an engine may have sharded them."""
    names = Names()
    state = model.state_dict(keep_vars=True)  # first: an engine may replace parameters by its shards for it
    parameters = {id(parameter) for parameter in model.parameters()}
    buffers = {id(buffer) for buffer in model.buffers()}
    first: dict[int, str] = {}
    for name, value in state.items():
        if id(value) in first:
            names.aliases[name] = first[id(value)]
        elif id(value) in parameters:
            names.parameters[name] = value
            first[id(value)] = name
        elif id(value) in buffers:
            names.buffers[name] = value
            first[id(value)] = name
        else:
            names.others[name] = value
    return names
