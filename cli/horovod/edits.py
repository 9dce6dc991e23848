"""The lines of Horovod 0.28.1 that do not build today, and their replacements.

Each edit is data, and is refused unless its line is in the file exactly once: a source other than the one that these
edits were tested on must not build into something untested.
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
    """One line of one file, whole and without its line end; `new` (lines) is `None` to delete the line."""

    file: str
    old: str
    new: str | None
    reason: str


_PYTORCH_CUDA = (
    'execute_process(COMMAND ${{PY_EXE}} -c "import {}torch; from torch.utils.cpp_extension import CUDA_HOME; '
    'print(True if ((torch.version.cuda is not None) and (CUDA_HOME is not None){}) else False)"'
)

_STANDARD = "set(CMAKE_CXX_STANDARD $ENV{HOROVOD_CXX_STANDARD})"  # our own variable; see `standard`
_STANDARD_REASON = "the frameworks' headers decide which standard of C++ is needed (horovod#3996)"
_HEADERS_REASON = "PyTorch's C++ front end is not used, but takes half of the compiler's time"

EDITS: tuple[Edit, ...] = (
    Edit(file="CMakeLists.txt", old="set(CMAKE_CXX_STANDARD 14)", new=_STANDARD, reason=_STANDARD_REASON),
    Edit(
        file="horovod/torch/CMakeLists.txt",
        old="    set(CMAKE_CXX_STANDARD 14)",
        new=f"    {_STANDARD}",
        reason=_STANDARD_REASON,
    ),
    Edit(
        file="horovod/tensorflow/CMakeLists.txt",
        old="    set(CMAKE_CXX_STANDARD 17)",
        new=f"    {_STANDARD}",
        reason=_STANDARD_REASON,
    ),
    Edit(
        file="horovod/tensorflow/CMakeLists.txt",
        old="    set(Tensorflow_CXX17 TRUE)",
        new="    set(Tensorflow_CXX17 FALSE)",
        reason="it asks for a second Gloo in C++17; with one standard for all, TensorFlow can use the first one",
    ),
    Edit(
        file="CMakeLists.txt",
        old='string(REPLACE "-O2" "-O3" CMAKE_CXX_FLAGS_RELWITHDEBINFO "${CMAKE_CXX_FLAGS_RELWITHDEBINFO}")',
        new='set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O3 -DNDEBUG")',
        reason="debug information takes a third of the compiler's time and 100 MB; HOROVOD_DEBUG=1 still adds it",
    ),
    Edit(
        file="horovod/tensorflow/CMakeLists.txt",
        old="add_library(${TF_TARGET_LIB} SHARED ${SOURCES} ${TF_SOURCES})",
        new="""\
add_library(horovod_core OBJECT ${SOURCES})
target_include_directories(horovod_core PRIVATE ${EIGEN_INCLUDE_PATH} ${FLATBUFFERS_INCLUDE_PATH})
add_library(${TF_TARGET_LIB} SHARED $<TARGET_OBJECTS:horovod_core> ${TF_SOURCES})""",
        reason="the core is compiled once, for TensorFlow and PyTorch together",
    ),
    Edit(
        file="horovod/torch/CMakeLists.txt",
        old="add_library(${PYTORCH_TARGET_LIB} SHARED ${SOURCES} ${PYTORCH_SOURCES})",
        new="""\
if(TARGET horovod_core AND Pytorch_CXX11 AND Tensorflow_CXX11 AND NOT HAVE_CUDA AND NOT HAVE_ROCM)
    set(SOURCES $<TARGET_OBJECTS:horovod_core>)
endif()
add_library(${PYTORCH_TARGET_LIB} SHARED ${SOURCES} ${PYTORCH_SOURCES})""",
        reason="the core is compiled once, for TensorFlow and PyTorch together; with GPUs, each framework sets its own",
    ),
    *(
        Edit(file=f"horovod/torch/{file}", old=f"#include <torch/{old}.h>", new=new, reason=_HEADERS_REASON)
        for file in ("adapter_v2.h", "mpi_ops_v2.cc")
        for old, new in (
            ("extension", "#include <torch/csrc/utils/pybind.h>"),
            ("torch", "#include <torch/types.h>"),
        )
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
    """Return a short hash of these edits, without their reasons."""
    lines = [{**asdict(edit), "reason": None} for edit in edits]
    return hashlib.sha256(json.dumps(lines, sort_keys=True).encode()).hexdigest()[:12]


def apply(root: Path, edits: Iterable[Edit] = EDITS) -> None:
    """Edit the source tree under `root` in place.

    Raises:
        HorovodBuildError: a file is missing, or does not have the line exactly once; nothing is built then.
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
        lines[place : place + 1] = [] if edit.new is None else [edit.new.replace("\n", ending or "\n") + ending]
        path.write_bytes("".join(lines).encode("utf-8"))
