"""The lines of Horovod 0.28.1 that stop it from building today, and what they become.

Each edit is data, and is refused unless the line stands in the file exactly as often as expected: a source that differs
from the one these edits were tried on must not build into something nobody has tested.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from .failure import HorovodBuildError


@dataclass(frozen=True)
class Edit:
    """One line of one file, whole and without its line end; `new` is `None` where the line goes away."""

    file: str
    old: str
    new: str | None
    reason: str


_PYTORCH_CUDA = (
    'execute_process(COMMAND ${{PY_EXE}} -c "import {}torch; from torch.utils.cpp_extension import CUDA_HOME; '
    'print(True if ((torch.version.cuda is not None) and (CUDA_HOME is not None){}) else False)"'
)

EDITS: tuple[Edit, ...] = (
    Edit(
        file="CMakeLists.txt",
        old="set(CMAKE_CXX_STANDARD 14)",
        new="set(CMAKE_CXX_STANDARD 17)",
        reason="the headers of PyTorch 2.1 and newer are C++17 (horovod#3996)",
    ),
    Edit(
        file="horovod/torch/CMakeLists.txt",
        old="    set(CMAKE_CXX_STANDARD 14)",
        new="    set(CMAKE_CXX_STANDARD 17)",
        reason="the headers of PyTorch 2.1 and newer are C++17 (horovod#3996)",
    ),
    Edit(
        file="cmake/Modules/FindPytorch.cmake",
        old=_PYTORCH_CUDA.format("", ""),
        new=_PYTORCH_CUDA.format("os, ", " and any(name.startswith('HOROVOD_GPU') for name in os.environ)"),
        reason="a build without GPU operations must not need the CUDA toolkit that PyTorch was built with",
    ),
    Edit(
        file="horovod/tensorflow/CMakeLists.txt",
        old='list(APPEND TF_SOURCES "${PROJECT_SOURCE_DIR}/horovod/tensorflow/xla_mpi_ops.cc")',
        new=None,
        reason="TensorFlow 2.21's wheel lacks the highwayhash headers it includes; the XLA operations are optional",
    ),
    Edit(
        file="horovod/runner/js_run.py",
        old="from distutils.spawn import find_executable",
        new="from shutil import which as find_executable",
        reason="Python 3.12 has no distutils, and horovodrun always imports this module",
    ),
    Edit(
        file="setup.py",
        old="            make_args.append('VERBOSE=1')",
        new="            pass",
        reason="Ninja takes it for the name of a target",
    ),
)


def digest(edits: Iterable[Edit] = EDITS) -> str:
    """Return a short name of these edits; it changes with any change to what they do."""
    lines = [{**asdict(edit), "reason": None} for edit in edits]
    return hashlib.sha256(json.dumps(lines, sort_keys=True).encode()).hexdigest()[:12]


def apply(root: Path, edits: Iterable[Edit] = EDITS) -> None:
    """Edit the source tree under `root` in place.

    Raises:
        HorovodBuildError: a file is missing, or holds the line to edit not exactly once; nothing is built then.
    """
    for edit in edits:
        path = root / edit.file
        try:
            lines = path.read_bytes().decode("utf-8").splitlines(keepends=True)
        except OSError as error:
            raise HorovodBuildError(f"Cannot edit {edit.file} of the Horovod source: {error.strerror}.") from error
        places = [number for number, line in enumerate(lines) if line.rstrip("\r\n") == edit.old]
        if len(places) != 1:
            raise HorovodBuildError(
                f"Cannot edit {edit.file} of the Horovod source: the line {edit.old!r} is there {len(places)} times, "
                "not once. Use the source of Horovod 0.28.1 as published."
            )
        (place,) = places
        ending = lines[place][len(edit.old) :]
        lines[place : place + 1] = [] if edit.new is None else [edit.new + ending]
        path.write_bytes("".join(lines).encode("utf-8"))
