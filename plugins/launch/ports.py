"""TCP ports at which workers meet: free ones are found and held, used ones are refused with the program's name."""

from __future__ import annotations

import socket

import psutil

from ...adapters.errors import LauncherError
from ...adapters.launch.tf_config import consecutive_ports


def hold_ports(number: int) -> list[socket.socket]:
    """Return sockets bound to different free ports, which keep other programs off until they are closed.

    The system gives such a port to nobody else, but a server that asks for it by number can listen there if it sets
    SO_REUSEADDR, as torch's, DeepSpeed's and TensorFlow's do.
    """
    held = [socket.socket() for _ in range(number)]
    for each in held:
        each.bind(("", 0))
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # after bind, which must find an unused port
    return held


def port_of(held: socket.socket) -> int:
    """Return the port that a socket is bound to."""
    return int(held.getsockname()[1])


def check_ports(number: int, first: int) -> list[int]:
    """Return `number` ports from `first` upward.

    Raises:
        OptionError: there are not enough.
        LauncherError: one of them is in use or reserved.
    """
    ports = consecutive_ports(number, first)
    for port in ports:
        check_port(port)
    return ports


def check_port(port: int) -> None:
    """Raise `LauncherError` if `port` is in use or reserved; the message names the program that uses it."""
    with socket.socket() as probe:
        # As servers do: connections of an earlier one may linger.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except PermissionError:
            raise LauncherError(f"port {port} is reserved for the system: choose one from 1024 up") from None
        except OSError:
            raise LauncherError(
                f"port {port} is in use{_by(port)}: choose another, or leave out --port to use a free one"
            ) from None


def _by(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:  # other users' processes are hidden on some systems
        pass
    return ""
