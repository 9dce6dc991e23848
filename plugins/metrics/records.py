"""The records of a run, and their form as lines of JSON.

What a worker measures is written to its own file, one object a line:

    {"kind": "window", "attempt": 0, "rank": 1, "time": 1.7e9, "epoch": 0, "step": 40, "steps": 10, "samples": 640,
     "tokens": null, "values": {"step_ms": [41.2, 60.1, 55.0], "loss": 0.31}}
    {"kind": "logged", "attempt": 0, "rank": 1, "time": 1.7e9, "epoch": 0, "step": 33, "values": {"accuracy": 0.9}}

JSON has no numbers that are not finite: they are written as the texts "nan", "inf" and "-inf".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple

Level = Literal["warning", "critical"]
EventName = Literal["begin", "end", "world_size", "straggler", "sink"]

NOT_FINITE = ("nan", "inf", "-inf")


class Spread(NamedTuple):
    """One worker's measures of some steps. A number that is read once in a window is all three."""

    mean: float
    max: float
    p95: float

    @classmethod
    def of(cls, value: float) -> Spread:
        """Return the spread of a single reading."""
        return cls(value, value, value)


@dataclass(frozen=True)
class Across:
    """One value over all workers; imbalance is the maximum over the mean, minus 1."""

    min: float
    mean: float
    max: float
    imbalance: float


@dataclass(frozen=True)
class Straggler:
    """The worker that the others waited for.

    cause: the phase that explains most of its excess: "data", "forward", "backward", "update", "memory" (paging) or
        "gc" (garbage collection); else "unexplained".
    impact: the time that it costs each step, as a share of the step.
    seconds_an_hour: what that is in an hour of training.
    """

    rank: int
    cause: str
    impact: float
    level: Level
    seconds_an_hour: float


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What all records have.

    attempt: how often the run was started before.
    rank: the worker that wrote it.
    time: seconds since 1970; within an attempt it grows, whatever the machine's clock does.
    epoch: whole epochs that are done.
    step: updates since the run began. After a restart from a checkpoint it continues there: steps that are done again
        have the same numbers, in a later attempt.
    """

    kind: ClassVar[str]

    attempt: int
    rank: int
    time: float
    epoch: int
    step: int


@dataclass(frozen=True, kw_only=True)
class Window(_Record):
    """One worker's measures of the `steps` steps up to `step`.

    samples, tokens: its own, in all of these steps; `None` if they are unknown. Tokens are what `batches(weight=...)`
        counts.
    values: by name, with the unit at its end; what the engine cannot tell is missing. "step_ms" is the sum of
        "data_ms", "forward_ms", "backward_ms", "update_ms", "communication_ms" (the collectives' own time: what the
        worker that waits least spends in them), "wait_ms" (the rest of the time in collectives: waiting for other
        workers), "save_ms" and "other_ms". "gc_ms" (garbage collection) is inside of these. Then there are
        "samples_per_s", "tokens_per_s", "loss", "grad_norm", "memory_mb" (a million bytes), "cpu_percent" (of one
        processor), "gpu_percent", "gpu_memory_mb" and "gpu_watts".
    """

    kind = "window"

    steps: int
    samples: int | None = None
    tokens: float | None = None
    values: Mapping[str, Spread]


@dataclass(frozen=True, kw_only=True)
class Logged(_Record):
    """Numbers that the program gave to `training.log`."""

    kind = "logged"

    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Workers(_Record):
    """The same window of all workers together; rank 0 writes it.

    values: the workers' means, compared.
    straggler: the worker that was slow in it, if one was.
    """

    kind = "workers"

    steps: int
    values: Mapping[str, Across]
    straggler: Straggler | None = None


@dataclass(frozen=True, kw_only=True)
class Event(_Record):
    """Something that happened at a step; `text` says it to people, `details` are any JSON."""

    kind = "event"

    event: EventName
    text: str
    details: Mapping[str, Any] = field(default_factory=dict)


Record = Window | Logged | Workers | Event

_KINDS: dict[str, type[Record]] = {cls.kind: cls for cls in (Window, Logged, Workers, Event)}


def to_line(record: Record) -> str:
    """Return a record as a line of JSON, without the newline."""
    plain: dict[str, Any] = {"kind": record.kind, **{each.name: getattr(record, each.name) for each in fields(record)}}
    if isinstance(record, Window):
        plain["values"] = {name: _short(spread) for name, spread in record.values.items()}
    elif isinstance(record, Workers):
        plain["values"] = {name: vars(across) for name, across in record.values.items()}
        plain["straggler"] = None if record.straggler is None else vars(record.straggler)
    return json.dumps(finite(plain), separators=(",", ":"), allow_nan=False)


def from_line(line: str | bytes) -> Record | None:
    """Return the record in a line of JSON; `None` if the line is torn, or of a kind that is not known."""
    try:
        plain = json.loads(line)
        cls = _KINDS[plain.pop("kind")]
        known = {each.name for each in fields(cls)}
        given = {name: value for name, value in plain.items() if name in known}
        if cls is Window:
            given["values"] = {name: _long(value) for name, value in given["values"].items()}
            given["tokens"] = None if given.get("tokens") is None else number(given["tokens"])
        elif cls is Logged:
            given["values"] = {name: number(value) for name, value in given["values"].items()}
        elif cls is Workers:
            given["values"] = {
                name: Across(**{part: number(value) for part, value in across.items()})
                for name, across in given["values"].items()
            }
            found = given.get("straggler")
            given["straggler"] = found and Straggler(**found)
        record: Record = cls(**given)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return record


def finite(value: Any) -> Any:
    """Return nested JSON with texts in place of numbers that are not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return value


def number(value: Any) -> float:
    """Return a number as it was before `finite`.

    Raises:
        TypeError: it is none.
    """
    if isinstance(value, str) and value in NOT_FINITE:
        return float(value)
    if isinstance(value, (int, float)):
        return value
    raise TypeError(f"{value!r} is not a number")


def _short(spread: Spread) -> float | list[float]:
    return spread.mean if len(set(map(repr, spread))) == 1 else list(spread)


def _long(value: Any) -> Spread:
    return Spread(*map(number, value)) if isinstance(value, list) else Spread.of(number(value))
