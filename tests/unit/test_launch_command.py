"""The command line that starts each strategy's workers."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from farandole.adapters import EngineUnavailableError, LauncherError, OptionError, UnknownStrategyError
from farandole.adapters.launch.hosts import Host, parse_hosts, place
from farandole.adapters.launch.start import Command, find_launcher
from farandole.adapters.registry import Requirement, StrategyRow
from farandole.plugins.launch import command as module
from farandole.plugins.launch import ports
from farandole.plugins.launch.command import launch_command
from farandole.plugins.launch.installed import check_installed, problem

SCRIPT = ["train.py", "--name", "a b"]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """This test run's own variables must not change what is added."""
    tensorflow = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "TF_CPP_MIN_LOG_LEVEL")
    for name in ("OMP_NUM_THREADS", "PYTHONUNBUFFERED", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", *tensorflow):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def python(tmp_path: Path) -> str:
    """A new environment with an interpreter and every launcher."""
    for name in ("python", "horovodrun", "deepspeed"):
        path = tmp_path / "environment" / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    return str(tmp_path / "environment" / "bin" / "python")


def test_local_is_plain_python(python: str) -> None:
    assert launch_command("local", 1, SCRIPT, python=python).argv == (python, *SCRIPT)
    assert launch_command("local", 1, ["-m", "pkg.train"], python=python).argv == (python, "-m", "pkg.train")


def test_torchrun_meets_at_a_free_port_of_the_loopback_interface(python: str) -> None:
    command = launch_command("ddp", 3, SCRIPT, python=python)
    assert command.argv[:3] == (python, "-m", "torch.distributed.run")
    assert command.argv[-5:] == ("--nproc-per-node", "3", *SCRIPT)
    assert {"--standalone", "--local-addr"} <= set(command.argv)
    module_command = launch_command("ddp", 3, ["-m", "pkg.train", "-m"], python=python)
    assert module_command.argv[-5:] == ("--nproc-per-node", "3", "-m", "pkg.train", "-m")


def test_torchrun_meets_at_the_port_that_is_asked_for(python: str, free_port: int) -> None:
    argv = launch_command("ddp", 2, SCRIPT, port=free_port, python=python).argv
    assert argv[argv.index("--master-port") + 1] == str(free_port)
    assert "--standalone" not in argv


@pytest.mark.parametrize("mpirun", [False, True])
def test_horovodrun_uses_gloo_where_there_is_no_mpi(
    python: str, mpirun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mpirun:
        (tmp_path / "mpirun").write_text("#!/bin/sh\n")
        (tmp_path / "mpirun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    argv = launch_command("horovod", 2, SCRIPT, python=python).argv
    assert argv[0] == str(Path(python).with_name("horovodrun"))
    assert argv[1:3] == ("-np", "2")
    assert argv[-4:] == (python, *SCRIPT)
    assert ("--gloo" in argv) is not mpirun


def test_horovodrun_takes_hosts(python: str) -> None:
    argv = launch_command("horovod", 3, SCRIPT, hosts="a:2,b:2", python=python).argv
    assert argv[argv.index("-H") + 1] == "a:2,b:1"


def test_deepspeed_chooses_a_port_and_leaves_the_arguments_alone(
    python: str, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    row = StrategyRow("zero", ".x:X", "", launcher="deepspeed")
    monkeypatch.setattr(module, "strategy_row", lambda name: row)
    first, second = (launch_command("zero", 2, SCRIPT, python=python).argv for _ in range(2))
    assert first[1:4] == ("--num_gpus", "2", "--master_port")
    assert int(first[4]) != 29500 != int(second[4])
    assert "--no_local_rank" in first
    assert first[-3:] == tuple(SCRIPT)
    argv = launch_command("zero", 2, ["-m", "pkg.train", "x"], port=free_port, python=python).argv
    assert argv[4] == str(free_port)
    assert argv[-3:] == ("--module", "pkg.train", "x")
    with pytest.raises(OptionError, match=r"printf 'a slots=2\\nb slots=1\\n' > hostfile\n"):
        launch_command("zero", 3, SCRIPT, hosts="a:2,b:2", python=python)


def test_threads_are_shared_out_unless_the_user_says_how_many(python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = launch_command("ddp", 2, SCRIPT, python=python).env
    cores = len(os.sched_getaffinity(0))
    assert 1 <= int(env["OMP_NUM_THREADS"]) <= max(1, cores // 2)
    assert launch_command("ddp", 10_000, SCRIPT, python=python).env["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in launch_command("ddp", 1, SCRIPT, python=python).env
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert "OMP_NUM_THREADS" not in launch_command("ddp", 2, SCRIPT, python=python).env


@pytest.mark.parametrize("strategy", ["tf_multiworker", "tf_horovod"])
def test_tensorflow_shares_out_its_own_threads_and_says_less(
    strategy: str, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"}
    env = launch_command(strategy, 2, SCRIPT, python=python).env
    assert {env[name] for name in names} == {env["OMP_NUM_THREADS"]}
    assert env["TF_CPP_MIN_LOG_LEVEL"] == "1"
    assert not any(name.startswith("TF_") for name in launch_command("ddp", 2, SCRIPT, python=python).env)
    assert not any(name.startswith("TF_") for name in launch_command(strategy, 1, SCRIPT, python=python).env)
    for name in (*names, "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.setenv(name, "0")
    assert not any(name.startswith("TF_") for name in launch_command(strategy, 2, SCRIPT, python=python).env)


def test_tensorflow_is_started_by_a_launcher_of_ours(python: str, free_port: int) -> None:
    command = launch_command("tf_multiworker", 3, SCRIPT, python=python)
    assert command.argv == (python, "-P", "-m", "farandole.plugins.launch.local_workers", "-n", "3", *SCRIPT)
    assert launch_command("tf_multiworker", 1, SCRIPT, python=python).argv[5] == "1"
    argv = launch_command(
        "tf_multiworker",
        1,
        ["-m", "pkg.train", "x"],
        hosts="localhost:1",
        port=free_port,
        start_deadline=7.5,
        python=python,
    ).argv
    assert argv[6:] == ("--port", str(free_port), "--start-deadline", "7.5", "-m", "pkg.train", "x")


def test_every_port_from_the_first_is_checked(python: str, free_ports: Callable[[int], list[int]]) -> None:
    for port in free_ports(50):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port + 1)):
            launch_command("tf_multiworker", 1, SCRIPT, port=port, python=python)
            with pytest.raises(LauncherError, match=f"port {port + 1} is in use by"):
                launch_command("tf_multiworker", 2, SCRIPT, port=port, python=python)
            break
    else:
        pytest.fail("no two ports in a row were free")


def test_held_ports_are_kept_from_others_but_can_be_listened_at() -> None:
    held = ports.hold_ports(200)
    assert len({ports.port_of(each) for each in held}) == 200
    port = ports.port_of(held[0])
    with socket.socket() as probe, pytest.raises(OSError):
        probe.bind(("", port))
    with socket.create_server(("", port)):
        pass
    for each in held:
        each.close()


def test_a_found_port_is_held_as_long_as_the_command(python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "strategy_row", lambda name: StrategyRow("zero", ".x:X", "", launcher="deepspeed"))
    command = launch_command("zero", 2, SCRIPT, python=python)
    port = int(command.argv[4])
    with socket.socket() as other, pytest.raises(OSError):
        other.bind(("", port))
    del command
    with socket.socket() as other:
        other.bind(("", port))


def test_tf_config_of_each_worker_on_remote_hosts(python: str) -> None:
    with pytest.raises(OptionError) as raised:
        launch_command("tf_multiworker", 3, SCRIPT, hosts="a:2,b:2", start_deadline=90, python=python)
    _, *lines = str(raised.value).splitlines()
    for index, line in enumerate(lines):
        host, _, command = line.strip().partition(": ")
        assert host == "aab"[index]
        assert command.endswith(" python train.py --name 'a b'")
        words = dict(word.split("=", 1) for word in shlex.split(command)[:3])
        assert words.pop("TF_CONFIG") == json.dumps(
            {"cluster": {"worker": ["a:2222", "a:2223", "b:2222"]}, "task": {"type": "worker", "index": index}}
        )
        assert words == {"FARANDOLE_STRATEGY": "tf_multiworker", "FARANDOLE_START_DEADLINE": "90"}
    assert len(lines) == 3


def test_the_line_can_be_pasted(python: str) -> None:
    command = Command((python, "it's", "$HOME", ""), {"NAME": "a b"})
    assert shlex.split(str(command)) == ["NAME=a b", python, "it's", "$HOME", ""]


def test_torchrun_names_the_line_of_each_remote_host(python: str) -> None:
    with pytest.raises(OptionError) as raised:
        launch_command("ddp", 3, SCRIPT, hosts="a:2,b:2", python=python)
    _, first, second = str(raised.value).splitlines()
    common = "--master-addr a --master-port 29500 train.py --name 'a b'"
    assert first == f"  a: torchrun --nnodes 2 --node-rank 0 --nproc-per-node 2 {common}"
    assert second == f"  b: torchrun --nnodes 2 --node-rank 1 --nproc-per-node 1 {common}"
    assert launch_command("ddp", 2, SCRIPT, hosts="localhost:2", python=python).argv[-3:] == tuple(SCRIPT)


@pytest.mark.parametrize("text", ["a", "a:", "a:0", ":2", "a:2,", "a:2,b", "a:-1", "a:x", ""])
def test_hosts_that_are_not_host_slots(text: str) -> None:
    with pytest.raises(OptionError, match="a:2,b:2"):
        parse_hosts(text)


def test_hosts_are_filled_in_order() -> None:
    hosts = parse_hosts("a:2, b.example.org:3")
    assert hosts == (Host("a", 2), Host("b.example.org", 3))
    assert place(hosts, 5) == hosts
    assert place(hosts, 2) == (Host("a", 2),)
    with pytest.raises(OptionError, match="-n 6 is more than the 5 slots"):
        place(hosts, 6)


@pytest.mark.parametrize(
    ("strategy", "workers", "options", "says"),
    [
        ("ddp", 0, {}, "-n 1"),
        ("ddp", -2, {}, "-n 1"),
        ("local", 2, {}, "--strategy ddp"),
        ("tf_local", 2, {}, "--strategy tf_multiworker"),
        ("ddp", 2, {"start_deadline": 9.0}, "'ddp' has no start deadline: leave out --start-deadline"),
        ("tf_multiworker", 3, {"port": 65534}, "3 ports from there would pass the last one, 65535"),
        ("tf_multiworker", 4, {"hosts": "a:1,b:3", "port": 65534}, "3 ports from there would pass the last one, 65535"),
        ("local", 1, {"hosts": "a:1"}, "leave out --hosts"),
        ("local", 1, {"port": 0}, "leave out --port"),
        ("horovod", 2, {"port": 0}, "leave out --port"),
    ],
)
def test_what_a_launcher_cannot_do(
    strategy: str, workers: int, options: dict[str, str | int], says: str, python: str
) -> None:
    with pytest.raises(OptionError, match=says):
        launch_command(strategy, workers, SCRIPT, python=python, **options)  # type: ignore[arg-type]


def test_an_unknown_strategy_suggests_the_nearest() -> None:
    with pytest.raises(UnknownStrategyError, match="'horovod'"):
        launch_command("horovd", 2, SCRIPT)


def test_a_busy_port_is_named_with_who_holds_it(python: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(LauncherError, match=rf"port {port} is in use by .+ \(process {os.getpid()}\).*--port"):
            launch_command("ddp", 2, SCRIPT, port=port, python=python)
    launch_command("ddp", 2, SCRIPT, port=port, python=python)


@pytest.mark.parametrize(
    "left",
    [
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"HOROVOD_RANK": "1"},
        {"OMPI_COMM_WORLD_SIZE": "4"},
        {"TF_CONFIG": '{"cluster": {}}'},
    ],
)
def test_variables_of_another_launcher_are_named(
    left: dict[str, str], python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LauncherError) as raised:
        launch_command("ddp", 2, SCRIPT, python=python)
    assert all(
        f"-u {name}" in str(raised.value) and f"{name}={value}" in str(raised.value) for name, value in left.items()
    )
    for name in left:
        monkeypatch.setenv(name, " ")
    launch_command("ddp", 2, SCRIPT, python=python)


def test_a_missing_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineUnavailableError, match=r"horovodrun, which is neither .* farandole horovod install"):
        launch_command("horovod", 2, SCRIPT, python=str(tmp_path / "python"))


def test_the_launcher_of_this_environment_comes_first(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "horovodrun"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_launcher("horovodrun", python) == str(Path(python).with_name("horovodrun"))
    Path(python).with_name("horovodrun").unlink()
    assert find_launcher("horovodrun", python) == str(other)


def test_what_is_not_installed_is_named_with_its_fix() -> None:
    row = StrategyRow("x", ".x:X", "", requirements=(Requirement("no-such", "no_such.engine", "pip install no-such"),))
    with pytest.raises(EngineUnavailableError, match=r"needs no-such, which is not installed\..*: pip install no-such"):
        check_installed(row)


def test_a_horovod_for_another_framework_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "horovod"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / "metadata.json").write_text('{"tensorflow": "2.21.0", "dummy": "none"}')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "horovod", raising=False)
    requirement = Requirement("horovod", "horovod.torch", "farandole horovod install")
    assert problem(requirement) == (
        "installed, but built for tensorflow 2.21.0, not for pytorch",
        "farandole horovod install --force",
    )
    (package / "metadata.json").write_text('{"pytorch": "2.13.0", "dummy": "none"}')
    assert problem(requirement) is None
    assert problem(Requirement("horovod", "horovod.tensorflow", "farandole horovod install")) == (
        "installed, but built for pytorch 2.13.0, not for tensorflow",
        "farandole horovod install --force",
    )
    (package / "metadata.json").unlink()
    assert problem(requirement) is None


@pytest.fixture
def free_port(free_ports: Callable[[int], list[int]]) -> int:
    return free_ports(1)[0]
