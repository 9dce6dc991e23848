"""The imports of the package, read from its source: also those inside of functions, and those named as text.

`python tests/style/arrows.py` draws the arrows between the folders, with how many modules each stands for.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "farandole"
LAYERS = ("adapters", "plugins", "experiments", "cli")
"""From the lowest to the highest: each may import those before it."""

# "..experiments.cli:experiment", ".run" or "farandole.adapters.torch.engines.ddp:DDPStrategy" names a module.
_TEXT = re.compile(r"(?P<module>\.+\w[\w.]*|farandole(?:\.\w+)+)(?::\w+)?")


@dataclass(frozen=True)
class Arrow:
    """One module imports another; `at_once` where that happens when it is itself imported."""

    importer: str
    imported: str
    at_once: bool


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Return the files of the package's modules by name."""
    found = {}
    for layer in LAYERS:
        for path in sorted((root / layer).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join((PACKAGE, *(parts[:-1] if parts[-1] == "__init__" else parts)))] = path
    return found


def arrows(files: dict[str, Path]) -> Iterator[Arrow]:
    """Yield each import of one of these modules by another."""
    for name, path in files.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        tree = ast.parse(path.read_text())
        for node, at_once in _walk(tree, at_once=True):
            for imported in {_module(target, files) for target in _imported(node, package)} - {"", name}:
                yield Arrow(name, imported, at_once)
            for named in {_absolute(text, package) for text in _named(node)} & files.keys() - {name}:
                yield Arrow(name, named, at_once=False)


def upward(found: Iterable[Arrow]) -> list[Arrow]:
    """Return the arrows from a lower layer to a higher one."""
    return [arrow for arrow in found if _layer(arrow.importer) < _layer(arrow.imported)]


def circle(found: Iterable[Arrow]) -> list[str]:
    """Return modules of which each imports the next one as soon as it is imported, and the last one the first."""
    after: dict[str, set[str]] = {}
    for arrow in found:
        if arrow.at_once:
            after.setdefault(arrow.importer, set()).add(arrow.imported)
    done: set[str] = set()
    path: list[str] = []

    def search(name: str) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        path.append(name)
        for other in sorted(after.get(name, ())):
            if loop := search(other):
                return loop
        path.pop()
        done.add(name)
        return []

    return next(filter(None, map(search, sorted(after))), [])


def draw(found: Iterable[Arrow], files: dict[str, Path]) -> str:
    """Return a line for each two folders of which one imports the other."""
    pairs = {(arrow.importer, arrow.imported) for arrow in found}
    between = Counter((_folder(files[importer]), _folder(files[imported])) for importer, imported in pairs)
    lines = [f"{one} -> {other}  {count}" for (one, other), count in sorted(between.items()) if one != other]
    return "\n".join(lines)


def _walk(node: ast.AST, at_once: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield child, at_once and not inside
        yield from _walk(child, at_once and not inside)


def _imported(node: ast.AST, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        module = _absolute("." * node.level + (node.module or ""), package)
        return [f"{module}.{alias.name}" for alias in node.names]
    return []


def _named(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and (text := _TEXT.fullmatch(node.value)):
        return [text["module"]]
    return []


def _absolute(module: str, package: str) -> str:
    level = len(module) - len(module.lstrip("."))
    if not level:
        return module
    above = package.split(".")
    return ".".join([*above[: len(above) - level + 1], *filter(None, [module.lstrip(".")])])


def _module(target: str, files: dict[str, Path]) -> str:
    """The module of a dotted name, which is a module or its attribute."""
    while target and target not in files:
        target = target.rpartition(".")[0]
    return target


def _layer(module: str) -> int:
    return LAYERS.index(module.split(".")[1])


def _folder(path: Path) -> str:
    return "/".join(path.relative_to(ROOT).parts[:-1][:2])


if __name__ == "__main__":
    print(draw(arrows(modules()), modules()))
