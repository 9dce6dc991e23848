"""What stands in the place of a user's DataLoader is one, to whoever asks."""

from __future__ import annotations

from typing import Any


class InPlaceOf:
    """Has the attributes and the class of `loader`. A copy of it is `given`: shares belong to the job that runs.

    given: the user's loader.
    loader: what is read in its place.
    """

    def __init__(self, given: Any, loader: Any) -> None:
        self.given = given
        self._loader = loader

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The loader's: Lightning, and its users' code, look by `isinstance` for what they know of DataLoaders."""
        return type(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("given", "_loader"):
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return as_given, (self.given,)


def as_given(loader: Any) -> Any:
    """Return the user's loader, where it is ours in its place that comes back."""
    return loader.given if isinstance(loader, InPlaceOf) else loader
