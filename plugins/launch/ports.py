"""TCP ports that workers meet at: found free, or refused with the name of who holds them."""

from __future__ import annotations

import contextlib
import socket

import psutil

from ...adapters.errors import LauncherError, OptionError

_LAST = 65535


def free_port() -> int:
    """Return a port that nobody on this machine listens at now."""
    return free_ports(1)[0]


def free_ports(number: int) -> list[int]:
    """Return as many different ports that nobody on this machine listens at now."""
    with contextlib.ExitStack() as held:  # until all are chosen, so that none is found twice
        probes = [held.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def worker_ports(workers: int, first: int | None) -> list[int]:
    """Return a port for each worker: from `first` upward where it is given, else free ones.

    Raises:
        OptionError: there are not as many ports from `first` on.
        LauncherError: one of those from `first` on cannot be listened at.
    """
    if first is None:
        return free_ports(workers)
    ports = consecutive_ports(workers, first)
    for port in ports:
        check_port(port)
    return ports


def consecutive_ports(number: int, first: int) -> list[int]:
    """Return as many ports from `first` upward, or raise `OptionError` where they would pass the last."""
    if first + number - 1 > _LAST:
        raise OptionError(
            f"--port {first}: {number} ports from it on would pass {_LAST}, the last one; choose a lower one"
        )
    return list(range(first, first + number))


def check_port(port: int) -> None:
    """Raise `LauncherError` where `port` cannot be listened at; the message names the program that holds it."""
    with socket.socket() as probe:
        # As listening servers do: connections of an earlier one may linger.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except PermissionError:
            raise LauncherError(f"port {port} is reserved for the system: choose one from 1024 up") from None
        except OSError:
            raise LauncherError(
                f"port {port} is in use{_by(port)}: choose another, or leave --port out and a free one is found"
            ) from None


def _by(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:  # other users' processes are hidden on some systems
        pass
    return ""
