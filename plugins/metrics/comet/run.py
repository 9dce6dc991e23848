"""What sinks and replays agree on: which experiment, how much each may send, and what is said of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .fold import A_MINUTE
from .names import Mode


@dataclass(frozen=True)
class Description:
    """What an experiment says of the run, as of an attempt."""

    attempt: int
    parameters: Mapping[str, Any]
    tags: Sequence[str] = ()
    name: str | None = None


def experiment_key(key: str, mode: Mode, rank: int) -> str:
    """Return the key of a worker's experiment: 32 to 50 letters and digits, as Comet asks."""
    return f"{key}w{rank}" if mode == "per_worker" else key


def share(mode: Mode, world_size: int) -> float:
    """Return how many values in a minute may be sent of one file.

    The limit is one for all that a user sends. Rank 0 has two files.
    """
    return A_MINUTE / (2 if mode == "main_only" else world_size + 1)


def parameters(attempts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what an experiment says of a run: of its latest attempt, and how many workers there were before.

    Args:
        attempts: as in `run.json`.
    """
    latest = attempts[-1]
    plain: dict[str, Any] = {
        name: latest[name] for name in ("strategy", "frontend", "launcher", "world_size", "commit") if latest.get(name)
    }
    plain["hosts"] = ", ".join(sorted(set(latest.get("hosts") or ())))
    sizes = [(each.get("world_size"), each.get("step", 0)) for each in attempts]
    changes = [sizes[0], *(now for before, now in pairwise(sizes) if now[0] != before[0])]
    if len(changes) > 1:
        plain["world_size_changes"] = ", ".join(f"{size} from step {step}" for size, step in changes)
    plain |= {name: _plain(value) for name, value in (latest.get("parameters") or {}).items()}
    plain |= {f"option/{name}": _plain(value) for name, value in (latest.get("options") or {}).items()}
    plain |= {f"version/{name}": _plain(value) for name, value in (latest.get("versions") or {}).items()}
    return plain


def description(
    run: str,
    attempt: int,
    attempts: Sequence[Mapping[str, Any]],
    shared: Mapping[str, Any],
    rank: int,
    host: str | None,
) -> Description | None:
    """Return what this worker has its experiment say of the run; `None` if another worker does.

    Where each worker has an experiment, they are grouped by the run's tag.

    Args:
        run: the run's id.
        attempt: the number of the latest attempt.
        attempts: as in `run.json`; on another machine than rank 0's perhaps the latest only.
        shared: what the sink shares with all workers.
    """
    tags, name = list(shared.get("tags") or ()), shared.get("name")
    if shared["mode"] == "per_worker":
        tags += [f"run {run[:8]}", f"rank {rank}", *([f"host {host}"] if host else [])]
        name = f"{name} worker {rank}" if name else None
    elif rank:
        return None
    return Description(attempt, parameters(attempts), tags, name)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) else str(value)
