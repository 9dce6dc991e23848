"""Numbers on their way to a stand-in for Comet's server, by the real comet_ml: none is lost, and none comes twice."""

from __future__ import annotations

import copy
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from comet_runs import Run, logged, window, workers

from farandole.adapters import create_strategy
from farandole.adapters.errors import EngineUnavailableError, OptionError
from farandole.cli.main import main
from farandole.experiments.metrics.arrival import Arrival, Received, arrival
from farandole.experiments.metrics.comet_server import API_KEY, CometServer, Order
from farandole.plugins.metrics import WorkerMetrics
from farandole.plugins.metrics.comet import Comet, client, delivery, replay, sender

pytest.importorskip("comet_ml")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[CometServer]:
    """The stand-in, which comet_ml finds, and a sender that does not wait long."""
    monkeypatch.setattr(sender, "INTERVAL", 0.05)
    monkeypatch.setattr(sender, "PAUSE", 0.05)
    for module in (client, delivery):
        monkeypatch.setattr(module, "TIMEOUT", 1.0)
    monkeypatch.setattr(delivery, "SETTLE", 0.3)
    with CometServer() as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.02)


def steps(received: Received, name: str) -> list[int]:
    """Return the steps of which a metric has a value, as they came."""
    return [step for step, _ in received.metric(name)]


def test_all_workers_are_in_one_experiment(server: CometServer, tmp_path: Path) -> None:
    run = Run(tmp_path / "1", world_size=3, tags=["night"], name="first")
    sinks = run.begin()
    for step in (10, 20, 30):
        run.write(*(window(step, rank) for rank in range(3)), workers(step))
    run.write(logged(30, accuracy=0.5, bad=float("nan")), logged(30, rank=2, accuracy=0.25))
    for sink in sinks:
        sink.close()
    received = server.only
    assert received.made == 1
    assert received.project == "digits"
    assert all(steps(received, f"worker_{rank}/step_time") == [10, 20, 30] for rank in range(3))
    assert steps(received, "workers/step_time_max") == [10, 20, 30]
    assert received.metric("accuracy") == [(30, 0.5)]
    assert received.metric("worker_2/accuracy") == [(30, 0.25)]
    assert received.metric("bad") == [(30, "NaN")]
    assert received.doubled == 0
    assert received.batches_of_parameters == 1
    expected = {"strategy": "ddp", "world_size": 3, "launcher": "torchrun", "commit": "c0ffee"}
    assert expected.items() <= received.parameters.items()
    assert received.parameters["option/bucket_cap_mb"] == 25
    assert received.tags == ["night"]
    assert received.others == {"Name": "first"}
    assert received.beats[0] is True
    assert received.beats[-1] is False


def test_each_worker_may_have_an_experiment(server: CometServer, tmp_path: Path) -> None:
    run = Run(tmp_path / "1", world_size=2, mode="per_worker")
    sinks = run.begin()
    run.write(window(10, 0), window(10, 1), workers(10))
    for sink in sinks:
        sink.close()
    found = {next(tag for tag in each.tags if "rank" in tag): each for each in server.experiments.values()}
    assert sorted(found) == ["rank 0", "rank 1"]
    (group,) = {next(tag for tag in each.tags if tag.startswith("run ")) for each in found.values()}
    assert len(group) > 8
    assert all(any(tag.startswith("host ") for tag in each.tags) for each in found.values())
    assert all(steps(each, "worker/step_time") == [10] for each in found.values())
    assert steps(found["rank 0"], "workers/step_time_max") == [10]


def test_the_main_worker_may_be_the_only_one(server: CometServer, tmp_path: Path) -> None:
    run = Run(tmp_path / "1", world_size=2, mode="main_only")
    sinks = run.begin()
    run.write(window(10, 0), window(10, 1), workers(10))
    for sink in sinks:
        sink.close()
    names = {value["metricName"] for _, value in server.only.values}
    assert {"worker_0/step_time", "workers/step_time_max"} <= names
    assert not any(name.startswith("worker_1/") for name in names)


