"""Let the workers of a job find each other before their engine does, and say who is missing.

Engines wait for ever for a worker that never comes, or report only sockets. Here rank 0 listens at its own address of
the cluster, every worker sends it a message, and rank 0 sends all messages to all workers.
"""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, TextIO

from .errors import LauncherError
from .origin import PATIENCE, is_stranger, own_origin

Address = tuple[str, int]

_GRACE = 5.0  # seconds that rank 0 may need, beyond the deadline, to tell the others who is missing


Lines = dict[int, TextIO]
"""Connections by the rank at their other end: rank 0 has one to each, the others have one to rank 0."""


def ended(lines: Lines) -> list[int]:
    """Return the ranks whose processes have ended: these connections carry no data, so a readable one is closed.

    A longer-lived process that was forked from a worker keeps its connection open.
    """
    by_file = {line.fileno(): rank for rank, line in lines.items()}
    poll = select.poll()
    for file in by_file:
        poll.register(file, select.POLLIN)
    return sorted(by_file[file] for file, _ in poll.poll(0))


def roll_call(
    addresses: Sequence[Address], rank: int, said: Any, deadline: float, lines: Lines | None = None
) -> list[Any]:
    """Return each worker's `said` (any JSON), in rank order, on every worker.

    Args:
        addresses: the workers' addresses; only rank 0's is used, and is free again afterwards.
        deadline: seconds in which all must connect.
        lines: gets the connections, which then stay open; see `ended`.

    Raises:
        LauncherError: a worker is missing, came twice, or has another cluster; raised on every worker.
    """
    cluster = [f"{host}:{port}" for host, port in addresses]
    if len(addresses) == 1:
        return [said]
    lines = {} if lines is None else lines
    if rank == 0:
        return _take(addresses[0], cluster, said, deadline, lines)
    return _answer(addresses[0], cluster, rank, said, deadline, lines)


def _take(address: Address, cluster: list[str], said: Any, deadline: float, lines: Lines) -> list[Any]:
    ends = time.monotonic() + deadline
    call = _Call(cluster, said)
    with _listen(address, cluster) as server:
        while len(call.heard) < len(cluster) and not call.problem:
            server.settimeout(max(0.01, min([ends, *call.aside]) - time.monotonic()))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                call.take_from_aside()
                if time.monotonic() >= ends:
                    call.name_the_missing(deadline)
                continue
            call.hear(_line(connection, min(ends, time.monotonic() + _GRACE)))
    # After the server is closed: a worker with a reply may start the next roll call, which this server must not answer.
    call.reply()
    if call.problem:
        raise LauncherError(call.problem)
    lines.update((rank, line.reader) for rank, line in call.lines.items())
    return [call.heard[rank] for rank in range(len(cluster))]


