"""Undocumented names of other libraries, found in the source of the package.

They belong in a `compat.py`, where each stands once. Python does not say whose a name is, so this goes by what is
certain: an underscored attribute of anything but `self` and `cls` is ours only where its own module defines it; one of
`self` and `cls`, where any of our modules does. What has no underscore is known by its module, or because a `compat.py`
has it.

`python tests/style/private_names.py` prints what each `compat.py` has.
"""

from __future__ import annotations

import ast
import functools
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from arrows import PACKAGE, modules

UNDOCUMENTED = (
    "comet_ml.config",
    "comet_ml.connection",
    "comet_ml.utils",
    "deepspeed.comm.comm",
    "deepspeed.launcher",
    "deepspeed.ops",
    "deepspeed.runtime",
    "deepspeed.utils",
    "horovod.common",
    "horovod.runner",
    "horovod.torch.optimizer",
    "keras.src",
    "tensorflow.compiler",
    "tensorflow.python",
)
"""Modules without an underscore in which nothing, or nothing that we use, is documented."""

_OWN = ("self", "cls")
_BY_TEXT = ("getattr", "hasattr", "setattr", "delattr")
_DOCUMENTED = {"os._exit", "sys._getframe", "torch.Tensor.data.__set__"}
_SPECIAL = {"__enter__", "__exit__", "__notes__", "__path__", "__version__", "__wrapped__", "_fields"}.union(
    *map(dir, (object, type, types, functools.partial, BaseException, UNDOCUMENTED, lambda: 0, Path.cwd))
)
"""What Python documents."""
_AMBIGUOUS = {"all_gather"}  # TensorFlow's replica contexts have a documented one
_OF_DEEPSPEED = "ds_"  # its attributes of parameters


@dataclass(frozen=True)
class Use:
    """A name in a line of a wrong file."""

    file: str
    line: int
    name: str


class Source:
    """A module's source, and the names that it defines and uses."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tree = ast.parse(path.read_text())
        nodes = list(ast.walk(self._tree))
        self._aliases = {
            alias.asname or alias.name: alias.name
            for node in nodes
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        self.defined = {name for node in nodes for name in _defined(node)}
        self.attributes = [found for node in nodes for found in self._attributes(node)]
        self.modules = [found for node in nodes for found in self._modules(node)]
        self.views = [name for node in nodes for name in _named_by_views(node)]

    def _attributes(self, node: ast.AST) -> Iterator[tuple[int, str, bool]]:
        """Yield line and name of an attribute, and whether it is one of `self` or `cls`."""
        if isinstance(node, ast.Attribute) and ast.unparse(node) not in _DOCUMENTED:
            yield node.lineno, node.attr, _is_own(node.value)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _BY_TEXT:
            owner, name = node.args[:2]
            if isinstance(name, ast.JoinedStr):
                name = name.values[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield node.lineno, name.value, _is_own(owner)

    def _modules(self, node: ast.AST) -> Iterator[tuple[int, str]]:
        """Yield line and dotted name of each use of another library."""
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            (name, *_) = node.args
            if isinstance(name, ast.Constant) and isinstance(name.value, str) and not name.value.startswith("."):
                yield node.lineno, name.value
        elif isinstance(node, ast.Attribute):
            root, *rest = ast.unparse(node).split(".")
            yield node.lineno, ".".join([self._aliases.get(root, root), *rest])


def misplaced(files: Mapping[str, Path]) -> list[Use]:
    """Return the names of other libraries outside of every `compat.py`."""
    sources = [Source(path) for path in files.values()]
    ours = set().union(*(source.defined for source in sources))
    named = {name for source in sources for name in source.views} - ours
    found = set()
    for source in sources:
        if source.path.name == "compat.py":
            continue
        known = {True: ours, False: source.defined}
        for line, name, own in source.attributes:
            private = name.startswith("_") and name not in known[own] | _SPECIAL
            if private or name in named - _AMBIGUOUS or name.startswith(_OF_DEEPSPEED):
                found.add(Use(str(source.path), line, name))
        for line, name in source.modules:
            if _is_undocumented(name):
                found.add(Use(str(source.path), line, name))
    return sorted(found, key=lambda use: (use.file, use.line, use.name))


def repeated(files: Iterable[Path]) -> list[str]:
    """Return the names that two views define."""
    names = [name for path in files for name in Source(path).views]
    return sorted({name for name in names if names.count(name) > 1})


def _defined(node: ast.AST) -> Iterator[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_own(node.value):
        yield node.attr


def _named_by_views(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Name", "Method"):
        (name,) = node.args
        assert isinstance(name, ast.Constant)
        yield str(name.value)


def _is_own(node: ast.AST) -> bool:
    return ast.unparse(node) in (*_OWN, "super()")


def _is_undocumented(module: str) -> bool:
    first, *rest = module.split(".")
    if first in (PACKAGE, "__future__", *_OWN) or not first.isidentifier():
        return False
    inside = any(f"{module}.".startswith(f"{known}.") for known in UNDOCUMENTED)
    return inside or (module not in _DOCUMENTED and first in _LIBRARIES and any(map(_is_private, rest)))


def _is_private(name: str) -> bool:
    return name.startswith("_") and name not in _SPECIAL


_LIBRARIES = {"deepspeed", "horovod", "keras", "lightning", "pytorch_lightning", "tensorflow", "torch"}


if __name__ == "__main__":
    for path in modules().values():
        if path.name == "compat.py":
            print(path, *Source(path).views, sep="\n  ")
