"""A sink for TensorBoard: each worker is a run of its own, and all of them together are one more."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from ...adapters.errors import EngineUnavailableError
from .records import Event, Logged, Record, Spread, Window, Workers
from .sinks import RunInfo, Sink


class TensorBoard(Sink):
    """Writes event files: `tensorboard --logdir runs/7/tensorboard` shows them.

    A chart, such as "step_ms/mean", has a line for each worker, "worker_3", and the run "workers" has what was compared
    among them, such as "step_ms/max" and "straggler/impact". After a restart, steps that are done again replace the old
    ones. It needs the package `tensorboard`, and imports neither PyTorch nor TensorFlow.

    Args:
        folder: by default `tensorboard` in the run's folder.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.plugins.text.metadata import create_summary_metadata
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise EngineUnavailableError(
                f"the sink TensorBoard needs tensorboard ({error}): pip install 'farandole[tensorboard]'"
            ) from None
        # Not `EventFileWriter`: it imports TensorFlow where that is installed.
        self._make_writer: Any = RecordWriter
        self._proto, self._summary, self._text = event_pb2, summary_pb2, create_summary_metadata
        self._folder = folder
        self._run: RunInfo | None = None
        self._files: dict[str, IO[bytes]] = {}
        self._writers: dict[str, Any] = {}

    def open(self, run: RunInfo) -> None:
        self._run = run

    def write(self, record: Record) -> None:
        match record:
            case Window():
                self._write_numbers(f"worker_{record.rank}", record, _by_tag(record.values))
            case Logged():
                self._write_numbers(f"worker_{record.rank}", record, record.values)
            case Workers():
                self._write_numbers("workers", record, _compared(record))
            case Event():
                text = self._summary.Summary.Value(tag="events", metadata=self._text("", ""))
                text.tensor.dtype = 7  # a string
                text.tensor.string_val.append(record.text.encode())
                self._write(
                    f"worker_{record.rank}", record.time, record.step, summary=self._summary.Summary(value=[text])
                )

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._writers.clear()

    def _write_numbers(self, name: str, record: Record, numbers: Mapping[str, float]) -> None:
        values = [self._summary.Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        self._write(name, record.time, record.step, summary=self._summary.Summary(value=values))

    def _write(self, name: str, time: float, step: int, **content: Any) -> None:
        if name not in self._writers:
            self._begin(name, time)
        self._writers[name].write(self._proto.Event(wall_time=time, step=step, **content).SerializeToString())
        self._files[name].flush()

    def _begin(self, name: str, time: float) -> None:
        assert self._run is not None
        folder = Path(self._folder or self._run.folder / "tensorboard") / name
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / f"events.out.tfevents.{int(time)}.{self._run.host}.{os.getpid()}.{self._run.attempt}").open(
            "ab"
        )
        self._files[name] = file
        self._writers[name] = self._make_writer(file)
        self._write(name, time, 0, file_version="brain.Event:2")
        # Has readers drop the steps after it that an earlier attempt wrote.
        start = self._proto.SessionLog(status=self._proto.SessionLog.START)
        self._write(name, time, self._run.step + 1, session_log=start)


def _by_tag(values: Mapping[str, Spread]) -> dict[str, float]:
    """Return each part of each value, or one number where all parts are the same: "step_ms/max", "loss"."""
    tags: dict[str, float] = {}
    for name, spread in values.items():
        if len(set(map(repr, spread))) == 1:
            tags[name] = spread.mean
        else:
            tags |= {f"{name}/mean": spread.mean, f"{name}/max": spread.max, f"{name}/p95": spread.p95}
    return tags


def _compared(workers: Workers) -> dict[str, float]:
    tags = {f"{name}/{part}": value for name, across in workers.values.items() for part, value in vars(across).items()}
    if workers.straggler is not None:
        tags |= {"straggler/rank": workers.straggler.rank, "straggler/impact": workers.straggler.impact}
    return tags
