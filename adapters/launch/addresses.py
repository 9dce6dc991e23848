"""The address at which the other workers of a job reach this worker."""

from __future__ import annotations

import ipaddress
import socket

from ..errors import LauncherError
from .horovodrun import find_horovodrun_store
from .variables import Launch


def own_host(launch: Launch) -> str:
    """Return the address at which the other workers of this launch reach this worker.

    That is the loopback address if all workers are on this machine, else this machine's address on the route to where
    the launcher has them meet. A launcher without such a place (mpirun) leaves only the machine's name.

    Raises:
        LauncherError: there is no route to that place.
    """
    worker = launch.worker
    # RANK set by hand may come without LOCAL_WORLD_SIZE, which then defaults to the world size.
    counted = launch.launcher != "environment" or worker.world_size == 1
    if counted and worker.local_world_size == worker.world_size:
        return "127.0.0.1"
    store = find_horovodrun_store() if launch.launcher == "horovodrun" else None
    if store is not None:
        return host_towards(store.host, store.port)
    return socket.gethostname() if launch.address is None else host_towards(*launch.address)


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
