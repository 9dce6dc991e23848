"""Send what of a run's folder is not in Comet yet."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ....adapters.errors import OptionError
from ..folder import RunFolder
from ..lock import Held
from .client import Away, Busy, Denied, Experiment
from .delivery import Delivery
from .fold import A_MINUTE, Allowance
from .names import Mode
from .run import description, experiment_key, share
from .sink import api_key, import_comet

Say = Callable[[str], None]


@dataclass
class Replayed:
    """What came of it.

    sent: values that were sent.
    known: values that the server has of this folder.
    experiments: their keys.
    problems: why something is not sent; empty if everything is.
    """

    sent: int = 0
    known: int = 0
    experiments: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def replay(path: Path, say: Say, patience: float = 60.0) -> Replayed:
    """Send what the server does not have of a run.

    Args:
        say: takes a line about what is going on.
        patience: seconds without an answer after which it gives up.

    Raises:
        OptionError: it is not the folder of a run, or the run has no sink of Comet, or there is no API key.
    """
    folder = RunFolder(path)
    info = folder.info()
    shared = info.get("sinks", {}).get("comet")
    if not shared:
        raise OptionError(f"{path} was not meant for Comet: its WorkerMetrics had no Comet among its sinks")
    import_comet()
    try:
        key = api_key()
    except Denied as reason:
        raise OptionError(f"Comet: {reason}") from None
    done = Replayed()
    pace = Allowance(A_MINUTE)
    for file in folder.files():
        rank = int(file.stem.partition("-")[2]) if file != folder.workers_file else 0
        mode: Mode = shared["mode"]
        if mode == "main_only" and rank:
            continue
        name = experiment_key(shared["experiment"], mode, rank)
        try:
            _replay_file(
                file,
                rank,
                Experiment(key, name, shared["project"], shared["workspace"]),
                info,
                say,
                pace,
                patience,
                done,
            )
        except (Held, Away, Denied, OSError) as reason:
            done.problems.append(f"{file.name}: {reason}")
            if isinstance(reason, (Away, Denied)):
                break  # it will be the same for the others
    return done


def _replay_file(
    file: Path,
    rank: int,
    experiment: Experiment,
    info: dict[str, Any],
    say: Say,
    pace: Allowance,
    patience: float,
    done: Replayed,
) -> None:
    shared, attempts = info["sinks"]["comet"], info["attempts"]
    mode: Mode = shared["mode"]
    latest = attempts[-1]
    with closing(experiment), closing(Delivery(file, mode, share(mode, latest["world_size"]), say, pace)) as delivery:
        before, wait = delivery.sent, _Patience(say, patience)
        wait.until(experiment.create)
        host = dict(enumerate(latest.get("hosts") or ())).get(rank)
        wanted = description(info["run"], len(attempts) - 1, attempts, shared, rank, host)
        if wanted is not None and file.name.startswith("worker-"):
            wait.until(lambda: delivery.describe(experiment, wanted))
        try:
            while wait.until(lambda: delivery.deliver(experiment, last=True)):
                pass
        finally:
            done.sent += delivery.sent - before
            done.known += delivery.sent
    if experiment.key not in done.experiments:
        done.experiments.append(experiment.key)


class _Patience:
    """Repeats what fails, until nothing has worked for a while."""

    def __init__(self, say: Say, seconds: float) -> None:
        self._say, self._seconds = say, seconds

    def until(self, do: Callable[[], Any]) -> Any:
        worked, pause = time.monotonic(), 1.0
        while True:
            try:
                return do()
            except Busy as asked:
                if asked.seconds > 2:
                    self._say(f"Comet: {asked}")
                time.sleep(asked.seconds)
                worked = time.monotonic()
            except Away as reason:
                if time.monotonic() + pause - worked > self._seconds:
                    raise
                self._say(f"Comet: {reason}; trying again")
                time.sleep(pause)
                pause = min(2 * pause, 15.0)
