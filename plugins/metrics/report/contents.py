"""The words of the report: what each part of the page says of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from .history import SHOWN_NAMES, History
from .words import duration, number, of_workers, reason, when

Level = Literal["", "good", "warning", "alarm"]

_SHOWN_SINKS = 5  # of their troubles


@dataclass(frozen=True)
class Said:
    """A text and how bad it is."""

    text: str
    level: Level = ""


@dataclass(frozen=True)
class Card:
    """A number at the top of the page."""

    name: str
    value: str
    detail: str = ""
    level: Level = ""


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    number: bool = True


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    cells: Sequence[str]
    level: Level = ""


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    note: str = ""


@dataclass
class Flagged:
    """How often one worker was the straggler for one cause."""

    rank: int
    cause: str
    steps: list[int] = field(default_factory=list)
    impacts: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    critical: bool = False


def state(history: History, attempts: int) -> Said:
    """Say how the run's last attempt ended, or when it was last heard of."""
    last = [event for event in history.events if event.attempt == attempts - 1]
    failed = [event for event in last if event.event == "end" and event.details.get("error")]
    for event in failed or last:
        if event.event == "end" and (failed or event.rank == 0):
            return Said(event.text, "alarm" if failed else "good")
    heard = max((span.ended for span in history.spans.values()), default=None)
    if heard is None:
        return Said("nothing measured yet", "warning")
    return Said(f"running, or killed: last heard of at {when(heard)}", "warning")


def cards(history: History, attempts: Sequence[Mapping[str, Any]]) -> Iterator[Card]:
    """Yield the numbers at the top."""
    yield Card("Steps", number(history.steps[1]), f"in {duration(history.seconds)}")
    if found := history.speed(limit=1000):
        what, curve = found
        rates = [float(rate) for rate in curve.value if math.isfinite(rate)]
        if rates:
            yield Card(f"{what.capitalize()} a second", number(median(rates)), f"{number(rates[-1])} at the end")
    if losses := history.loss(limit=1000):
        known = [(float(loss), int(step)) for loss, step in zip(losses.value, losses.step, strict=True)]
        least, at = min((each for each in known if math.isfinite(each[0])), default=(math.nan, 0))
        yield Card("Loss", number(known[-1][0], 4), f"lowest {number(least, 4)} at step {number(at)}")
    waits = {rank: share for rank in history.ranks if math.isfinite(share := _waiting(history, rank))}
    if len(waits) > 1:
        least_rank = min(waits, key=waits.__getitem__)
        detail = f"worker {least_rank} least: {waits[least_rank]:.0f} %"
        yield Card("Waiting for others", f"{sum(waits.values()) / len(waits):.0f} %", detail)
    sizes = [int(attempt.get("world_size", 0)) for attempt in attempts]
    if sizes:
        varied = f"{min(sizes)} to {max(sizes)}" if len(set(sizes)) > 1 else _hosts(attempts[-1].get("hosts", []))
        yield Card("Workers", number(sizes[-1]), varied)
    redone = sum(map(history.redone, history.spans))
    again = f"{number(redone)} steps done again" if redone else ""
    yield Card("Restarts", str(max(0, len(attempts) - 1)), again)


def findings(history: History, attempts: Sequence[Mapping[str, Any]], skipped: int) -> Iterator[Said]:
    """Yield what stands out."""
    for flagged in stragglers(history):
        cost = number(median(flagged.seconds))
        yield Said(
            f"Worker {flagged.rank} was the straggler {_between(flagged.steps)}: {reason(flagged.cause)}. It cost "
            f"{100 * median(flagged.impacts):.0f} % of each step, {cost} s an hour.",
            "alarm" if flagged.critical else "warning",
        )
    if history.not_finite:
        windows = "1 window" if len(history.not_finite) == 1 else f"{number(len(history.not_finite))} windows"
        first = number(min(history.not_finite))
        yield Said(f"The loss was not finite in {windows}, for the first time before step {first}.", "alarm")
    for place, attempt in enumerate(attempts[1:], 1):
        yield Said(_restart(history, place, attempts[place - 1], attempt), "warning")
    for event in history.resized:
        yield Said(f"Step {number(event.step)}: {event.text}.", "warning")
    sinks = [event for event in history.events if event.event == "sink"]
    for event in sinks[:_SHOWN_SINKS]:
        yield Said(f"Step {number(event.step)}: {event.text}.", "warning")
    if len(sinks) > _SHOWN_SINKS:
        yield Said(f"Sinks had trouble {number(len(sinks) - _SHOWN_SINKS)} more times.", "warning")
    if len(history.names) > SHOWN_NAMES:
        yield Said(f"{number(len(history.names))} names were logged; the first {SHOWN_NAMES} are shown.")
    if skipped:
        yield Said(f"{number(skipped)} lines of the records were torn or of another version, and are left out.")


def _between(steps: Sequence[int]) -> str:
    """Say in which windows, by their last steps."""
    if len(steps) == 1:
        return f"in the window before step {number(steps[0])}"
    return f"in {number(len(steps))} windows, from step {number(min(steps))} to {number(max(steps))}"


def stragglers(history: History) -> list[Flagged]:
    """Return who was a straggler and why, the most expensive first."""
    found: dict[tuple[int, str], Flagged] = {}
    for window, straggler in history.stragglers:
        flagged = found.setdefault((straggler.rank, straggler.cause), Flagged(straggler.rank, straggler.cause))
        flagged.steps.append(window.step)
        flagged.impacts.append(straggler.impact)
        flagged.seconds.append(straggler.seconds_an_hour)
        flagged.critical |= straggler.level == "critical"
    return sorted(found.values(), key=lambda flagged: -median(flagged.impacts) * len(flagged.steps))


