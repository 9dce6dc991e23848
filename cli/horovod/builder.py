"""From the published source to a wheel in the cache."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path

from . import edits, source, standard, toolchain
from .cache import Slot, root
from .failure import HorovodBuildError
from .process import stop_on_signals, watch
from .progress import Reporter
from .target import Plan

_DISK = 1e9  # bytes a build takes in the temporary folder, with some room
_COMPILING = re.compile(r"\[\s*(\d+)%\]\s+(.*)|\[(\d+)/(\d+)\]\s+(.*)")  # make's and Ninja's progress
_ERROR = re.compile(r"\berror:|CMake Error|undefined reference|No space left|^\s*\w+Error:", re.MULTILINE)
_SCRATCH = re.compile(r"[^\s'\"=]*farandole-horovod-\w+/horovod-[\d.]+/")  # deleted before anyone reads it
_HINTS = {
    r"Killed signal|cc1plus.*[Kk]illed|virtual memory exhausted": "The compiler ran out of memory: try MAKEFLAGS=-j1.",
    r"No space left on device": "The disk is full: set TMPDIR to a folder with more room.",
    r"need GCC|requires a C\+\+|C\+\+(17|20).{0,30}(required|supported)": "Use a newer C++ compiler: set CXX to it.",
}


def build(plan: Plan, report: Reporter, *, sdist: Path | None = None, force: bool = False) -> Path:
    """Return the wheel of a plan, built now unless a sound one is in the cache.

    Raises:
        HorovodBuildError: a tool is missing, the source is not the published one, or the build failed; the message has
            the log's relevant lines and its path.
    """
    for note in plan.notes:
        report.note(note)
    if sdist is not None:
        source.verify(sdist)
    slot = Slot(plan.target.key, plan.target.libraries)
    with (
        stop_on_signals(),
        slot.lock(lambda: report.note("The same wheel is being built by another process: waiting for it.")),
    ):
        kept = slot.wheel(lambda: report.note("The wheel in the cache is damaged: building it again."))
        if kept and not force:
            report.note(f"Already built: {plan.target}.")
            return kept
        toolchain.check(torch=plan.target.torch is not None)
        _check_disk()
        if plan.trial:
            report.note(plan.trial)
        cxx = standard.choose(plan.frameworks)
        report.note(f"Building {plan.target}, in C++{cxx}.")
        with slot.scratch() as scratch:
            return slot.publish(_compile(plan, report, slot, sdist, scratch, cxx))


def _check_disk() -> None:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < _DISK:
        raise HorovodBuildError(
            f"The build takes about {_DISK / 1e9:.0f} GB, but {folder} has {free / 1e9:.1f} GB free. "
            "Set TMPDIR to a folder with more room."
        )


def _compile(plan: Plan, report: Reporter, slot: Slot, sdist: Path | None, scratch: Path, cxx: int) -> Path:
    report.step("fetch the source" if sdist is None else f"read {sdist.name}")
    archive = sdist or source.fetch(root())
    report.step("apply the edits")
    tree = source.unpack(archive, scratch)
    edits.apply(tree)
    report.step("configure")
    wheels, temporary = scratch / "wheels", scratch / "tmp"
    temporary.mkdir()  # for pip, which leaves its own temporary folders behind when it is stopped
    command = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    command += ["--wheel-dir", str(wheels), str(tree)]
    with slot.log.open("w", encoding="utf-8", errors="replace") as log:
        follower = Follower(report)

        def line(text: str) -> None:
            log.write(text + "\n")
            log.flush()
            report.output(text)
            follower.read(text.strip())

        env = plan.variables(slot.folder / "links", cxx) | {"TMPDIR": str(temporary)}
        code = watch(command, env=env, cwd=scratch, line=line)
    if code != 0:
        raise HorovodBuildError(explain(slot.log))
    built = list(wheels.glob("*.whl"))
    if len(built) != 1:
        raise HorovodBuildError(f"pip reported success but left {len(built)} wheels. Log: {slot.log}")
    return built[0]


class Follower:
    """Reads the steps of a build, and the progress of the compilation, from its output."""

    def __init__(self, report: Reporter) -> None:
        self._report = report
        self._compiling = False
        self._packaging = False

    def read(self, line: str) -> None:
        found = _COMPILING.match(line)
        if found and "cmTC_" not in line:  # CMake names its own small trials so
            if not self._compiling:
                self._compiling = True
                self._report.step("compile")
            percent = int(found[1]) if found[1] else 100 * int(found[3]) // int(found[4])
            self._report.advance(percent, Path((found[2] or found[5] or "").split(" ")[-1]).name)
        elif self._compiling and not self._packaging and line.startswith(("running install", "installing to")):
            self._packaging = True
            self._report.step("package")


def explain(log: Path, *, length: int = 20) -> str:
    """Summarize a failed build's log in about `length` lines: errors first, then the end, a hint, the path."""
    text = _SCRATCH.sub("", log.read_text(encoding="utf-8", errors="replace"))
    # After a compiler's error come the tracebacks of setup.py and pip, which only repeat that it failed.
    compiled = text.partition("Traceback (most recent call last)")[0]
    kept = compiled if _ERROR.search(compiled) else text
    lines = [line.strip()[:200] for line in kept.splitlines() if line.strip()]
    errors = list(dict.fromkeys(line for line in lines if _ERROR.search(line)))[: length // 2]
    tail = [line for line in lines[-(length - len(errors)) :] if line not in errors]
    hints = [hint for pattern, hint in _HINTS.items() if re.search(pattern, text)]
    head = ["Horovod did not build.", *errors, *(["..."] if errors else [])]
    return "\n".join([*head, *tail, *hints, f"The whole log: {log}"])
