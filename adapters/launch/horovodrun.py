"""horovodrun: its variables, its key-value server for workers, and how it is started.

The server is used without Horovod. Source: KVStoreHandler in horovod/runner/http/http_server.py. A path is /scope/key,
both without a slash; 404 means that nobody has put the key yet.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping

from .. import entry
from ..errors import LauncherError, OptionError
from .start import Job, program_of
from .variables import Variables

VARIABLES = Variables(
    "horovodrun",
    "HOROVOD_RANK",
    "HOROVOD_SIZE",
    "HOROVOD_LOCAL_RANK",
    "HOROVOD_LOCAL_SIZE",
    "HOROVOD_CROSS_RANK",
)

_SCOPE = "farandole"
_ANSWER = 60.0  # seconds that one request may take
_POLL = 0.05  # seconds


class HorovodrunStore:
    """Texts by key, shared by all workers of the open strategy; keys have no slash.

    Raises:
        LauncherError: on any call, the server does not answer.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port

    def put(self, key: str, text: str) -> None:
        self._request("PUT", key, text.encode())

    def get(self, key: str) -> str | None:
        """Return what was put under this key; `None` if nothing was yet."""
        return self._request("GET", key, None)

    def wait(self, key: str, timeout: float) -> str | None:
        """Return what was put under this key, or `None` after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (text := self.get(key)) is None and time.monotonic() < deadline:
            time.sleep(_POLL)
        return text

    def _request(self, method: str, key: str, body: bytes | None) -> str | None:
        from http.client import HTTPConnection, HTTPException  # a slow import, only for those who need it

        # Not urllib: it would send this to a proxy that the environment names.
        connection = HTTPConnection(self.host, self.port, timeout=_ANSWER)
        try:
            connection.request(method, f"/{_SCOPE}_{entry.generation()}/{key}", body)
            answer = connection.getresponse()
            content, status = answer.read().decode(), answer.status
        except (OSError, HTTPException) as error:
            raise LauncherError(
                f"horovodrun's key-value server at {self.host}:{self.port} does not answer: {error!r}. "
                "It ends with horovodrun, and must be reachable from every worker's machine."
            ) from None
        finally:
            connection.close()
        if method == "GET" and status == 404:
            return None
        if status != 200:
            raise LauncherError(f"horovodrun's key-value server at {self.host}:{self.port} answered HTTP {status}")
        return content


def find_horovodrun_store(environ: Mapping[str, str] | None = None) -> HorovodrunStore | None:
    """Return the store that this worker's environment names; `None` if it names none.

    Raises:
        LauncherError: the port is not a number.
    """
    environ = os.environ if environ is None else environ
    host, port = environ.get("HOROVOD_GLOO_RENDEZVOUS_ADDR"), environ.get("HOROVOD_GLOO_RENDEZVOUS_PORT")
    if not host or not port:
        return None
    if not port.isdecimal():
        raise LauncherError(f"HOROVOD_GLOO_RENDEZVOUS_PORT={port!r} is not a port")
    return HorovodrunStore(host, int(port))


def start(job: Job) -> tuple[list[str], dict[str, str]]:
    """Return the arguments and the variables that start a job's workers."""
    if job.port is not None:
        raise OptionError("horovodrun finds free ports by itself: leave out --port")
    argv = [program_of("horovodrun", job), "-np", str(job.workers)]
    if shutil.which("mpirun") is None:
        # Otherwise it imports every framework that Horovod was built for, to find out whether it has MPI.
        argv.append("--gloo")
    if job.hosts:
        argv += ["-H", ",".join(f"{host.name}:{host.slots}" for host in job.hosts)]
    if not job.remote:
        # The cache remembers ssh checks, and is one file under the home folder that concurrent jobs would overwrite.
        argv.append("--disable-cache")
    return [*argv, job.python, *job.program], {}
