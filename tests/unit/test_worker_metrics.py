"""WorkerMetrics in a loop of one process: what it writes, where it goes on, and what sinks can do to it: nothing."""

from __future__ import annotations

import copy
import gc
import json
import math
import os
import pickle
import threading
import time
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import farandole.plugins.metrics.writer as writer_module
from farandole.adapters import OptionError, Strategy, Training, create_strategy
from farandole.plugins.metrics import (
    Event,
    Logged,
    Reader,
    Record,
    RunFolder,
    RunInfo,
    Sink,
    Spread,
    Window,
    WorkerMetrics,
    Workers,
)
from farandole.plugins.metrics.json_lines import JsonLines
from farandole.plugins.metrics.sinks import resolve

pytestmark = pytest.mark.usefixtures("no_launcher", "one_thread")

DATA = torch.linspace(-1, 1, 80).reshape(40, 2)
PARTS = ("data", "forward", "backward", "update", "other")


@pytest.fixture(autouse=True)
def quick_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farandole.plugins.metrics.attempt.SHORTEST", 0.0)


def prepare(strategy: Strategy, metrics: WorkerMetrics, **options: Any) -> Training:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean(), callbacks=[metrics], **options)


def train(metrics: WorkerMetrics, epochs: int = 1, load: Path | None = None, save: Path | None = None) -> list[float]:
    """Train for 5 steps an epoch, and return the losses."""
    losses = []
    with create_strategy("local") as strategy:
        training = prepare(strategy, metrics, clip_norm=1.0)
        if load is not None:
            training.load(load)
        for batch in training.batches(DATA, 8, epochs=epochs):
            losses.append(float(training.step(batch)))
            training.log("twice", 2 * losses[-1])
        if save is not None:
            training.save(save, training.progress)
    return losses


def of(kind: type[Any], folder: Path | None) -> list[Any]:
    assert folder is not None
    return [record for record in Reader(folder).poll() if isinstance(record, kind)]


def test_a_loop_is_written_to_the_next_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    metrics = WorkerMetrics(every=2)
    assert metrics.folder is None
    started, losses = time.time(), train(metrics, epochs=3)
    assert metrics.folder == tmp_path / "runs" / "1"
    windows = of(Window, metrics.folder)
    assert [(window.step, window.steps, window.samples) for window in windows] == [
        *((step, 2, 16) for step in range(2, 15, 2)),
        (15, 1, 8),
    ]
    assert [window.epoch for window in windows] == [0, 0, 1, 1, 2, 2, 2, 3]
    for window in windows:
        parts = sum(window.values[f"{part}_ms"].mean for part in PARTS)
        assert parts == pytest.approx(window.values["step_ms"].mean, rel=1e-6)
        assert {"samples_per_s", "loss", "grad_norm", "memory_mb", "cpu_percent", "gc_ms"} <= window.values.keys()
        assert "wait_ms" not in window.values and "tokens_per_s" not in window.values
        assert started <= window.time <= time.time() and window.values["memory_mb"].mean > 10
    assert [window.values["loss"].mean for window in windows] == pytest.approx([*losses[::2][:7], losses[13]])
    logged = of(Logged, metrics.folder)
    assert [record.step for record in logged] == list(range(2, 16))
    assert [record.values["twice"] for record in logged] == pytest.approx([2 * loss for loss in losses[:14]])
    workers = of(Workers, metrics.folder)
    assert [(record.step, record.steps) for record in workers] == [(step, 2) for step in range(2, 15, 2)]
    assert all(record.straggler is None for record in workers)
    assert workers[0].values["step_ms"].mean == windows[0].values["step_ms"].mean
    events = of(Event, metrics.folder)
    assert [(event.event, event.step) for event in events] == [("begin", 0), ("end", 15)]
    info = json.loads((metrics.folder / "run.json").read_text())
    (attempt,) = info["attempts"]
    assert (attempt["strategy"], attempt["world_size"], attempt["frontend"]) == ("local", 1, "loop")
    assert attempt["versions"].keys() >= {"farandole", "torch"} and attempt["step"] == 0


def test_the_curve_and_the_process_are_left_as_they_were(tmp_path: Path) -> None:
    with create_strategy("local") as strategy:
        plain = prepare(strategy, WorkerMetrics(tmp_path / "unused"), clip_norm=1.0)
        expected = [float(plain.step(batch)) for batch in plain.batches(DATA, 8)]
    threads, files, hooks = threading.active_count(), len(os.listdir("/proc/self/fd")), len(gc.callbacks)
    assert train(WorkerMetrics(tmp_path / "run")) == expected
    assert (threading.active_count(), len(os.listdir("/proc/self/fd")), len(gc.callbacks)) == (threads, files, hooks)


def test_a_run_goes_on_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = WorkerMetrics(every=5)
    train(first, epochs=2, save=tmp_path / "saved")
    second = WorkerMetrics(every=5)
    train(second, epochs=3, load=tmp_path / "saved")
    assert second.folder == first.folder and not (tmp_path / "runs" / "2").exists()
    windows = of(Window, second.folder)
    assert [(window.attempt, window.step) for window in windows] == [(0, 5), (0, 10), (1, 15)]
    assert [attempt["step"] for attempt in RunFolder(tmp_path / "runs/1").info()["attempts"]] == [0, 10]


