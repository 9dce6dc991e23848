"""Memory against time, as a picture in SVG.

Without a plotting library: where Matplotlib is installed, Lightning imports it, in each worker's process.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any
from xml.etree import ElementTree

from ..experiment import Row
from .settings import setting

_WIDTH, _HEIGHT, _MARGIN = 720, 420, 60
_COLORS = {"": "#1f77b4", "operators": "#2ca02c", "torch": "#d62728"}
"""Of budgets, budgets with kept operators, and PyTorch's own budgets; other settings are black."""


def picture_of(rows: Sequence[Row]) -> str:
    """Return a panel for each strategy, number of workers and model, one below the other.

    To the right is `peak_mb`, upwards `step_ms`. Each setting is a point with its name, and budgets of one kind are
    connected.
    """
    measured = [row for row in rows if row["peak_mb"] is not None and row["step_ms"] is not None]
    panels = [
        (f"{strategy}, {workers} worker{'s' if workers > 1 else ''}: {model}", list(group))
        for (strategy, workers, model), group in groupby(
            measured, lambda row: (row["strategy"], row["workers"], row["model"])
        )
    ]
    height = str(_HEIGHT * len(panels))
    picture = ElementTree.Element("svg", xmlns="http://www.w3.org/2000/svg", width=str(_WIDTH), height=height)
    picture.set("style", "font: 12px sans-serif; background: white")
    for number, (title, group) in enumerate(panels):
        panel = ElementTree.SubElement(picture, "g", transform=f"translate(0,{_HEIGHT * number})")
        _draw(panel, title, group)
    return ElementTree.tostring(picture, encoding="unicode") + "\n"


def _draw(panel: ElementTree.Element, title: str, rows: Sequence[Row]) -> None:
    right = 1.05 * max(row["peak_mb"] for row in rows) or 1.0
    top = 1.05 * max(row["step_ms"] for row in rows) or 1.0
    bottom = 0.95 * min(row["step_ms"] for row in rows)

    def at(row: Row) -> tuple[float, float]:
        up = (row["step_ms"] - bottom) / ((top - bottom) or 1.0)
        return (
            _MARGIN + (_WIDTH - 2 * _MARGIN) * row["peak_mb"] / right,
            _HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * up,
        )

    _text(panel, _MARGIN, _MARGIN / 2, title)
    low, left = _HEIGHT - _MARGIN, _MARGIN
    frame = f"{left},{_MARGIN} {left},{low} {_WIDTH - _MARGIN},{low}"
    ElementTree.SubElement(panel, "polyline", points=frame, fill="none", stroke="gray")
    _text(panel, left, low + 20, "0")
    _text(panel, _WIDTH - _MARGIN, low + 20, f"{right:.0f} MB at the peak of a step", anchor="end")
    _text(panel, left - 5, low, f"{bottom:.0f}", anchor="end")
    _text(panel, left - 5, _MARGIN, f"{top:.0f} ms", anchor="end")
    kinds: dict[str, list[tuple[float, float]]] = {}
    for row in sorted(rows, key=lambda row: setting(row["setting"]).share or 0):
        how = setting(row["setting"])
        color = "black"
        if how.share is not None:
            color = _COLORS.get(how.kind, "black")
            kinds.setdefault(how.kind, []).append(at(row))
        x, y = at(row)
        ElementTree.SubElement(panel, "circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="3", fill=color)
        _text(panel, x + 5, y - 4, row["setting"], color)
    for kind, points in kinds.items():
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        ElementTree.SubElement(panel, "polyline", points=line, fill="none", stroke=_COLORS.get(kind, "black"))


def _text(panel: Any, x: float, y: float, text: str, color: str = "black", anchor: str = "start") -> None:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "fill": color, "text-anchor": anchor}
    ElementTree.SubElement(panel, "text", place).text = text
