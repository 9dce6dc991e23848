"""What is used of comet_ml and not documented: its HTTP client, its settings and its addresses.

Its experiments and their streamer are not used, because they cannot say what arrived: the streamer repeats a request
that was not answered (the server may have taken it), drops a batch after an error of the server, and `flush` returns
true all the same (comet_ml/streamer/handlers/online_handler.py). An `APIExperiment` needs a request for each value. So
batches are sent as the streamer does, by the same client, but one request at a time, and none is repeated unasked.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import re
import sys
from collections.abc import Iterator
from typing import Any

from ....adapters.undocumented import Library

COMET = Library("Comet", "comet_ml", ("3.58.8",), "pip install comet_ml==3.58.8")

_KEY = re.compile(r"[!-)+-~]+(\*[A-Za-z0-9+/=_-]+)?")
"""Printable, and at most one asterisk, before the server's address in base64 (comet_ml/api_key/comet_api_key.py)."""


@contextlib.contextmanager
def _importing() -> Iterator[None]:
    """Keep the import from changing the program, unless the program has imported comet_ml itself.

    It hooks into frameworks and into `sys.excepthook`, reports its own errors over the network in every second process,
    and chooses these processes by Python's random numbers, which training may use.
    """
    if "comet_ml" in sys.modules:
        yield
        return
    drawn, hook = random.getstate(), sys.excepthook
    chosen = {"COMET_DISABLE_AUTO_LOGGING": "1", "COMET_ERROR_TRACKING_ENABLE": "0"}
    added = [name for name in chosen if name not in os.environ]
    os.environ.update({name: chosen[name] for name in added})
    try:
        yield
    finally:
        random.setstate(drawn)
        sys.excepthook = hook
        for name in added:
            os.environ.pop(name, None)


with _importing():
    _load = COMET.load
    _Http = _load("comet_ml.connection.connection_api", "LowLevelHTTPClient")
    _Rest = _load("comet_ml.connection.connection_api", "RestApiClient")
    _read_metric = COMET.get(_Rest, "get_experiment_metric")
    _write_other = COMET.get(_Rest, "log_experiment_other")
    _settings = _load("comet_ml.config.config_api", "get_config")
    _api_key = _load("comet_ml.config.config_api", "get_api_key")
    _address = _load("comet_ml.config.config_api", "get_backend_address")
    _checks_certificate = _load("comet_ml.config.config_api", "get_check_tls_certificate")
    _root = _load("comet_ml.utils", "get_root_url")
    _add_run = _load("comet_ml.connection.connection_url_helpers", "add_run_url")
    _get_run = _load("comet_ml.connection.connection_url_helpers", "get_run_url")
    _metrics = _load("comet_ml.connection.connection_url_helpers", "metrics_batch_url")
    _parameters = _load("comet_ml.connection.connection_url_helpers", "parameters_batch_url")
    _status = _load("comet_ml.connection.connection_url_helpers", "status_report_update_url")
    _tags = _load("comet_ml.connection.connection_url_helpers", "add_tags_url")
    _client_logger = _load("comet_ml.connection.connection_api", "LOGGER")
    _version = _load("comet_ml.utils", "get_comet_version")
    RestError = _load("comet_ml.exceptions", "CometRestApiException")

_PATHS = {
    "add_run": _add_run,
    "get_run": _get_run,
    "metrics": _metrics,
    "parameters": _parameters,
    "status": _status,
    "tags": _tags,
}


def api_key() -> str | None:
    """Return the key from the environment or comet_ml's settings; `None` if there is none.

    Raises:
        ValueError: it is not of the form of a key. comet_ml would print it.
    """
    settings = _settings()
    raw = settings["comet.api_key"]
    if not raw:
        return None
    try:
        if _KEY.fullmatch(raw):
            found: str | None = _api_key(raw, settings)
            if found and _KEY.fullmatch(found):
                return found
    except Exception:
        pass  # its message has the key
    raise ValueError("it is not of the form of a key")


def library_version() -> str:
    """Return the version that comet_ml reports to the server."""
    found: str = _version()
    return found


class _Hidden(logging.Filter):
    """Masks the key in what comet_ml logs of a request; it does so itself only in its own handlers."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self._key = key

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if self._key in text:
            record.msg, record.args = text.replace(self._key, "***"), ()
        return True


class Http:
    """Requests to Comet's server, each sent once.

    timeout: seconds that the server has to answer.
    """

    def __init__(self, key: str, timeout: float) -> None:
        settings = _settings()
        self._hidden = _Hidden(key)
        _client_logger.addFilter(self._hidden)
        self.key = key
        self.address: str = _address(settings)
        root = _root(self.address)
        checked = _checks_certificate(settings)
        self._http = _Http(key, root, timeout, checked, settings, default_retry=False)
        self._rest = _Rest(root, "v2", self._http, key, settings, check_version=False)

    def post(self, what: str, payload: dict[str, Any], compress: bool = False) -> Any:
        """Send a request of the kinds in `_PATHS`, and return the answer, whatever its status.

        Raises:
            requests.RequestException: there was none.
        """
        return self._http.post(_PATHS[what](self.address), payload, retry=False, compress=compress)

    def metric(self, experiment: str, name: str) -> list[dict[str, Any]]:
        """Return what the server has of a metric.

        Raises:
            RestError: it answered with an error.
            requests.RequestException: it did not answer.
        """
        found = _read_metric(self._rest, experiment, name)
        return list((found or {}).get("metrics") or [])

    def other(self, experiment: str, key: str, value: str) -> None:
        """Note a fact about an experiment, such as its name; errors as from `metric`."""
        _write_other(self._rest, experiment, key, value)

    def close(self) -> None:
        """Close the connections."""
        _client_logger.removeFilter(self._hidden)
        self._http.close()
