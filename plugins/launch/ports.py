"""TCP ports that workers meet at: found free and held, or refused with the name of who holds them."""

from __future__ import annotations

import socket

import psutil

from ...adapters.errors import LauncherError
from ...adapters.launch.tf_config import consecutive_ports


def hold_ports(number: int) -> list[socket.socket]:
    """Return sockets that are bound to different free ports, and keep them from other programs until they are closed.

    The system gives such a port to nobody else, but a server that asks for it by number can listen there, if it sets
    SO_REUSEADDR, as torch's, DeepSpeed's and TensorFlow's do.
    """
    held = [socket.socket() for _ in range(number)]
    for each in held:
        each.bind(("", 0))
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # only now: the port is found as nobody's
    return held


def port_of(held: socket.socket) -> int:
    """Return the port that a socket is bound to."""
    return int(held.getsockname()[1])


def check_ports(number: int, first: int) -> list[int]:
    """Return as many ports from `first` upward.

    Raises:
        OptionError: there are not as many.
        LauncherError: one of them cannot be listened at.
    """
    ports = consecutive_ports(number, first)
    for port in ports:
        check_port(port)
    return ports


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
