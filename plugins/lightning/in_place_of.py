"""Objects that replace a user's DataLoader and look like it."""

from __future__ import annotations

from typing import Any


class InPlaceOf:
    """Has the attributes and the class of `loader`. Its copy is `given`, because shares belong to the running job.

    given: the user's loader.
    loader: read in place of `given`.
    """

    def __init__(self, given: Any, loader: Any) -> None:
        self.given = given
        self._loader = loader

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The loader's class: Lightning, and its users' code, test loaders with `isinstance`."""
        return type(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("given", "_loader"):
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return as_given, (self.given,)


def as_given(loader: Any) -> Any:
    """Return the user's loader, also of our replacement."""
    return loader.given if isinstance(loader, InPlaceOf) else loader
