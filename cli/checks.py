"""The checks of `farandole doctor`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..adapters.errors import LauncherError
from ..adapters.launch.detect import detect_launch
from ..adapters.launch.start import find_launcher, script_folders
from ..plugins.launch.installed import HOROVOD_FRAMEWORKS, horovod_frameworks, package

Status = Literal["ok", "absent", "broken", "note"]

_EXTRAS = {
    "torch": "pip install 'farandole[torch]'",
    "deepspeed": "pip install 'farandole[deepspeed]' --no-build-isolation",
    "tensorflow": "pip install 'farandole[tensorflow]'",
    "lightning": "pip install 'farandole[lightning]'",
    "comet_ml": "pip install 'farandole[comet]'",
}
_LAUNCHERS = {"torchrun": "torch", "horovodrun": "horovod", "deepspeed": "deepspeed"}
_REBUILD = "farandole horovod install --force"


@dataclass(frozen=True)
class Check:
    """The result of one check.

    status: "broken" if it is installed and cannot be used; "note" if something about it may surprise.
    detail: what it was built with, where it is, or what is wrong.
    fix: the command that fixes it, if there is one.
    """

    name: str
    status: Status
    version: str = ""
    detail: str = ""
    fix: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def check_engines(timeout: float) -> Iterator[Check]:
    """Import every installed engine in its own process, all at once, in at most `timeout` seconds."""
    horovod = package("horovod")
    built_for = horovod_frameworks(horovod) if horovod is not None else {}
    checks: dict[str, Check | None] = {}
    for name, extra in _EXTRAS.items():
        absent = package(name) is None
        checks[name] = Check(name, "absent", fix=extra) if absent else None
        if horovod is not None and not absent and f"horovod.{name}" in HOROVOD_FRAMEWORKS:
            checks[f"horovod.{name}"] = _horovod_without(name, built_for)
    if horovod is None:
        checks["horovod"] = Check("horovod", "absent", fix="farandole horovod install")
    elif not any(name in checks for name in HOROVOD_FRAMEWORKS):
        checks["horovod"] = Check("horovod", "note", detail="installed, but neither PyTorch nor TensorFlow is")
    found = probe([name for name, check in checks.items() if check is None], timeout)
    for name, check in checks.items():
        yield check or _after_import(name, found[name], built_for)


def _horovod_without(framework: str, built_for: Mapping[str, str] | None) -> Check | None:
    """Check whether Horovod lacks support for an installed framework; `None` if it has it, or does not say."""
    name = f"horovod.{framework}"
    if built_for is None or HOROVOD_FRAMEWORKS[name] in built_for:
        return None
    serves = [other for other, key in HOROVOD_FRAMEWORKS.items() if key in built_for and package(other.split(".")[1])]
    # It is broken only if it supports no installed framework.
    return Check(name, "absent" if serves else "broken", detail=f"Horovod was built without {framework}", fix=_REBUILD)


def _after_import(name: str, found: Mapping[str, Any], built_for: Mapping[str, str] | None) -> Check:
    if "error" in found:
        again = f"pip install --force-reinstall --no-deps {name.replace('_', '-')}"
        return Check(name, "broken", detail=found["error"], fix=_REBUILD if name in HOROVOD_FRAMEWORKS else again)
    facts = {key: value for key, value in found.items() if key != "version"}
    without = [key for key, value in facts.items() if value is False or value is None]
    parts = [_say(key, value) for key, value in facts.items() if key not in without]
    parts += [f"without {', '.join(without)}"] if without else []
    if name in HOROVOD_FRAMEWORKS and built_for:
        parts.insert(0, f"built for {HOROVOD_FRAMEWORKS[name]} {built_for[HOROVOD_FRAMEWORKS[name]]}")
    return Check(name, "ok", found["version"], "; ".join(parts), facts=facts)


def _say(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return key
    return f"{value} {key}" if isinstance(value, int) else f"{key} {value}"


def probe(names: Sequence[str], timeout: float) -> dict[str, Mapping[str, Any]]:
    """Import each of these engines in its own process, and return its facts or its error."""
    # -P: do not import from the current folder, which may hold a folder named like an engine.
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}  # TensorFlow's banner is no error
    deadline = time.monotonic() + timeout
    started = {
        name: subprocess.Popen(
            [sys.executable, "-P", "-m", f"{__package__}.probe", name],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        for name in names
    }
    try:
        return {name: _read(process, deadline, timeout) for name, process in started.items()}
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def _read(process: subprocess.Popen[str], deadline: float, timeout: float) -> Mapping[str, Any]:
    try:
        # At least one second, to read processes that ended during the wait for an earlier one.
        output, errors = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return {"error": f"its import did not end within {timeout:.0f} s"}
    if process.returncode < 0:
        return {"error": f"its import ended with {signal.Signals(-process.returncode).name}"}
    try:
        found: Mapping[str, Any] = json.loads(output.splitlines()[-1])
        return found
    except (IndexError, ValueError):
        last = errors.strip().splitlines()[-1:] or ["no message"]
        return {"error": f"its import ended with exit code {process.returncode}: {last[0]}"}


def judge_gpus(torch: Check | None) -> Check:
    """Judge the GPUs that PyTorch sees, from its own check."""
    number = torch.facts.get("gpus", 0) if torch is not None else 0
    if number:
        detail = f"PyTorch sees {number}; `pytest tests/cuda`, in a checkout, tests the strategies on one of them"
        return Check("GPU", "ok", detail=detail, facts={"gpus": number})
    hidden = "; CUDA_VISIBLE_DEVICES hides them all" if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") else ""
    return Check("GPU", "absent", detail=f"PyTorch sees none{hidden}; `pytest tests/cuda` needs one")


def check_launchers() -> Iterator[Check]:
    """Find the launcher of each installed engine."""
    for name, engine in _LAUNCHERS.items():
        if package(engine) is not None:
            yield judge_launcher(name, engine, find_launcher(name), shutil.which(name), script_folders())


def judge_launcher(name: str, engine: str, path: str | None, typed: str | None, own: Sequence[Path]) -> Check:
    """Judge a launcher at `path`; typing its name runs `typed`, and `own` are this environment's folders."""
    fix = _REBUILD if engine == "horovod" else f"pip install --force-reinstall --no-deps {engine}"
    if path is None:
        return Check(name, "broken", detail=f"{engine} is installed without it", fix=fix)
    if not _interpreter_exists(Path(path)):
        return Check(name, "broken", detail=f"{path} names an interpreter that does not exist", fix=fix)
    if Path(path).parent not in own:
        return Check(name, "note", detail=f"{path} belongs to another environment", fix=fix)
    if typed is None:
        return Check(name, "ok", detail=f"{path} (not on PATH, but `farandole run` finds it)")
    if not Path(typed).samefile(path):
        return Check(name, "note", detail=f"{path}; but typing {name} runs {typed}, of another environment")
    return Check(name, "ok", detail=path)


