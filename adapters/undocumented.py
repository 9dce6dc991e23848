"""Access to undocumented names of other libraries.

Each such name stands once, in the `compat.py` of its library. It is checked before anything depends on it: when the
strategy is created, when the plugin is imported, or, if only an object has the name, when a `View` of it is created.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

from .errors import EngineUnavailableError


@dataclass(frozen=True)
class Library:
    """A library, and the versions known to have its undocumented names.

    name: as people write it.
    module: the module to import.
    versions: from the oldest to the newest.
    install: the command that installs the newest of them.
    """

    name: str
    module: str
    versions: tuple[str, ...]
    install: str

    def lacks(self, what: str) -> EngineUnavailableError:
        """Return the error to raise if the installed version lacks a name."""
        installed = getattr(sys.modules.get(self.module), "__version__", "as installed")
        return EngineUnavailableError(
            f"{self.name} {installed} has no {what}, which is needed here and not documented. "
            f"Known to work: {self.name} {', '.join(self.versions)}. Install it: {self.install}"
        )

    def load(self, module: str, name: str | None = None) -> Any:
        """Import a module, or a name in it.

        Raises:
            EngineUnavailableError: the installed version lacks it.
        """
        try:
            imported = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise
            raise self.lacks(module) from error
        return imported if name is None else self.get(imported, name)

    def get(self, owner: Any, name: str) -> Any:
        """Return an attribute.

        Raises:
            EngineUnavailableError: the installed version lacks it.
        """
        try:
            return getattr(owner, name)
        except AttributeError:
            raise self.lacks(f"{_called(owner)}.{name}") from None


class Name:
    """An undocumented attribute of another library's objects, read and set through a `View` of one."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, view: Any, owner: type) -> Any:
        return self if view is None else getattr(view.real, self.name)

    def __set__(self, view: Any, value: Any) -> None:
        setattr(view.real, self.name, value)


class Method(Name):
    """A name that already the class of the objects has: a method or a property."""


class View:
    """An object of another library, with its undocumented names.

    real: the object.

    Raises:
        EngineUnavailableError: a name is missing; raised by the constructor and by `check_class`.
    """

    library: ClassVar[Library]

    def __init__(self, real: Any) -> None:
        self._require(real, Name)
        self.real = real

    @classmethod
    def check_class(cls, real: type) -> None:
        """Check the names that the class of the objects must have, before there is an object."""
        cls._require(real, Method)

    @classmethod
    def _require(cls, owner: Any, kind: type[Name]) -> None:
        for base in cls.__mro__:
            for value in vars(base).values():
                if isinstance(value, kind):
                    cls.library.get(owner, value.name)


def _called(owner: Any) -> str:
    """Return an object's name in a message: of a module or class its own, of others their class's."""
    return str(owner.__name__) if hasattr(owner, "__name__") else type(owner).__name__
