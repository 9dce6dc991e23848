"""The address at which the other workers of a job reach this machine."""

from __future__ import annotations

import ipaddress
import socket

from ..errors import LauncherError


def host_towards(host: str, port: int) -> str:
    """Return this machine's address on the route to `host`; `host` itself if that is this machine.

    IPv4 only, as TensorFlow's servers and Horovod's are.

    Raises:
        LauncherError: `host` is unknown, or there is no route to it.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
            route.connect((host, port))  # for datagrams this chooses the route and sends nothing
            own = str(route.getsockname()[0])
    except OSError as error:
        raise LauncherError(f"no route from here to {host}:{port}, where the workers meet: {error}") from None
    # A machine's name often resolves to a loopback address, which other machines cannot use; they can use the name.
    return host if ipaddress.ip_address(own).is_loopback else own