def test_a_folder_given_again_goes_on_too(tmp_path: Path) -> None:
    train(WorkerMetrics(tmp_path / "run", every=5), epochs=2)
    train(WorkerMetrics(tmp_path / "run", every=5))
    windows = of(Window, tmp_path / "run")
    assert [(window.attempt, window.step) for window in windows] == [(0, 5), (0, 10), (1, 5)], "begun anew"


def test_a_checkpoint_loaded_in_the_middle_begins_an_attempt(tmp_path: Path) -> None:
    metrics = WorkerMetrics(tmp_path / "run", every=5)
    with create_strategy("local") as strategy:
        training = prepare(strategy, metrics)
        for batch in training.batches(DATA, 8):
            training.step(batch)
        training.save(tmp_path / "saved", training.progress)
        for batch in training.batches(DATA, 8):
            training.step(batch)
        training.load(tmp_path / "saved")
        for batch in training.batches(DATA, 8, epochs=2):
            training.step(batch)
    windows = of(Window, tmp_path / "run")
    assert [(window.attempt, window.step) for window in windows] == [(0, 5), (0, 10), (1, 10)]


def test_another_runs_checkpoint_leaves_a_folder_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(WorkerMetrics(tmp_path / "other"), save=tmp_path / "saved")
    train(WorkerMetrics(tmp_path / "run"))
    metrics = WorkerMetrics(tmp_path / "run")
    train(metrics, epochs=2, load=tmp_path / "saved")
    assert metrics.folder == tmp_path / "run-2"
    assert caplog.text.count("run is not written: it holds another run than the checkpoint's") == 1
    assert of(Window, metrics.folder)[-1].step == 10, "its steps count on"


def test_a_folder_that_cannot_be_written_is_no_reason_to_stop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    assert len(train(WorkerMetrics(tmp_path / "file" / "run", every=2))) == 5
    assert caplog.text.count("cannot write to") == 1
    assert caplog.text.count("metrics sink JsonLines on worker 0 failed in write: NotADirectoryError") == 1


class Kept(Sink):
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.run: RunInfo | None = None
        self.records: list[Record] = []
        self.closed = 0

    def share(self, run: RunInfo) -> dict[str, Any]:
        return {"key": run.shared.get("key", run.run)}

    def open(self, run: RunInfo) -> None:
        self.run = run

    def write(self, record: Record) -> None:
        self.records.append(record)

    def close(self) -> None:
        self.closed += 1


def test_sinks_get_every_record_in_order(tmp_path: Path) -> None:
    sinks = [Kept(), Kept()]
    metrics = WorkerMetrics(tmp_path / "run", every=2, sinks=sinks)
    train(metrics)
    for sink in sinks:
        assert sink.run is not None and sink.run.folder == metrics.folder and sink.closed == 1
        assert sink.run.strategy == "local" and sink.run.hosts == [sink.run.host]
        kinds = [record.kind for record in sink.records]
        assert kinds[:2] == ["event", "window"] and kinds[-1] == "event"
        assert sorted(map(str, sink.records)) == sorted(map(str, Reader(tmp_path / "run").poll()))
    key = sinks[0].run.run
    assert RunFolder(tmp_path / "run").info()["sinks"] == {"Kept": {"key": key}, "Kept-2": {"key": key}}
    again = Kept()
    train(WorkerMetrics(tmp_path / "run", sinks=[again]))
    assert again.run is not None and again.run.shared == {"key": key} and again.run.attempt == 1


class Broken(Kept):
    name = "broken"

    def share(self, run: RunInfo) -> dict[str, Any]:
        raise ValueError("shared")

    def open(self, run: RunInfo) -> None:
        raise ValueError("opened")

    def write(self, record: Record) -> None:
        super().write(record)
        raise ValueError("written")

    def close(self) -> None:
        raise ValueError("closed")


def test_a_sink_that_fails_is_told_once_and_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken, whole = Broken(), Kept()
    train(WorkerMetrics(tmp_path / "run", every=1, sinks=[broken, whole]))
    assert len(broken.records) == len(whole.records) > 10
    for word in ("shared", "opened", "written", "closed"):
        assert caplog.text.count(f"ValueError: {word}") == 1
    texts = [event.text for event in of(Event, tmp_path / "run") if event.event == "sink"]
    assert len(texts) == 3 and "metrics sink broken on worker 0 failed in open: ValueError: opened" in texts


def test_training_waits_for_no_sink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "QUEUED", 3)
    monkeypatch.setattr("farandole.plugins.metrics.attempt._CLOSE", 0.2)
    release = threading.Event()

    class Stuck(Kept):
        def write(self, record: Record) -> None:
            release.wait(30)
            super().write(record)

    stuck, whole = Stuck(), Kept()
    started = time.monotonic()
    metrics = WorkerMetrics(tmp_path / "run", every=1, sinks=[stuck, whole])
    train(metrics, epochs=2)
    assert time.monotonic() - started < 10
    texts = " ".join(event.text for event in of(Event, metrics.folder))
    assert "Stuck on worker 0 is too slow: its oldest records are dropped" in texts
    assert "Stuck on worker 0 was left after" in texts
    assert len(of(Window, metrics.folder)) == 10
    release.set()


