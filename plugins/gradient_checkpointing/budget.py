"""A memory budget as users write it: bytes, "4GiB", or a share."""

from __future__ import annotations

import re

from ...adapters.errors import OptionError

Budget = int | float | str

_UNITS = {"b": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgt", 1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}
_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", re.IGNORECASE)


def budget_bytes(budget: Budget, without: int) -> int:
    """Return the budget in bytes.

    Args:
        budget: an int is bytes, text has a unit (kB, MB, GB or KiB, MiB, GiB), a float is a share of `without`.
        without: the bytes that activations take without checkpointing.

    Raises:
        OptionError: it is none of these, or not positive.
    """
    if isinstance(budget, str):
        found = _TEXT.fullmatch(budget)
        unit = _UNITS.get(found[2].lower()) if found else None
        if found and unit and float(found[1]) > 0:
            return int(float(found[1]) * unit)
    elif isinstance(budget, bool):
        pass
    elif isinstance(budget, int):
        if budget > 0:
            return budget
    elif isinstance(budget, float) and 0 < budget <= 1:
        return int(budget * without)
    raise OptionError(f"budget={budget!r} must be bytes, as an int or text such as '4GiB', or a share from 0 to 1")


def check_budget(budget: Budget | None) -> None:
    """Raise `OptionError` if no model could have this budget."""
    if budget is not None:
        budget_bytes(budget, without=0)
