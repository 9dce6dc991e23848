"""The page of a report: one file of HTML, which needs no network, and runs no script but those in it."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ....adapters.errors import EngineUnavailableError
from ..folder import Reader
from . import contents
from .history import Curve, History, Numbers
from .words import of_workers, reason

_HERE = Path(__file__).parent
_POINTS = 1000  # of a curve
_COLUMNS = 300  # of the heat map
_CELLS = 120_000
_MARKED = 1500  # stragglers in the heat map


@dataclass(frozen=True)
class Chart:
    """A place for a chart, drawn by page.js."""

    id: str
    title: str
    note: str = ""
    half: bool = False


def make_page(folder: Path) -> str:
    """Return the report of a run's folder.

    Raises:
        OptionError: it is not the folder of a run.
        EngineUnavailableError: plotly or Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise EngineUnavailableError(
            f"a report needs plotly and Jinja2 ({error}): pip install 'farandole[report]'"
        ) from None
    reader = Reader(folder)
    info = reader.folder.info()
    history = History(reader.records())
    attempts = info["attempts"]
    css, script, library = (_HERE / "page.css").read_text(), (_HERE / "page.js").read_text(), get_plotlyjs()
    numbers = _numbers(history, attempts)
    # All text is escaped, but for these four, which are no text of the run's, or hold no "<".
    whole = {
        "css": Markup(css),
        "script": Markup(script),
        "library": Markup(library),
        "numbers": Markup(json.dumps(numbers, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")),
    }
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    ).from_string((_HERE / "page.html.jinja").read_text())
    return template.render(
        whole,
        policy=_policy(library, script),
        version=version("farandole"),
        title=str(folder),
        about=_about(attempts[-1] if attempts else {}),
        state=contents.state(history, len(attempts)),
        cards=list(contents.cards(history, attempts)),
        findings=list(contents.findings(history, attempts, reader.skipped)),
        charts=list(_charts(numbers)),
        tables=list(contents.tables(history, attempts)),
        facts=[(name, value) for name, value in contents.facts(info, attempts) if value],
    )


def _policy(*scripts: str) -> str:
    """Return a content security policy that runs these scripts, and loads nothing from elsewhere."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{found}'" for found in hashes)
    # plotly.js sets styles in elements, and draws a heat map as an image in a data URL.
    drawing = "style-src 'unsafe-inline'; img-src data:"
    return f"default-src 'none'; script-src {allowed}; {drawing}; base-uri 'none'; form-action 'none'"


def _about(attempt: Mapping[str, Any]) -> str:
    names = [attempt.get(name) for name in ("strategy", "frontend", "launcher")]
    return " · ".join([of_workers(attempt.get("world_size", "?")), *(str(name) for name in names if name)])


def _numbers(history: History, attempts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the charts show, as JSON."""
    speed = history.speed(_POINTS)
    workers = len(history.ranks)
    waiting = history.waiting(max(20, min(_COLUMNS, _CELLS // workers))) if workers > 1 else None
    flagged = history.stragglers[:: max(1, math.ceil(len(history.stragglers) / _MARKED))]
    return {
        "steps": list(history.steps),
        "marks": list(contents.marks(history, attempts)),
        "loss": _curve(history.loss(_POINTS)),
        "speed": _curve(speed[1]) | {"unit": speed[0]} if speed else None,
        "split": {
            "workers": history.ranks,
            "phases": {name: _plain(values) for name, values in history.split().items()},
            "stragglers": sorted({straggler.rank for _, straggler in history.stragglers}),
        },
        "waiting": waiting
        and {
            "workers": waiting.workers,
            "edges": [history.steps[0], *_plain(waiting.step, 9)],
            "percent": [_plain(row, 3) for row in waiting.percent],
            "most": float(np.nanmax(waiting.percent)),
        },
        "stragglers": {
            "step": [window.step - window.steps / 2 for window, _ in flagged],
            "worker": [straggler.rank for _, straggler in flagged],
            "text": [
                f"worker {each.rank}, step {window.step}: {reason(each.cause)}, {100 * each.impact:.0f} % of the step"
                for window, each in flagged
            ],
        },
        "logged": [{"name": name, **_curve(curve)} for name, curve in history.logged(_POINTS // 2).items()],
    }


def _curve(curve: Curve | None) -> dict[str, Any]:
    if curve is None:
        return {}
    high = {} if curve.high is None else {"high": _plain(curve.high)}
    return {"step": _plain(curve.step, 9), "value": _plain(curve.value), **high}


def _plain(values: Numbers | list[float], digits: int = 6) -> list[float | None]:
    """Return numbers for JSON: `None` for what is not finite, and no more digits than can be seen."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values]


def _charts(numbers: Mapping[str, Any]) -> Iterator[Chart]:
    if numbers["loss"]:
        yield Chart("loss", "Loss", half=bool(numbers["speed"]))
    if numbers["speed"]:
        yield Chart("speed", f"{numbers['speed']['unit'].capitalize()} a second", half=bool(numbers["loss"]))
    if numbers["split"]["phases"]:
        note = "Mean milliseconds of a step by phase. The worker that waits least is the one that the others wait for."
        yield Chart("split", "Where each worker's time goes", note)
    if numbers["waiting"]:
        note = "The share of its time that each worker waited for others, by step. A straggler is a pale row"
        marked = ", marked where it was named." if numbers["stragglers"]["step"] else "."
        yield Chart("waiting", "Waiting for others", note + marked)
    for place, curve in enumerate(numbers["logged"]):
        yield Chart(f"logged-{place}", curve["name"], half=True)
