"""The sink for TensorBoard: what TensorBoard reads of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from recorded_run import Attempt, record_run

from farandole.adapters.errors import EngineUnavailableError
from farandole.plugins.metrics import Reader, Record, RunInfo
from farandole.plugins.metrics.sinks import resolve
from farandole.plugins.metrics.tensorboard import TensorBoard

PROGRAM = """
import sys
from farandole.plugins.metrics.tensorboard import TensorBoard
TensorBoard()
print(*(name for name in ("torch", "tensorflow") if name in sys.modules))
"""


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that reads a folder as TensorBoard does, without TensorFlow, which it would import."""
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", ModuleType("notf"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder: Path) -> Any:
        found = EventAccumulator(str(folder))
        found.Reload()
        return found

    return read


def numbers(found: Any, tag: str) -> dict[int, float]:
    return {each.step: each.value for each in found.Scalars(tag)}


def write(
    folder: Path, sink: TensorBoard, records: Sequence[Record], rank: int, attempt: int = 0, step: int = 0
) -> None:
    """Give a worker's records to its sink."""
    about: dict[str, Any] = {"run": "5eed", "started": 0.0, "local_rank": rank, "host": "node", "strategy": "ddp"}
    about |= {"options": {}, "launcher": "torchrun", "frontend": "loop", "hosts": ["node"] * 4, "commit": None}
    sink.open(RunInfo(folder=folder, attempt=attempt, step=step, rank=rank, world_size=4, versions={}, **about))
    for record in records:
        sink.write(record)
    sink.close()


def records_of(folder: Path, rank: int, attempt: int = 0) -> list[Record]:
    return [each for each in Reader(folder).records() if (each.rank, each.attempt) == (rank, attempt)]


def test_each_worker_is_a_run_and_all_are_one_more(tmp_path: Path, read: Any) -> None:
    folder = record_run(tmp_path / "run", [Attempt(2, 0, 100, "finished")], slow=1, slow_from=50)
    for rank in range(2):
        write(folder, TensorBoard(), records_of(folder, rank), rank)
    runs = {path.name: read(path) for path in (folder / "tensorboard").iterdir()}
    assert set(runs) == {"worker_0", "worker_1", "workers"}
    assert numbers(runs["worker_1"], "step_ms/mean") == dict.fromkeys(range(10, 51, 10), 36) | dict.fromkeys(
        range(60, 101, 10), 46
    )
    assert numbers(runs["worker_0"], "step_ms/max")[10] == pytest.approx(1.4 * 36)
    assert [*numbers(runs["worker_0"], "accuracy")] == [*range(10, 101, 10)]
    assert numbers(runs["workers"], "step_ms/imbalance")[10] == pytest.approx(0)
    assert numbers(runs["workers"], "straggler/rank") == dict.fromkeys(range(60, 101, 10), 1)
    begun, ended = runs["worker_1"].Tensors("events")
    assert (begun.step, begun.tensor_proto.string_val[0]) == (0, b"worker 1 of 2: ddp")
    assert (ended.step, ended.tensor_proto.string_val[0]) == (100, b"finished")


def test_steps_that_are_done_again_replace_the_old_ones(tmp_path: Path, read: Any) -> None:
    folder = record_run(tmp_path / "run", [Attempt(1, 0, 100), Attempt(1, 50, 80)], slow=0, slow_from=0)
    for attempt, step in enumerate((0, 50)):
        write(folder, TensorBoard(), records_of(folder, 0, attempt), 0, attempt, step)
    found = read(folder / "tensorboard" / "worker_0")
    assert [each.step for each in found.Scalars("step_ms/mean")] == [10, 20, 30, 40, 50, 60, 70, 80]


def test_it_has_a_name_and_a_folder_of_choice(tmp_path: Path) -> None:
    (sink,) = resolve(["tensorboard"])
    assert isinstance(sink, TensorBoard)
    folder = record_run(tmp_path / "run", [Attempt(1, 0, 10)])
    write(folder, TensorBoard(tmp_path / "mine"), records_of(folder, 0), 0)
    assert len([*(tmp_path / "mine" / "worker_0").glob("events.out.tfevents.*")]) == 1


def test_what_was_written_survives_a_kill(tmp_path: Path, read: Any) -> None:
    folder = record_run(tmp_path / "run", [Attempt(1, 0, 20)])
    sink = TensorBoard()
    sink.close = lambda: None  # type: ignore[method-assign]
    write(folder, sink, records_of(folder, 0), 0)
    assert [*numbers(read(folder / "tensorboard" / "worker_0"), "step_ms/mean")] == [10, 20]


def test_no_framework_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_without_tensorboard_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    with pytest.raises(EngineUnavailableError, match=r"pip install 'farandole\[tensorboard\]'"):
        TensorBoard()