def test_what_is_logged_may_be_anything(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = WorkerMetrics(tmp_path / "run")
    with create_strategy("local") as strategy:
        training = prepare(strategy, metrics)
        for batch in training.batches(DATA, 8):
            for number in range(20_000):
                training.log(f"name {number}", number)
            training.log("loss", math.nan)
            training.log("step_ms", torch.tensor(7.0))
            training.log("<script>", -math.inf)
            training.log("odd", "seven")  # type: ignore[arg-type]
            training.log("vector", torch.tensor([0.5, 2.0]))
            training.step(batch)
    records = of(Logged, metrics.folder)
    assert len(records) == 5 and all(len(record.values) == 20_003 for record in records)
    assert math.isnan(records[0].values["loss"]) and records[0].values["step_ms"] == 7
    assert records[0].values["<script>"] == -math.inf
    for name in ("odd", "vector"):
        assert caplog.text.count(f"the value logged as {name!r} is not a number") == 1


def test_a_clock_that_jumps_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    jumps = iter([0.0] * 6)
    monkeypatch.setattr(time, "time", lambda: now() - next(jumps, 3600.0))
    train(WorkerMetrics(tmp_path / "run", every=1))
    times = [record.time for record in Reader(tmp_path / "run").poll() if isinstance(record, Window)]
    assert times == sorted(times) and times[-1] - times[0] < 60


def test_a_full_disk_delays_lines(tmp_path: Path) -> None:
    lines, sink = Path("/dev/full"), JsonLines()
    info = {"rank": 0, "attempt": 0, "time": 1.0, "epoch": 0, "step": 1}
    record = Window(**info, steps=1, values={"loss": Spread.of(1.0)})
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "worker-0.jsonl").symlink_to(lines)

    class Run:
        pass

    run: Any = Run()
    run.folder = folder
    sink.open(run)
    for _ in range(3):
        with pytest.raises(OSError, match="No space left"):
            sink.write(record)
    (folder / "worker-0.jsonl").unlink()
    (folder / "worker-0.jsonl").write_text('{"torn')
    sink.write(record)
    sink.close()
    (folder / "run.json").write_text('{"format": 1}')
    assert Reader(folder).poll() == [record] * 4


def test_it_can_be_copied_while_it_runs(tmp_path: Path) -> None:
    metrics = WorkerMetrics(tmp_path / "run", every=2)
    with create_strategy("local") as strategy:
        training = prepare(strategy, metrics)
        for batch in training.batches(DATA, 8):
            training.step(batch)
            copies = [copy.deepcopy(metrics), pickle.loads(pickle.dumps(metrics))]
    for made in copies:
        assert made.state_dict() == metrics.state_dict() == {**metrics.state_dict(), "step": 5}


def test_windows_of_quick_steps_are_wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farandole.plugins.metrics.attempt.SHORTEST", 0.5)
    train(WorkerMetrics(tmp_path / "run", every=2), epochs=10)
    assert [window.steps for window in of(Window, tmp_path / "run")] == [2, 8, 32, 8], "four times as many at most"


class Named(Sink):
    pass


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    entries = [EntryPoint("named", "json:JSONEncoder", "farandole.sinks"), EntryPoint("kept", "builtins:dict", "x")]
    monkeypatch.setattr("farandole.plugins.metrics.sinks.entry_points", lambda group: entries[:1])
    return


def test_sinks_are_sinks(registered: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=r"there is no sink 'nmaed'\. Did you mean 'named'\? Registered: named"):
        WorkerMetrics(sinks=["nmaed"])
    with pytest.raises(OptionError, match="not a JSONEncoder"):
        resolve(["named"])
    with pytest.raises(OptionError, match="not the class Kept"):
        WorkerMetrics(sinks=[Kept])  # type: ignore[list-item]
    monkeypatch.setattr(EntryPoint, "load", lambda self: Named)
    assert [type(sink) for sink in resolve(["named", Named()])] == [Named, Named]
    with pytest.raises(OptionError, match="every=0 must be at least 1"):
        WorkerMetrics(every=0)


def test_a_failure_is_recorded_without_its_text(tmp_path: Path) -> None:
    metrics = WorkerMetrics(tmp_path / "run", every=2)

    def program() -> None:
        with create_strategy("local") as strategy:
            training = prepare(strategy, metrics)
            for batch in training.batches(DATA, 8):
                training.step(batch)
                if training.progress.step == 3:
                    raise KeyError("a secret")

    with pytest.raises(KeyError, match="a secret"):
        program()
    ended = of(Event, tmp_path / "run")[-1]
    assert (ended.text, ended.details) == ("ended by KeyError", {"error": "KeyError"})
    assert [window.step for window in of(Window, tmp_path / "run")] == [2, 3]
    assert not any("a secret" in path.read_text() for path in (tmp_path / "run").iterdir())
