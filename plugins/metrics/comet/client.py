"""One experiment on Comet's server: what is sent to it, and what each answer means."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

TIMEOUT = 30.0  # seconds; a server under load takes 10
_PATIENCE = 60.0  # seconds; comet_ml's own, after a 429 that names no time
_NO_SUCH_KEY, _EXISTS = 90212, 90999  # `sdk_error_code` in an answer of status 400 or 403


class Value(NamedTuple):
    """A value of a metric.

    time: milliseconds since 1970.
    """

    name: str
    value: float
    step: int
    epoch: int
    time: int

    @property
    def identity(self) -> tuple[str, int, int]:
        """By what the server's values are recognized. It returns the value itself as text, rounded."""
        return self.name, self.step, self.time


class Away(Exception):
    """There was no answer: what was sent may have arrived, or may yet."""


class Failed(Away):
    """The server answered with an error: what was sent may have arrived, or not."""


class Unreached(Away):
    """There was no connection: nothing arrived."""


class Busy(Exception):
    """Nothing was taken, and it has to wait for `seconds`; `by_server` if the server says so."""

    def __init__(self, seconds: float, why: str, by_server: bool = False) -> None:
        super().__init__(f"{why}: waiting for {seconds:.0f} s")
        self.seconds = seconds
        self.by_server = by_server


class Denied(Exception):
    """The server takes nothing from us: the key, the workspace or the address is wrong."""


class Unwanted(Exception):
    """The server does not take this, whenever it is sent; `code` is Comet's own number of the reason."""

    def __init__(self, said: str, code: int | None) -> None:
        super().__init__(said)
        self.code = code


