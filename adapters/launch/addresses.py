"""Under which address the other workers of a job reach this machine."""

from __future__ import annotations

import ipaddress
import socket

from ..errors import LauncherError


def host_towards(host: str, port: int) -> str:
    """Return this machine's address on the way to `host`; `host` itself where that is this machine.

    IPv4 only, as TensorFlow's servers and Horovod's are.

    Raises:
        LauncherError: `host` is not known, or no network leads there.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
            route.connect((host, port))  # of datagrams: chooses the route and sends nothing
            own = str(route.getsockname()[0])
    except OSError as error:
        raise LauncherError(f"no way from here to {host}:{port}, where the workers are to meet: {error}") from None
    # A machine's own name often resolves to a loopback address, which is of no use to other machines; the name is.
    return host if ipaddress.ip_address(own).is_loopback else own
