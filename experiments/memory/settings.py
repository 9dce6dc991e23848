"""The settings that `memory` compares, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

from ...adapters.errors import OptionError, did_you_mean

PLAIN, NATIVE, BLOCKS, TORCH = "none", "native", "blocks", "torch"
_GROUPS = {
    "budgets": [f"{tenths / 10:g}" for tenths in range(1, 11)],
    "torch": [f"{TORCH} {tenths / 10:g}" for tenths in range(0, 11, 2)],
}
"""Names of several settings."""

_CHECKPOINTED: Mapping[str, Mapping[str, Any]] = {
    BLOCKS: {},
    "operators": {"operators": True},
    "offload": {"offload": True},
}


@dataclass(frozen=True)
class Setting:
    """How a model is trained.

    options: the arguments of `GradientCheckpointing`; `None` is without it.
    native: with the framework's own switch, written into the model.
    kind: of a budget: "" for layers, "operators", or "torch" for PyTorch's own, in a compiled model.
    share: the budget, as a share of the activations without checkpointing.
    """

    name: str
    options: Mapping[str, Any] | None = None
    native: bool = False
    kind: str = ""
    share: float | None = None

    @property
    def ours(self) -> bool:
        """Whether `GradientCheckpointing` is measured."""
        return self.options is not None


def setting(name: str) -> Setting:
    """Return a setting: "none", "native", "blocks", "operators", "offload", "0.5", "operators 0.5", "torch 0.5".

    Raises:
        OptionError: there is none of this name.
    """
    if name in (PLAIN, NATIVE):
        return Setting(name, native=name == NATIVE)
    kind, _, last = name.rpartition(" ")
    try:
        share = float(last)
    except ValueError:
        kind, share = name, None
    if kind == TORCH and share is not None and 0 <= share <= 1:
        return Setting(name, kind=kind, share=share)
    options = _CHECKPOINTED.get(kind or BLOCKS)
    if options is None or (share is not None and not 0 < share <= 1):
        known = [PLAIN, NATIVE, *_CHECKPOINTED, *_GROUPS]
        listed = f"{', '.join(known)}, a share such as 0.5 or operators 0.5"
        raise OptionError(f"there is no setting {name!r}.{did_you_mean(name, known)} There are: {listed}")
    return Setting(name, options if share is None else {**options, "budget": share}, kind=kind, share=share)


def settings_of(_ctx: click.Context, _parameter: click.Parameter, text: str) -> list[str]:
    """Return the names in an option, those first that others are compared with; "budgets" and "torch" name several.

    Raises:
        OptionError: one is unknown.
    """
    asked = [name.strip() for name in text.split(",")]
    names = [setting(one).name for name in asked for one in _GROUPS.get(name, [name])]
    return list(dict.fromkeys([PLAIN, NATIVE, BLOCKS, *names]))