def _interpreter_exists(script: Path) -> bool:
    """Whether the program in a script's first line exists; it does not after an environment was moved."""
    with script.open("rb") as file:
        first = file.readline(4096)
    if not first.startswith(b"#!"):
        return True
    return Path(os.fsdecode(first[2:].split()[0])).exists()


def check_build_tools() -> Check:
    """Check whether Horovod can be built here."""
    from .horovod import toolchain, tried
    from .horovod.failure import HorovodBuildError

    try:
        toolchain.check(torch=package("torch") is not None)
    except HorovodBuildError as error:
        missing = [line.strip(" -") for line in str(error).splitlines()[1:]]
        return Check("to build Horovod", "absent", detail="; ".join(missing) or str(error))
    tools = [toolchain.compiler(), toolchain.find("cmake"), toolchain.find("ninja", "make")]
    bare = toolchain.mpi_without_headers()
    no_mpi = f"no MPI ({bare} has no headers: apt-get install libopenmpi-dev)" if bare else "no MPI"
    detail = ", ".join([*filter(None, tools), toolchain.mpi_version() or no_mpi]) + f"; tried with {tried.table()}"
    return Check("to build Horovod", "ok", detail=detail)


def check_environment() -> Check:
    """Check which worker a script started from here would be."""
    try:
        launch = detect_launch()
    except LauncherError as error:
        return Check("environment", "note", detail=str(error))
    worker = launch.worker
    facts = {"launcher": launch.launcher, "rank": worker.rank, "world_size": worker.world_size}
    if launch.launcher == "none":
        return Check("environment", "ok", detail="no launcher: a script started from here is one worker", facts=facts)
    detail = f"{launch.launcher}: a script started from here is worker {worker.rank} of {worker.world_size}"
    return Check("environment", "note" if worker.world_size > 1 else "ok", detail=detail, facts=facts)
