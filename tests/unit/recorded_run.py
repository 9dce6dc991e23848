"""A run's folder as a job would leave it, of any number of workers, in no time."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farandole.plugins.metrics.folder import FORMAT
from farandole.plugins.metrics.records import (
    Across,
    Event,
    Logged,
    Record,
    Spread,
    Straggler,
    Window,
    Workers,
    to_line,
)

START = 1_700_000_000.0
BATCH = 64  # samples a step of each worker


@dataclass(frozen=True)
class Attempt:
    """Some windows of a job; `first` is the step that it continues from, `end` the text of its last event."""

    workers: int
    first: int
    last: int
    end: str | None = None
    error: bool = False


ONE = (Attempt(4, 0, 400, "the training ended"),)


def record_run(
    folder: Path,
    attempts: Sequence[Attempt] = ONE,
    *,
    every: int = 10,
    slow: int | None = None,
    slow_from: int = 100,
    host: str = "node",
    logged: Sequence[str] = ("accuracy",),
    loss_is_nan_at: int | None = None,
    **info: Any,
) -> Path:
    """Write a folder of a run; `slow` is a worker that is 30 % slower in its data from a step on."""
    folder.mkdir(parents=True, exist_ok=True)
    chance, noise = random.Random(0), random.Random(1)
    lines: dict[str, list[str]] = {}
    entries, now = [], START

    def put(record: Record, file: str | None = None) -> None:
        lines.setdefault(file or f"worker-{record.rank}.jsonl", []).append(to_line(record))

    def put_event(event: Event) -> None:
        put(event, None if event.rank else "workers.jsonl")

    for number, attempt in enumerate(attempts):
        hosts = [f"{host}-{rank // 4}" for rank in range(attempt.workers)]
        entries.append(_entry(now, attempt, hosts))
        common: dict[str, Any] = {"attempt": number, "epoch": 0}
        at: dict[str, Any] = {**common, "time": now, "step": attempt.first}
        for rank in range(attempt.workers):
            put_event(Event(**at, rank=rank, event="begin", text=f"worker {rank} of {attempt.workers}: ddp"))
        if number and attempts[number - 1].workers != attempt.workers:
            put_event(Event(**at, rank=0, event="world_size", text="another number of workers"))
        for step in range(attempt.first + every, attempt.last + 1, every):
            lost = slow is not None and slow < attempt.workers and step > slow_from
            step_ms = 46.0 if lost else 36.0
            now += step_ms * every / 1000
            loss = 2.3 * math.exp(-step / 150) + 0.02 * noise.random() + 0.05
            loss = math.nan if step == loss_is_nan_at else loss
            means: list[dict[str, float]] = []
            for rank in range(attempt.workers):
                values = _values(chance, step_ms, lost, rank == slow)
                means.append(values)
                spreads = {name: Spread(value, 1.4 * value, 1.2 * value) for name, value in values.items()}
                spreads["loss"] = Spread(loss, loss * 1.1, loss * 1.05)
                at = {**common, "rank": rank, "time": now, "step": step}
                put(Window(**at, steps=every, samples=BATCH * every, values=spreads))
                if rank == 0 and logged:
                    put(Logged(**at, values={name: 1 - loss / 3 + place for place, name in enumerate(logged)}))
            put(
                _workers({**common, "rank": 0, "time": now, "step": step}, every, means, slow if lost else None),
                "workers.jsonl",
            )
        if attempt.end is not None:
            details = {"error": attempt.end} if attempt.error else {}
            at = {**common, "time": now, "step": attempt.last}
            for rank in range(attempt.workers):
                put_event(Event(**at, rank=rank, event="end", text=attempt.end, details=details))
        now += 20
    for file, written in lines.items():
        (folder / file).write_text("".join(f"{line}\n" for line in written))
    about = {"format": FORMAT, "run": "5eed" * 8, "started": START, "attempts": entries, **info}
    (folder / "run.json").write_text(json.dumps(about))
    return folder


def _entry(now: float, attempt: Attempt, hosts: list[str]) -> dict[str, Any]:
    return {
        "started": now,
        "step": attempt.first,
        "world_size": attempt.workers,
        "strategy": "ddp",
        "options": {"bucket_cap_mb": 25},
        "frontend": "loop",
        "launcher": "torchrun",
        "hosts": hosts,
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "versions": {"farandole": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
    }


def _values(chance: random.Random, step_ms: float, lost: bool, is_slow: bool) -> dict[str, float]:
    own = {
        "data_ms": 2.0,
        "forward_ms": 10.0,
        "backward_ms": 17.0,
        "communication_ms": 1.0,
        "update_ms": 3.0,
        "other_ms": 0.5,
    }
    own = {name: value * chance.uniform(0.95, 1.05) for name, value in own.items()}
    if lost and is_slow:
        own["data_ms"] += 10
    wait = max(0.0, step_ms - sum(own.values()))
    memory = 1500 + 40 * chance.random()
    return {**own, "wait_ms": wait, "step_ms": step_ms, "gc_ms": 0.1, "memory_mb": memory, "cpu_percent": 97.0}


def _workers(at: dict[str, Any], every: int, means: list[dict[str, float]], slow: int | None) -> Workers:
    values = {}
    for name in means[0]:
        column = [mean[name] for mean in means]
        mean = sum(column) / len(column)
        values[name] = Across(min(column), mean, max(column), max(column) / mean - 1)
    straggler = None if slow is None else Straggler(slow, "data", 0.22, "critical", 782.0)
    return Workers(**at, steps=every, values=values, straggler=straggler)
