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
    heard: dict[int, Any] = {0: said}
    lines: list[TextIO] = []
    problem = ""
    with _listen(address, cluster) as server:
        while len(heard) < len(cluster) and not problem:
            server.settimeout(max(0.01, ends - time.monotonic()))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                missing = [f"worker {rank} ({cluster[rank]})" for rank in range(len(cluster)) if rank not in heard]
                problem = f"{' and '.join(missing)} did not join within {deadline:g} s, while others waited"
                break
            line = _stream(connection, min(ends, time.monotonic() + _GRACE))
            lines.append(line)
            problem = _hear(line, cluster, heard)
        reply = {"problem": problem, "said": None if problem else [heard[rank] for rank in range(len(cluster))]}
    # Only now: who hears of it may come to the next roll call, and would be heard by this one's server.
    for line in lines:
        _say(line, reply)
    if problem:
        raise LauncherError(problem)
    return [heard[rank] for rank in range(len(cluster))]


def _hear(line: TextIO, cluster: list[str], heard: dict[int, Any]) -> str:
    """Note what one worker says; return what is wrong with it."""
    try:
        message = json.loads(line.readline())
        rank, theirs = message["rank"], message["cluster"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # a port scanner, or a worker that died: it will be missed
    if theirs != cluster:
        return (
            f"worker {rank} was told of the cluster {', '.join(theirs)}, worker 0 of {', '.join(cluster)}: they differ"
        )
    if rank in heard:
        return f"two processes say that they are worker {rank}: each needs an index of its own in TF_CONFIG's task"
    heard[rank] = message["said"]
    return ""


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
    _say(line, {"rank": rank, "cluster": cluster, "said": said})
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
