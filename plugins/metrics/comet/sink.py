"""The sink: a run's numbers in Comet, of every worker, in one experiment or in one each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ....adapters.errors import EngineUnavailableError, OptionError, did_you_mean
from ..folder import RunFolder
from ..records import Event, Record, Workers, to_line
from ..sinks import RunInfo, Sink
from .client import Denied, Experiment
from .names import MODES, Mode
from .run import description, experiment_key, share
from .sender import Messages, Sender


class Comet(Sink):
    """Sends a run's numbers to Comet while it trains: `WorkerMetrics(sinks=[Comet(project="digits")])`.

    The API key is the one that comet_ml finds: in `COMET_API_KEY`, or where `comet login` wrote it. Without one, and
    while the server is away, the numbers stay in the run's folder; `farandole comet replay DIR` sends them later.
    Training waits for none of it. After a restart the same experiment goes on.

    Args:
        project, workspace: in Comet; by default those of comet_ml's settings.
        mode: "single": one experiment, in which worker 3 has `worker_3/step_time`, and all of them together
            `workers/step_time_max`. "per_worker": one for each worker, with tags for the run, the rank and the host.
            "main_only": one, with the numbers of rank 0 and of all workers together.
        offline: send nothing now; comet_ml need not be installed.
        name: of the experiment; by default Comet invents one.
        tags: of the experiment.
        wait: seconds to go on sending when the training has ended.

    Raises:
        OptionError: there is no such mode.
        EngineUnavailableError: comet_ml is not installed.
    """

    name = "comet"

    def __init__(
        self,
        project: str | None = None,
        workspace: str | None = None,
        mode: Mode = "single",
        *,
        offline: bool = False,
        name: str | None = None,
        tags: Sequence[str] = (),
        wait: float = 10.0,
    ) -> None:
        if mode not in MODES:
            raise OptionError(f"Comet has no mode {mode!r}.{did_you_mean(mode, MODES)} Its modes: {', '.join(MODES)}")
        if not offline:
            import_comet()
        self.project, self.workspace, self.mode, self.offline = project, workspace, mode, offline
        self._named, self._tags, self._wait = name, list(tags), wait
        self._sender: Sender | None = None
        self._last: dict[bool, Record] = {}  # the latest record, by whether it is of all workers
        self._tell = Messages()

    def share(self, run: RunInfo) -> Mapping[str, Any]:
        """Return where the run goes: once that is chosen, it stays so for all attempts."""
        chosen = {"project": self.project, "workspace": self.workspace, "mode": self.mode}
        told = {"name": self._named, "tags": self._tags}
        earlier = run.shared
        if "experiment" not in earlier:
            return {"experiment": run.run, **chosen, **told}
        if any(earlier[key] != value for key, value in chosen.items()):
            was = ", ".join(f"{key}={earlier[key]!r}" for key in chosen)
            self._tell(f"this run goes on in the experiment of its first attempt ({was})")
        return {**earlier, **told}

    def open(self, run: RunInfo) -> None:
        self._tell.speaks = run.local_rank == 0
        mode: Mode = run.shared["mode"]
        if self.offline or (mode == "main_only" and run.rank):
            return
        api_key = self._key(run)
        if api_key is None:
            return
        folder, shared = RunFolder(run.folder), run.shared
        key = experiment_key(shared["experiment"], mode, run.rank)
        files = [folder.worker_file(run.rank), *([folder.workers_file] if run.rank == 0 else [])]
        self._sender = Sender(
            lambda: Experiment(api_key, key, shared["project"], shared["workspace"]),
            files,
            mode,
            share(mode, run.world_size),
            self._tell,
            description(run.run, run.attempt, _attempts(folder, run), shared, run.rank, run.host),
        )
        self._sender.start()

    def write(self, record: Record) -> None:
        if not isinstance(record, Event):
            self._last[record.kind == Workers.kind] = record

    def close(self) -> None:
        sender, self._sender = self._sender, None
        if sender is None:
            return
        until = time.monotonic() + self._wait
        for file in sender.files:  # another thread writes them
            last = self._last.pop(file.stem == "workers", None)
            while last is not None and not _has(file, last) and time.monotonic() < until:
                time.sleep(0.02)
        sender.finish(max(0.0, until - time.monotonic()))

    def __getstate__(self) -> dict[str, Any]:
        """Without the thread: a copy begins its own."""
        return {**self.__dict__, "_sender": None, "_last": {}}

    def _key(self, run: RunInfo) -> str | None:
        """Return the API key; say once on each machine if there is none."""
        try:
            return api_key()
        except Denied as reason:
            if run.rank == 0 or (run.local_rank == 0 and run.host != run.hosts[0]):
                self._tell(
                    f"{reason}. The numbers stay in {run.folder}; `farandole comet replay {run.folder}` sends them "
                    "when there is one. Without an account, use Comet(offline=True), or no Comet at all"
                )
            return None


def api_key() -> str:
    """Return the API key that comet_ml finds.

    Raises:
        Denied: there is none, or it is not of the form of one.
    """
    from . import compat

    try:
        found = compat.api_key()
    except ValueError:
        raise Denied("the API key is not of the form of one; `comet login` sets it") from None
    if found is None:
        raise Denied("there is no API key: set COMET_API_KEY, or run `comet login`")
    return found


def import_comet() -> None:
    """Import comet_ml now, in the main thread.

    Raises:
        EngineUnavailableError: it is not installed, or lacks what is used of it.
    """
    if find_spec("comet_ml") is None:
        raise EngineUnavailableError(
            "Comet needs comet_ml, which is not installed. Install it with: pip install 'farandole[comet]'. "
            "Comet(offline=True) needs it only for `farandole comet replay`"
        )
    from . import compat  # noqa: F401


def _has(file: Path, record: Record) -> bool:
    """Whether a record is among the last of a file."""
    line = to_line(record).encode()
    try:
        with open(file, "rb") as stream:
            stream.seek(-min(stream.seek(0, 2), len(line) + 65_536), 2)
            return line in stream.read()
    except OSError:
        return False


def _attempts(folder: RunFolder, run: RunInfo) -> list[Mapping[str, Any]]:
    """Return the attempts in `run.json`; on another machine than rank 0's there may be none but this."""
    try:
        return list(folder.info()["attempts"])
    except OptionError:
        return [vars(run)]