@pytest.mark.parametrize(
    "order",
    [
        Order(429, retry=0.0),
        Order(500),
        Order(500, after=True),
        Order(502, after=True),
        Order(0),
        Order(0, after=True),
        Order(delay=0.4),
        Order(400),
    ],
    ids=lambda order: f"{order.status} {'taken' if order.after else ''} {order.delay}".replace("  ", " "),
)
def test_nothing_is_lost_or_doubled(server: CometServer, tmp_path: Path, order: Order) -> None:
    server.orders = [Order(), order, order]
    run = Run(tmp_path / "1")
    (sink,) = run.begin()
    for step in range(10, 110, 10):
        run.write(window(step))
        if step in (30, 60):
            until(lambda: len(server.orders) < 3)
    sink.close()
    received = server.only
    until(lambda: len(received.values) >= 40)
    assert steps(received, "worker_0/step_time") == list(range(10, 110, 10))
    assert received.doubled == 0


def test_what_a_slow_server_takes_after_the_sender_has_given_up_is_not_sent_again(
    server: CometServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "TIMEOUT", 0.3)
    monkeypatch.setattr(delivery, "SETTLE", 2.0)
    server.orders = [Order(delay=0.6)]
    run = Run(tmp_path / "1", wait=10.0)
    (sink,) = run.begin()
    run.write(window(10))
    sink.close()
    assert steps(server.only, "worker_0/step_time") == [10]
    assert server.requests["experiment/metrics/get-metric"] == 4


