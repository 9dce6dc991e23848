"""TCP ports that workers meet at: found free, or refused with the name of who holds them."""

from __future__ import annotations

import socket

import psutil

from ...adapters.errors import LauncherError


def free_port() -> int:
    """Return a port that nobody on this machine listens at now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


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