class Experiment:
    """An experiment, by its key.

    No error has the API key in its text. All methods raise `Away`, `Busy` and `Denied`.
    """

    def __init__(self, api_key: str, key: str, project: str | None, workspace: str | None) -> None:
        from . import compat

        self.key, self.project, self.workspace = key, project, workspace
        self._compat = compat
        self._http = compat.Http(api_key, TIMEOUT)
        self._run: dict[str, Any] = {}

    def create(self) -> None:
        """Create the experiment, unless it exists.

        All workers ask for this at the same time, and the server creates one.
        """
        payload = {
            "apiKey": self._http.key,
            "local_timestamp": _now(),
            "experimentKey": self.key,
            "offline": False,
            "projectName": self.project,
            "teamName": self.workspace,
            "libVersion": self._compat.library_version(),
            "getOrCreateEnabled": True,
        }
        try:
            self._run = self._post("add_run", payload)
        except Unwanted as refused:
            if refused.code != _EXISTS:
                raise Denied(str(refused)) from None
            fields = {"apiKey", "local_timestamp", "libVersion"}
            known = {name: value for name, value in payload.items() if name in fields}
            self._run = self._post("get_run", {**known, "previousExperiment": self.key})

    def send(self, values: Iterable[Value]) -> None:
        """Send values, all in one request; when this returns, the server has taken them.

        Raises:
            Unwanted: it takes them never.
        """
        listed = [
            {
                "metricName": value.name,
                "metricValue": _number(value.value),
                "step": value.step,
                "epoch": value.epoch,
                "context": None,
                "timestamp": value.time,
            }
            for value in values
        ]
        self._post("metrics", {"experimentKey": self.key, "values": listed}, compress=True)

    def arrived(self, names: Iterable[str]) -> Counter[tuple[str, int, int]]:
        """Return what the server has of some metrics, by `Value.identity`."""
        found: Counter[tuple[str, int, int]] = Counter()
        for name in names:
            for each in self._asked(lambda name=name: self._http.metric(self.key, name), missing=[]):
                found[name, each.get("step"), each.get("timestamp")] += 1
        return found

    def describe(self, parameters: Mapping[str, Any], tags: Sequence[str], name: str | None) -> None:
        """Note parameters, tags and a name; sent again, they replace the earlier ones."""
        now = _now()
        listed = [
            {"paramName": key, "paramValue": value, "step": None, "source": "manual", "context": None, "timestamp": now}
            for key, value in parameters.items()
        ]
        try:
            self._post("parameters", {"experimentKey": self.key, "values": listed}, compress=True)
            if tags:
                tagged = {"apiKey": self._http.key, "experimentKey": self.key, "addedTags": list(tags)}
                self._post("tags", tagged)
        except Unwanted as refused:
            raise Denied(str(refused)) from None
        if name:
            self._asked(lambda: self._http.other(self.key, "Name", name), missing=None)

    def beat(self, alive: bool) -> float:
        """Say that the run goes on, or has ended; return after how many seconds to say so again."""
        payload = {
            "apiKey": self._http.key,
            "runId": self._run.get("runId"),
            "experimentKey": self.key,
            "projectId": self._run.get("project_id"),
            "is_alive": alive,
            "local_timestamp": _now(),
            "offline": False,
        }
        try:
            answer = self._post("status", payload)
        except Unwanted:
            answer = {}
        return max(1.0, float(answer.get("isAliveBeatDurationMillis") or 10_000) / 1000)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _post(self, what: str, payload: dict[str, Any], compress: bool = False) -> dict[str, Any]:
        from requests import RequestException

        try:
            answer = self._http.post(what, payload, compress)
        except RequestException as error:
            raise _unanswered(error) from None
        if answer.status_code >= 400:
            raise self._refused(answer)
        try:
            content = answer.json() if answer.content else {}
        except ValueError:
            content = {}
        return content if isinstance(content, dict) else {}

    def _asked(self, ask: Any, missing: Any) -> Any:
        from requests import RequestException

        try:
            return ask()
        except RequestException as error:
            raise _unanswered(error) from None
        except self._compat.RestError as error:
            if error.response.status_code == 404:
                return missing
            refused = self._refused(error.response)
        except Exception as error:  # an answer that is none of Comet's; the text of some errors has the key
            refused = Failed(f"the server's answer cannot be read ({type(error).__name__})")
        raise Failed(str(refused)) if isinstance(refused, Unwanted) else refused

    def _refused(self, answer: Any) -> Exception:
        status = answer.status_code
        try:
            content = answer.json()
            code, text = content.get("sdk_error_code"), str(content.get("msg") or "")
        except (ValueError, AttributeError):
            code, text = None, ""
        said = f"the server answers {status}" + (f": {text.replace(self._http.key, '***')[:200]}" if text else "")
        if status == 429:
            return Busy(_seconds(answer.headers), "the server is asked too often", by_server=True)
        if status in (401, 403) or code == _NO_SUCH_KEY:
            return Denied(f"{said}; is the API key right?")
        if status == 404:
            return Denied(f"{said}; is COMET_URL_OVERRIDE right?")
        return Failed(said) if status >= 500 or status == 408 else Unwanted(said, code)


def _number(value: float) -> float | str:
    """Return a number as JSON can say it, and Comet writes it (comet_ml/convert_utils.py, `fix_special_floats`)."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _seconds(headers: Mapping[str, str]) -> float:
    """Return how long a 429 asks to wait; comet_ml adds half a second (streamer/retry/retry_helpers.py)."""
    try:
        asked = float(headers.get("Retry-After-Custom") or headers.get("Retry-After") or _PATIENCE)
    except ValueError:
        asked = _PATIENCE
    return min(max(asked, 0.0), 600.0) + 0.5


def _unanswered(error: Exception) -> Away:
    """Return why there was no answer. The error's own text is long, and may have a header."""
    from requests import ConnectTimeout
    from urllib3.exceptions import NewConnectionError

    text = f"the server does not answer ({type(error).__name__})"
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return (
        Unreached(text) if isinstance(error, ConnectTimeout) or isinstance(reason, NewConnectionError) else Away(text)
    )


def _now() -> int:
    return int(time.time() * 1000)
