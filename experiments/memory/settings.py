"""The settings that `memory` compares, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

from ...adapters.errors import OptionError, did_you_mean

PLAIN, NATIVE, BLOCKS = "none", "native", "blocks"
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
    """

    name: str
    options: Mapping[str, Any] | None = None
    native: bool = False

    @property
    def share(self) -> float | None:
        """The budget, as a share of the activations without checkpointing."""
        share: float | None = (self.options or {}).get("budget")
        return share


def setting(name: str) -> Setting:
    """Return a setting: "none", "native", "blocks", "operators", "offload", a budget such as "0.5", "operators 0.5".

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
    kind = kind or BLOCKS
    if kind not in _CHECKPOINTED or (share is not None and not 0 < share <= 1):
        known = [PLAIN, NATIVE, *_CHECKPOINTED]
        listed = f"{', '.join(known)}, a share such as 0.5 or operators 0.5"
        raise OptionError(f"there is no setting {name!r}.{did_you_mean(name, known)} There are: {listed}")
    return Setting(name, {**_CHECKPOINTED[kind], **({} if share is None else {"budget": share})})


def settings_of(_ctx: click.Context, _parameter: click.Parameter, text: str) -> list[str]:
    """Return the names in an option, those first that others are compared with.

    Raises:
        OptionError: one is unknown.
    """
    names = [setting(name.strip()).name for name in text.split(",")]
    return list(dict.fromkeys([PLAIN, NATIVE, BLOCKS, *names]))