class _Call:
    """What worker 0 receives.

    heard, lines: each worker's `said`, and its connection, by rank.
    aside: workers that may belong to another job, by the time until which one of this job's takes precedence.
    """

    def __init__(self, cluster: list[str], said: Any) -> None:
        self.heard: dict[int, Any] = {0: said}
        self.aside: dict[float, tuple[_Line, int, Any]] = {}
        self.problem = ""
        self._cluster = cluster
        self.lines: dict[int, _Line] = {}
        self._others: list[_Line] = []  # connections that also get the problem

    def hear(self, line: _Line) -> None:
        """Read one worker's message."""
        try:
            message = json.loads(line.reader.readline())
            rank, cluster, said, origin = (message[name] for name in ("rank", "cluster", "said", "origin"))
        except (OSError, ValueError, KeyError, TypeError):
            return  # a port scanner, or a worker that died: it will be missed
        if cluster == self._cluster and is_stranger(origin, own_origin(0, len(cluster))):
            self.aside[time.monotonic() + PATIENCE] = line, rank, said
            return
        if cluster != self._cluster or rank in self.heard:
            self._others.append(line)
        if cluster != self._cluster:
            other, own = ", ".join(cluster), ", ".join(self._cluster)
            self.problem = f"worker {rank} has the cluster {other}, worker 0 has {own}: give all workers the same one"
        elif rank in self.heard:
            self.problem = f"{_two_are(rank)}: each needs its own index in TF_CONFIG's task"
        else:
            self.heard[rank], self.lines[rank] = said, line

    def take_from_aside(self) -> None:
        """Accept those whose rank no worker of this job has taken in time."""
        for until in [until for until in self.aside if until <= time.monotonic()]:
            line, rank, said = self.aside.pop(until)
            if rank in self.heard:
                self._refuse(line, rank)
            else:
                self.heard[rank], self.lines[rank] = said, line

    def name_the_missing(self, deadline: float) -> None:
        """Set the problem after the deadline has passed."""
        ranks = [rank for rank in range(len(self._cluster)) if rank not in self.heard]
        missing = " and ".join(f"worker {rank} ({self._cluster[rank]})" for rank in ranks)
        self.problem = f"{missing} did not join within {deadline:g} s, while others waited"

    def reply(self) -> None:
        """Send all messages, or the problem, to all workers."""
        said = None if self.problem else [self.heard[rank] for rank in range(len(self._cluster))]
        for line in (*self.lines.values(), *self._others):
            _say(line, {"problem": self.problem, "said": said})
        for line, rank, _ in self.aside.values():
            self._refuse(line, rank)

    def _refuse(self, line: _Line, rank: int) -> None:
        own = ", ".join(self._cluster)
        problem = f"{_two_are(rank)} of the cluster {own}: two jobs use the same TF_CONFIG; choose other ports"
        _say(line, {"problem": self.problem or problem})


def _two_are(rank: int) -> str:
    return f"two processes say that they are worker {rank}"


def _answer(address: Address, cluster: list[str], rank: int, said: Any, deadline: float, lines: Lines) -> list[Any]:
    ends = time.monotonic() + deadline + _GRACE
    while True:
        try:
            connection = socket.create_connection(address, timeout=max(0.1, min(5.0, ends - time.monotonic())))
            break
        except OSError as error:
            if time.monotonic() > ends - _GRACE:
                raise LauncherError(
                    f"worker 0 ({cluster[0]}) did not join within {deadline:g} s: worker {rank} cannot reach it "
                    f"({error.strerror or error})"
                ) from None
            time.sleep(0.1)
    line = _line(connection, ends)
    origin = own_origin(rank, len(cluster))
    _say(line, {"rank": rank, "cluster": cluster, "said": said, "origin": origin})
    try:
        reply = json.loads(line.reader.readline())
    except (OSError, ValueError):
        raise LauncherError(
            f"worker 0 ({cluster[0]}) ended before all had joined, or another program listens there: see its output"
        ) from None
    if reply["problem"]:
        raise LauncherError(reply["problem"])
    lines[0] = line.reader
    answers: list[Any] = reply["said"]
    return answers


def _listen(address: Address, cluster: list[str]) -> socket.socket:
    try:
        return socket.create_server(("", address[1]), backlog=len(cluster))
    except OSError as error:
        raise LauncherError(
            f"worker 0 cannot listen at {cluster[0]}: {error.strerror or error}. Is another process worker 0 too, or "
            "does another program use the port?"
        ) from None


class _Line(NamedTuple):
    """Both directions of a connection, which stays open as long as one of them exists."""

    reader: TextIO
    writer: TextIO


def _line(connection: socket.socket, ends: float) -> _Line:
    connection.settimeout(max(1.0, ends - time.monotonic()))
    with connection:
        return _Line(connection.makefile("r", encoding="utf-8"), connection.makefile("w", encoding="utf-8"))


def _say(line: _Line, message: Any) -> None:
    try:
        line.writer.write(json.dumps(message) + "\n")
        line.writer.flush()
    except OSError:
        pass  # the engine will notice a worker that died meanwhile