def test_a_server_that_is_away_gets_everything_later(
    server: CometServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.go()
    run = Run(tmp_path / "1")
    (sink,) = run.begin()
    run.write(*(window(step) for step in range(10, 60, 10)))
    until(lambda: "is sent when it answers" in caplog.text or "are sent when it answers" in caplog.text)
    server.come()
    until(lambda: server.values >= 20)
    server.go()
    run.write(*(window(step) for step in range(60, 110, 10)))
    time.sleep(0.3)
    server.come()
    sink.close()
    assert steps(server.only, "worker_0/step_time") == list(range(10, 110, 10))
    assert server.only.doubled == 0
    assert caplog.text.count("does not answer") == 1


def test_closing_waits_no_longer_than_asked(
    server: CometServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.orders = [Order(delay=5.0)]
    run = Run(tmp_path / "1", wait=0.3)
    (sink,) = run.begin()
    run.write(window(10))
    until(lambda: not server.orders)
    began = time.monotonic()
    sink.close()
    assert time.monotonic() - began < 1.0
    assert "farandole comet replay" in caplog.text


def test_a_restart_goes_on_in_the_same_experiment(server: CometServer, tmp_path: Path) -> None:
    run = Run(tmp_path / "1", world_size=2)
    sinks = run.begin()
    run.write(*(window(step, rank) for step in range(10, 60, 10) for rank in range(2)))
    for sink in sinks:
        sink.close()
    run.world_size = 1
    (sink,) = run.begin(step=30)
    run.write(*(window(step, attempt=1) for step in range(40, 90, 10)))
    sink.close()
    received = server.only
    assert received.made == 1
    assert steps(received, "worker_0/step_time") == list(range(10, 90, 10))
    assert received.parameters["world_size"] == 1
    assert received.parameters["world_size_changes"] == "2 from step 0, 1 from step 30"
    assert received.batches_of_parameters == 2  # one for each attempt


def test_the_last_records_are_waited_for(server: CometServer, tmp_path: Path) -> None:
    run = Run(tmp_path / "1")
    (sink,) = run.begin()
    for record in (window(10), workers(10)):
        sink.write(record)
        threading.Timer(0.5, run.write, [record]).start()  # the thread that writes the run's folder
    sink.close()
    assert steps(server.only, "worker_0/step_time") == steps(server.only, "workers/step_time_max") == [10]


def test_a_sink_can_be_copied_while_it_sends(server: CometServer, tmp_path: Path) -> None:
    run = Run(tmp_path / "1")
    (sink,) = run.begin()
    copy.deepcopy(sink).close()
    sink.close()


@pytest.mark.usefixtures("no_launcher", "one_thread")
def test_a_training_arrives_with_what_is_logged_around_it(
    server: CometServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr("farandole.plugins.metrics.attempt.SHORTEST", 0.0)
    metrics = WorkerMetrics(tmp_path / "1", every=2, sinks=[Comet("digits")])
    metrics.parameters = {"layers": 1}
    metrics.log({"before": 1.0})
    model = torch.nn.Linear(2, 1)
    with create_strategy("local") as strategy:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        training = strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean(), callbacks=[metrics])
        for batch in training.batches(torch.ones(40, 2), 8, epochs=2):
            training.log("twice", 2 * float(training.step(batch)))
    values = server.values
    assert values > 50
    metrics.log({"test/accuracy": 0.5})
    metrics.log({"test/loss": 0.1})
    metrics.settle()
    assert server.values == values + 2
    assert arrival(tmp_path / "1", server.experiments) == Arrival(values + 2, values + 2, 0, 0)
    assert steps(server.only, "worker_0/step_time") == [2, 4, 6, 8, 10]
    assert steps(server.only, "before") == [0]
    assert steps(server.only, "test/accuracy") == steps(server.only, "test/loss") == [10]
    assert server.only.parameters["layers"] == 1
    assert server.only.batches_of_parameters == 1
    assert server.only.beats[-1] is False


def test_numbers_of_no_training_are_told(caplog: pytest.LogCaptureFixture) -> None:
    metrics = WorkerMetrics()
    metrics.settle()
    assert caplog.text == ""
    metrics.log({"test/accuracy": 0.5})
    metrics.settle()
    assert "belong to no run" in caplog.text


WORKER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from comet_runs import Run, window
from farandole.plugins.metrics.comet import client, delivery, sender
sender.INTERVAL = 0.05
run = Run(Path(sys.argv[2]))
run.begin()
for step in range(10, 10_000, 10):
    run.write(window(step))
    time.sleep(0.02)
"""


def test_a_killed_worker_loses_and_doubles_nothing(server: CometServer, tmp_path: Path) -> None:
    server.orders = [Order(), Order(), Order(delay=0.8)]  # it is killed in the last, which the server takes afterwards
    script = [sys.executable, "-c", WORKER, str(Path(__file__).parent), str(tmp_path / "1")]
    worker = subprocess.Popen(script, env=dict(os.environ))
    try:
        until(lambda: not server.orders, 60)
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    time.sleep(0.9)
    file = tmp_path / "1" / "worker-0.jsonl"
    with open(file, "ab") as stream:
        stream.write(b'{"kind": "window", "att')  # the line at which it was killed
    whole = file.read_bytes().count(b"\n")
    lines: list[str] = []
    done = replay.replay(tmp_path / "1", lines.append)
    assert done.problems == []
    assert done.known == 4 * whole
    assert 0 < done.sent < done.known
    assert steps(server.only, "worker_0/step_time") == [10 * number for number in range(1, whole + 1)]
    assert arrival(tmp_path / "1", server.experiments) == Arrival(sent=4 * whole, received=4 * whole, lost=0, doubled=0)
    assert replay.replay(tmp_path / "1", lines.append).sent == 0
    assert server.values == 4 * whole


def test_what_was_measured_offline_is_sent_by_the_command(server: CometServer, tmp_path: Path) -> None:
    run = Run(tmp_path / "1", world_size=3, offline=True)
    sinks = run.begin()
    run.write(*(window(step, rank) for step in (10, 20) for rank in range(3)), workers(20))
    for sink in sinks:
        sink.close()
    assert server.experiments == {}
    result = CliRunner().invoke(main, ["comet", "replay", str(tmp_path / "1")])
    assert result.exit_code == 0, result.output
    assert "28 values" in result.output
    assert server.only.doubled == 0
    assert steps(server.only, "worker_2/step_time") == [10, 20]
    assert server.only.parameters["world_size"] == 3


def test_a_replay_says_what_it_could_not_send(server: CometServer, tmp_path: Path) -> None:
    run = Run(tmp_path / "1", offline=True)
    run.begin()
    run.write(window(10))
    server.go()
    result = CliRunner().invoke(main, ["comet", "replay", str(tmp_path / "1"), "--patience", "0.5"])
    assert result.exit_code == 1
    assert "does not answer" in result.output


def test_a_folder_that_is_still_sent_is_left_alone(server: CometServer, tmp_path: Path) -> None:
    run = Run(tmp_path / "1")
    (sink,) = run.begin()
    run.write(window(10))
    until(lambda: server.values == 4)
    done = replay.replay(tmp_path / "1", print)
    assert f"process {os.getpid()}" in done.problems[0]
    sink.close()


@pytest.mark.parametrize("command", [["comet", "replay", "nowhere"], ["comet", "replay", "."]])
def test_what_is_no_folder_of_a_run_is_refused(command: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(main, command)
    assert result.exit_code != 0
    assert "Traceback" not in result.output


def test_a_run_without_comet_is_not_sent(tmp_path: Path) -> None:
    run = Run(tmp_path / "1", offline=True)
    run.begin()
    run.folder.change(lambda info: info.pop("sinks"))
    with pytest.raises(OptionError, match="not meant for Comet"):
        replay.replay(tmp_path / "1", print)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (None, "there is no API key"),
        ("two words", "not of the form"),
        ("sec*ret*key", "not of the form"),
        ("secretsecret*notbase64!", "not of the form"),
        ("secretsecret*bm90anNvbg==", "not of the form"),
        ("secretsecret*", "not of the form"),
        ("secret\nsecret", "not of the form"),
        ("secretsecretsecretsecret1", "is the API key right"),
    ],
)
def test_a_key_that_is_missing_or_wrong_is_told_once(
    server: CometServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    key: str | None,
    says: str,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("COMET_API_KEY")
    if key is not None:
        monkeypatch.setenv("COMET_API_KEY", key)
    run = Run(tmp_path / "1", world_size=2)
    caplog.set_level("DEBUG")
    sinks = run.begin()
    run.write(*(window(step, rank) for step in (10, 20) for rank in range(2)))
    for sink in sinks:
        sink.close()
    (told,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert says in told
    assert "farandole comet replay" in told
    out = capfd.readouterr()
    if key is not None:
        assert key not in caplog.text + out.out + out.err
        assert "secret" not in caplog.text + out.out + out.err
    assert server.values == 0
    monkeypatch.setenv("COMET_API_KEY", API_KEY)
    assert replay.replay(tmp_path / "1", print).sent == 16


def test_the_key_is_in_no_file_and_no_log(
    server: CometServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    for logger in ("comet_ml", "urllib3", "requests"):
        caplog.set_level("DEBUG", logger=logger)
    server.orders = [Order(500), Order(429)]
    run = Run(tmp_path / "1")
    (sink,) = run.begin()
    run.write(window(10))
    until(lambda: server.values == 4)
    sink.close()
    assert all(API_KEY.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert API_KEY not in caplog.text


def test_importing_comet_changes_nothing(tmp_path: Path) -> None:
    program = (
        "import random, os, sys\n"
        "random.seed(1); before = random.getstate(); environment = dict(os.environ)\n"
        "from farandole.plugins.metrics.comet import Comet\n"
        "assert 'comet_ml' not in sys.modules\n"
        "Comet(offline=True)\n"
        "assert 'comet_ml' not in sys.modules\n"
        "Comet()\n"
        "assert 'comet_ml' in sys.modules\n"
        "assert random.getstate() == before and dict(os.environ) == environment\n"
        "assert not any('comet' in type(finder).__module__ for finder in sys.meta_path)\n"
        "assert sys.excepthook is sys.__excepthook__\n"
        "import sentry_sdk\n"
        "assert not sentry_sdk.is_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_comet_ml_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farandole.plugins.metrics.comet.sink.find_spec", lambda name: None)
    with pytest.raises(EngineUnavailableError, match=r"farandole\[comet\]"):
        Comet()
    Comet(offline=True)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(OptionError, match="Did you mean 'single'"):
        Comet(mode="singel")  # type: ignore[arg-type]


def test_random_numbers_of_the_program_stay_its_own(server: CometServer, tmp_path: Path) -> None:
    server.orders = [Order(500), Order(429)]
    run = Run(tmp_path / "1")
    state = random.getstate()
    (sink,) = run.begin()
    run.write(window(10))
    until(lambda: server.values == 4)
    sink.close()
    assert random.getstate() == state
