"""Let the workers of a job find each other before their engine does, and say who is missing.

Engines wait for ever for a worker that never comes, or speak of sockets. Here rank 0 listens at its own address of the
cluster, everyone tells it who they are, and all hear what all said.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from typing import Any, TextIO

from .errors import LauncherError
from .origin import PATIENCE, is_stranger, own_origin

Address = tuple[str, int]

_GRACE = 5.0  # seconds that rank 0 may need, beyond the deadline, to tell the others who is missing


def roll_call(addresses: Sequence[Address], rank: int, said: Any, deadline: float) -> list[Any]:
    """Return what each worker said (any JSON), in rank order, on every worker.

    Args:
        addresses: where each worker is; only rank 0's is used, and is free again afterwards.
        deadline: seconds that all have to come.

    Raises:
        LauncherError: a worker did not come, came twice, or has been told of another cluster; on every worker.
    """
    cluster = [f"{host}:{port}" for host, port in addresses]
    if len(addresses) == 1:
        return [said]
    if rank == 0:
        return _take(addresses[0], cluster, said, deadline)
    return _answer(addresses[0], cluster, rank, said, deadline)


def _take(address: Address, cluster: list[str], said: Any, deadline: float) -> list[Any]:
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
            call.hear(_stream(connection, min(ends, time.monotonic() + _GRACE)))
    # Only now: who hears of it may come to the next roll call, and would be heard by this one's server.
    call.reply()
    if call.problem:
        raise LauncherError(call.problem)
    return [call.heard[rank] for rank in range(len(cluster))]


class _Call:
    """What worker 0 hears.

    heard: what was said, by rank.
    aside: by when they are heard, workers that may be another job's; one of this job's comes before them.
    """

    def __init__(self, cluster: list[str], said: Any) -> None:
        self.heard: dict[int, Any] = {0: said}
        self.aside: dict[float, tuple[TextIO, int, Any]] = {}
        self.problem = ""
        self._cluster = cluster
        self._lines: list[TextIO] = []

    def hear(self, line: TextIO) -> None:
        """Note what one worker says."""
        try:
            message = json.loads(line.readline())
            rank, theirs, said, origin = (message[name] for name in ("rank", "cluster", "said", "origin"))
        except (OSError, ValueError, KeyError, TypeError):
            return  # a port scanner, or a worker that died: it will be missed
        if theirs == self._cluster and is_stranger(origin, own_origin(0, len(theirs))):
            self.aside[time.monotonic() + PATIENCE] = line, rank, said
            return
        self._lines.append(line)
        if theirs != self._cluster:
            told, own = ", ".join(theirs), ", ".join(self._cluster)
            self.problem = f"worker {rank} was told of the cluster {told}, worker 0 of {own}: they differ"
        elif rank in self.heard:
            self.problem = f"{_two_are(rank)}: each needs an index of its own in TF_CONFIG's task"
        else:
            self.heard[rank] = said

    def take_from_aside(self) -> None:
        """Hear those for whom nobody of this job has come."""
        for until in [until for until in self.aside if until <= time.monotonic()]:
            line, rank, said = self.aside.pop(until)
            if rank in self.heard:
                self._refuse(line, rank)
            else:
                self._lines.append(line)
                self.heard[rank] = said

    def name_the_missing(self, deadline: float) -> None:
        """Fail, as the deadline has passed."""
        ranks = [rank for rank in range(len(self._cluster)) if rank not in self.heard]
        missing = " and ".join(f"worker {rank} ({self._cluster[rank]})" for rank in ranks)
        self.problem = f"{missing} did not join within {deadline:g} s, while others waited"

    def reply(self) -> None:
        """Tell all what all have said, or what is wrong."""
        said = None if self.problem else [self.heard[rank] for rank in range(len(self._cluster))]
        for line in self._lines:
            _say(line, {"problem": self.problem, "said": said})
        for line, rank, _ in self.aside.values():
            self._refuse(line, rank)

    def _refuse(self, line: TextIO, rank: int) -> None:
        own = ", ".join(self._cluster)
        problem = f"{_two_are(rank)} of the cluster {own}: two jobs were told the same TF_CONFIG; choose other ports"
        _say(line, {"problem": self.problem or problem})


def _two_are(rank: int) -> str:
    return f"two processes say that they are worker {rank}"


def _answer(address: Address, cluster: list[str], rank: int, said: Any, deadline: float) -> list[Any]:
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
    line = _stream(connection, ends)
    origin = own_origin(rank, len(cluster))
    _say(line, {"rank": rank, "cluster": cluster, "said": said, "origin": origin})
    try:
        reply = json.loads(line.readline())
    except (OSError, ValueError):
        raise LauncherError(
            f"worker 0 ({cluster[0]}) ended, or is something else, before all workers had joined: see its own output"
        ) from None
    if reply["problem"]:
        raise LauncherError(reply["problem"])
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


def _stream(connection: socket.socket, ends: float) -> TextIO:
    connection.settimeout(max(1.0, ends - time.monotonic()))
    stream: TextIO = connection.makefile("rw", encoding="utf-8")
    connection.close()  # the stream keeps it open
    return stream


def _say(line: TextIO, message: Any) -> None:
    try:
        line.write(json.dumps(message) + "\n")
        line.flush()
    except OSError:
        pass  # who died meanwhile is missed by the engine
