"""A number that is still being reduced over the workers, and is waited for when it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Pending:
    """A number that is the same on all workers; reading it (`float(x)`, `x.item()`, arithmetic, formatting) waits.

    Waiting is local: the reduction was started on every worker, so one worker may read it without the others.
    """

    __slots__ = ("_read", "_value")

    def __init__(self, read: Callable[[], float]) -> None:
        self._read: Callable[[], float] | None = read
        self._value = 0.0

    def item(self) -> float:
        """Return the number, waiting for it the first time."""
        if self._read is not None:
            self._value = float(self._read())
            self._read = None
        return self._value

    __float__ = item

    def __repr__(self) -> str:
        return repr(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec)

    def __bool__(self) -> bool:
        return bool(self.item())

    def __hash__(self) -> int:
        return hash(self.item())

    def __eq__(self, other: object) -> bool:
        return bool(self.item() == _number(other))

    def __lt__(self, other: Any) -> bool:
        return bool(self.item() < _number(other))

    def __le__(self, other: Any) -> bool:
        return bool(self.item() <= _number(other))

    def __gt__(self, other: Any) -> bool:
        return bool(self.item() > _number(other))

    def __ge__(self, other: Any) -> bool:
        return bool(self.item() >= _number(other))

    def __add__(self, other: Any) -> Any:
        return self.item() + _number(other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return self.item() - _number(other)

    def __rsub__(self, other: Any) -> Any:
        return _number(other) - self.item()

    def __mul__(self, other: Any) -> Any:
        return self.item() * _number(other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        return self.item() / _number(other)

    def __rtruediv__(self, other: Any) -> Any:
        return _number(other) / self.item()

    def __neg__(self) -> float:
        return -self.item()

    def __abs__(self) -> float:
        return abs(self.item())


def _number(other: Any) -> Any:
    return other.item() if isinstance(other, Pending) else other
