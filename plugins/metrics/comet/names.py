"""What a record is in Comet: metrics, their names, and how several records become one."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

from ..records import Event, Logged, Record, Window, Workers

Mode = Literal["single", "per_worker", "main_only"]
MODES: tuple[Mode, ...] = ("single", "per_worker", "main_only")
How = Literal["mean", "max", "min", "last"]

_LONGEST = 100  # characters; comet_ml cuts names there
_OURS = re.compile(r"(worker(_\d+)?|workers)/")


class Part(NamedTuple):
    """A number of a record.

    how: what becomes of the numbers of several records.
    weight: of a mean.
    """

    name: str
    value: float
    how: How = "mean"
    weight: float = 1.0


def parts(record: Record, mode: Mode) -> list[Part]:
    """Return what of a record is sent.

    Times are in milliseconds: "step_ms" is `worker_3/step_time`. A worker's means are sent, and the maximum and the
    95th percentile of its steps; of all workers everything. What rank 0 logs has the name that the program gave it,
    what worker 3 logs is `worker_3/NAME`. Names that begin like ours are put under `logged/`. Where every worker has
    its own experiment, they are `worker/step_time` and NAME.
    """
    own = "worker/" if mode == "per_worker" else f"worker_{record.rank}/"
    if isinstance(record, Window):
        found = list(_window(record, own))
    elif isinstance(record, Workers):
        found = list(_workers(record))
    elif isinstance(record, Logged):
        prefix = "" if record.rank == 0 or mode == "per_worker" else own
        found = [Part(prefix + _free(name), value) for name, value in record.values.items()]
    else:
        assert isinstance(record, Event)
        found = []
    return [Part(_short(part.name), part.value, part.how, part.weight) for part in found]


def _window(record: Window, own: str) -> Iterator[Part]:
    for name, spread in record.values.items():
        yield Part(own + _called(name), spread.mean, weight=record.steps)
    step = record.values.get("step_ms")
    if step is not None:
        yield Part(f"{own}step_time_max", step.max, "max")
        yield Part(f"{own}step_time_p95", step.p95, "max")  # no less than that of all these steps


def _workers(record: Workers) -> Iterator[Part]:
    for name, across in record.values.items():
        called = f"workers/{_called(name)}"
        yield Part(f"{called}_min", across.min, "min")
        yield Part(f"{called}_mean", across.mean, weight=record.steps)
        yield Part(f"{called}_max", across.max, "max")
        yield Part(f"{called}_imbalance", across.imbalance, weight=record.steps)
    if record.straggler is not None:
        yield Part("workers/straggler", record.straggler.rank, "last")
        yield Part("workers/straggler_impact", record.straggler.impact, "max")


def _called(name: str) -> str:
    return f"{name.removesuffix('_ms')}_time" if name.endswith("_ms") else name


def _free(name: str) -> str:
    return f"logged/{name}" if _OURS.match(name) else name


def _short(name: str) -> str:
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 9]}~{zlib.crc32(name.encode(errors='replace')):08x}"
