"""A stand-in for Comet's server over real HTTP, which fails on order and counts what it received.

    with CometServer() as server:
        os.environ |= server.environment
        server.orders = [Order(429), Order(500), Order(500, after=True), Order(delay=10.0)]
        ...
        server.away(5.0)

It answers what comet_ml 3.58 asks: a handshake, batches of metrics and parameters, tags, a heartbeat, and what was
received of a metric. `python -m farandole.experiments.metrics.comet_server` runs it alone.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from .arrival import Received

API_KEY = "standinstandinstandin1234"
"""The only key that it takes."""


@dataclass(frozen=True)
class Order:
    """How to answer one batch of metrics.

    status: of the answer; 0 closes the connection without one.
    after: whether the batch is stored all the same.
    delay: seconds before the batch is stored and answered.
    retry: seconds that a 429 asks to wait.
    """

    status: int = 200
    after: bool = False
    delay: float = 0.0
    retry: float = 0.0


class CometServer:
    """The server, from `with` to the end of it.

    orders: for the next batches of metrics, in order; without one it takes them.
    experiments: what it received, by key.
    requests: how often each path was asked for.
    """

    def __init__(self) -> None:
        self.orders: list[Order] = []
        self.experiments: dict[str, Received] = {}
        self.requests: Counter[str] = Counter()
        self.lock = threading.RLock()
        self.connections: set[socket.socket] = set()
        self._http = self._listen(0)
        self.port: int = self._http.server_address[1]
        self._ended = False

    @property
    def environment(self) -> dict[str, str]:
        """What comet_ml needs in its environment to find it."""
        return {"COMET_URL_OVERRIDE": f"http://127.0.0.1:{self.port}/clientlib/", "COMET_API_KEY": API_KEY}

    @property
    def only(self) -> Received:
        """What the only experiment received."""
        (received,) = self.experiments.values()
        return received

    @property
    def values(self) -> int:
        """Values that came, of all experiments."""
        return sum(len(received.values) for received in self.experiments.values())

    def away(self, seconds: float) -> None:
        """Refuse connections for a while, from now."""
        self.go()
        timer = threading.Timer(seconds, self.come)
        timer.daemon = True
        timer.start()

    def go(self) -> None:
        """Refuse connections."""
        self._http.shutdown()
        self._http.server_close()
        with self.lock:
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def come(self) -> None:
        """Take connections again, at the same port."""
        with self.lock:
            if not self._ended:
                self._http = self._listen(self.port)

    def _listen(self, port: int) -> ThreadingHTTPServer:
        http = _Threads(("127.0.0.1", port), self._handler())
        threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
        return http

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.lock:
            self._ended = True
        self.go()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(_Handler):
            comet = server

        return Handler


class _Threads(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    comet: CometServer
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        with self.comet.lock:
            self.comet.connections.add(self.connection)

    def finish(self) -> None:
        with self.comet.lock:
            self.comet.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client has gone, or `away`
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        self._serve(asked.path, {key: values[0] for key, values in parse_qs(asked.query).items()})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            content = gzip.decompress(content)
        self._serve(self.path, json.loads(content or b"{}"))

    def _serve(self, path: str, asked: dict[str, Any]) -> None:
        what = path.split("clientlib/")[-1].split("rest/v2/")[-1]
        with self.comet.lock:
            self.comet.requests[what] += 1
        answer = _ANSWERS.get(what)
        if API_KEY not in (self.headers.get("Authorization"), asked.get("apiKey")) and not what.startswith("isAlive"):
            self._answer(400, {"sdk_error_code": 90212, "msg": "the API key is not known"})
        elif answer is None:
            self._answer(404, {"msg": f"the stand-in has no {what}"})
        else:
            answer(self, asked)

    def _answer(self, status: int, content: Any, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _of(self, asked: Mapping[str, Any]) -> Received | None:
        found = self.comet.experiments.get(asked.get("experimentKey") or asked.get("previousExperiment") or "")
        if found is None:
            self._answer(400, {"sdk_error_code": 90210, "msg": "there is no such experiment"})
        return found

    def _make(self, asked: dict[str, Any]) -> None:
        key = asked["experimentKey"]
        with self.comet.lock:
            there = key in self.comet.experiments
            if not there:
                made = Received(1, asked["projectName"], asked["teamName"])
                self.comet.experiments[key] = made
        if there and not asked["getOrCreateEnabled"]:
            self._answer(400, {"sdk_error_code": 90999, "msg": "the experiment exists"})
        else:
            self._answer(200, {"runId": f"run-{key}", "project_id": "project", "msg": None})

    def _get(self, asked: dict[str, Any]) -> None:
        if self._of(asked) is not None:
            self._answer(200, {"runId": f"run-{asked['previousExperiment']}", "project_id": "project"})

    def _metrics(self, asked: dict[str, Any]) -> None:
        received = self._of(asked)
        if received is None:
            return
        with self.comet.lock:
            order = self.comet.orders.pop(0) if self.comet.orders else Order()
        time.sleep(order.delay)
        if order.status == 200 or order.after:
            with self.comet.lock:
                received.values += [(time.time(), value) for value in asked["values"]]
        if order.status == 0:
            self.close_connection = True
        elif order.status == 200:
            self._answer(200, {})
        else:
            headers = {"Retry-After-Custom": str(order.retry)} if order.status == 429 else {}
            self._answer(order.status, {"msg": f"ordered to answer {order.status}"}, headers)

    def _parameters(self, asked: dict[str, Any]) -> None:
        received = self._of(asked)
        if received is not None:
            received.parameters |= {value["paramName"]: value["paramValue"] for value in asked["values"]}
            received.batches_of_parameters += 1
            self._answer(200, {})

    def _tags(self, asked: dict[str, Any]) -> None:
        received = self._of(asked)
        if received is not None:
            received.tags += [tag for tag in asked["addedTags"] if tag not in received.tags]
            self._answer(200, {})

    def _other(self, asked: dict[str, Any]) -> None:
        received = self._of(asked)
        if received is not None:
            received.others[asked["key"]] = asked["value"]
            self._answer(200, {})

    def _status(self, asked: dict[str, Any]) -> None:
        received = self._of(asked)
        if received is not None:
            received.beats.append(asked["is_alive"])
            intervals = ("isAliveBeatDurationMillis", "gpuMonitorIntervalMillis", "cpuMonitorIntervalMillis")
            self._answer(200, dict.fromkeys(intervals, 10_000))

    def _metric(self, asked: dict[str, Any]) -> None:
        received = self._of(asked)
        if received is not None:
            with self.comet.lock:
                values = [value for _, value in received.values if value["metricName"] == asked["metricName"]]
            self._answer(200, {"metrics": [{**value, "metricValue": str(value["metricValue"])} for value in values]})

    def _ver(self, asked: dict[str, Any]) -> None:
        self._answer(200, {"version": "99.0.0"})


_ANSWERS: dict[str, Callable[[_Handler, dict[str, Any]], None]] = {
    "logger/add/run": _Handler._make,
    "logger/get/run": _Handler._get,
    "batch/logger/experiment/metric": _Handler._metrics,
    "batch/logger/experiment/parameter": _Handler._parameters,
    "tags/add-tags-to-experiment": _Handler._tags,
    "write/experiment/log-other": _Handler._other,
    "status-report/update": _Handler._status,
    "experiment/metrics/get-metric": _Handler._metric,
    "isAlive/ver": _Handler._ver,
}


if __name__ == "__main__":
    with CometServer() as running:
        print("\n".join(f"export {name}={value}" for name, value in running.environment.items()), flush=True)
        threading.Event().wait()