def tables(history: History, attempts: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """Yield the tables below the charts."""
    slow = stragglers(history)
    if slow:
        columns = [Column("Worker"), Column("Host", False), Column("Cause", False), Column("Windows")]
        columns += [Column("Steps"), Column("Impact"), Column("Worst"), Column("s an hour")]
        rows = [
            Row(
                [
                    str(each.rank),
                    _host(attempts, each.rank),
                    each.cause,
                    number(len(each.steps)),
                    f"{number(min(each.steps))} - {number(max(each.steps))}",
                    f"{100 * median(each.impacts):.0f} %",
                    f"{100 * max(each.impacts):.0f} %",
                    number(median(each.seconds)),
                ],
                "alarm" if each.critical else "warning",
            )
            for each in slow
        ]
        yield Table(
            "Stragglers", columns, rows, "Impact is the time that it costs each step: the median, and the worst."
        )
    if len(attempts) > 1:
        columns = [Column("Attempt"), Column("Started", False), Column("Strategy", False), Column("Workers")]
        columns += [Column("From step"), Column("To step"), Column("Done again")]
        yield Table("Restarts", columns, [_attempt(history, *each) for each in enumerate(attempts)])
    yield _workers(history, attempts, {each.rank for each in slow})


def facts(info: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield the environment of the last attempt."""
    yield "Run", str(info.get("run", ""))
    yield "Started", when(info.get("started"))
    last = attempts[-1] if attempts else {}
    for name in ("strategy", "options", "frontend", "launcher", "commit"):
        if last.get(name):
            value = last[name]
            listed = ", ".join(f"{key}={part!r}" for key, part in value.items()) if isinstance(value, dict) else value
            yield name.capitalize(), str(listed)
    yield "Hosts", _hosts(last.get("hosts", []), shown=20)
    versions = last.get("versions") or {}
    yield "Versions", ", ".join(f"{name} {version}" for name, version in versions.items())


def marks(history: History, attempts: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the restarts and changes of the world size, to be marked in the charts."""
    for place, attempt in enumerate(attempts[1:], 1):
        if place in history.spans:
            before, now = attempts[place - 1].get("world_size"), attempt.get("world_size")
            label = "restart" if before == now else f"{before} → {now}"
            text = _restart(history, place, attempts[place - 1], attempt)
            yield {"step": history.spans[place].first, "label": label, "text": text}
    for event in history.resized:
        before, now = (event.details.get(name, "?") for name in ("before", "after"))
        yield {"step": event.step, "label": f"{before} → {now}", "text": event.text}


def _waiting(history: History, rank: int) -> float:
    """Return the share of a worker's time, in percent, that it waited for others; NaN if it was not measured."""
    return 100 * history.total(rank, "wait_ms").mean / history.total(rank, "step_ms").mean


def _restart(history: History, place: int, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = before.get("world_size"), now.get("world_size")
    workers = f"with {of_workers(new)}" if old == new else f"with {of_workers(new)} instead of {old}"
    if place not in history.spans:
        return f"Attempt {place + 1} was started {workers}, and measured nothing."
    again = history.redone(place)
    done = f"; {number(again)} steps were done again" if again else ""
    return f"The run was restarted from step {number(history.spans[place].first)} {workers}{done}."


def _attempt(history: History, place: int, attempt: Mapping[str, Any]) -> Row:
    span = history.spans.get(place)
    measured = [number(span.first), number(span.last), number(history.redone(place))] if span else ["-", "-", "-"]
    names = [str(attempt.get("strategy", "-")), str(attempt.get("world_size", "-"))]
    return Row([str(place + 1), when(attempt.get("started")), *names, *measured])


_OF_WORKERS = (
    ("Step ms", "step_ms", "mean"),
    ("Longest ms", "step_ms", "max"),
    ("Data ms", "data_ms", "mean"),
    ("Garbage ms", "gc_ms", "mean"),
    ("CPU %", "cpu_percent", "mean"),
    ("Memory MB", "memory_mb", "max"),
)


def _workers(history: History, attempts: Sequence[Mapping[str, Any]], slow: set[int]) -> Table:
    measured = {name for totals in history.totals.values() for name in totals}
    shown = [each for each in _OF_WORKERS if each[1] in measured]
    shown += [(name, name, "mean") for name in sorted(measured) if name.startswith("gpu_")]
    columns = [Column("Worker"), Column("Host", False), Column("Waiting"), *(Column(label) for label, _, _ in shown)]
    rows = []
    for rank in history.ranks:
        share = _waiting(history, rank)
        cells = [str(rank), _host(attempts, rank), f"{share:.0f} %" if math.isfinite(share) else "-"]
        for _, name, part in shown:
            value = getattr(history.total(rank, name), part)
            cells.append(number(value) if math.isfinite(value) else "-")
        rows.append(Row(cells, "alarm" if rank in slow else ""))
    return Table("Workers", columns, rows, "Means over all steps, the longest step, and the most memory.")


def _host(attempts: Sequence[Mapping[str, Any]], rank: int) -> str:
    """Return a worker's host in the last attempt that had it."""
    for attempt in reversed(attempts):
        hosts = attempt.get("hosts") or []
        if rank < len(hosts):
            return str(hosts[rank])
    return "-"


def _hosts(hosts: Sequence[Any], shown: int = 1) -> str:
    names = list(dict.fromkeys(map(str, hosts)))
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
